"""What two schemas say together, and whether no value can satisfy both.

A schema here is an object whose `$ref` and `allOf` have been resolved, or true or false.
"""

import json
from collections.abc import Callable
from typing import Any

from presswork.errors import ConstraintError
from presswork.grammar.keywords import ANNOTATIONS, DEFINITIONS, SPEAKS_OF, Schema
from presswork.grammar.limits import too_large

Spend = Callable[[int], None]
"""Counts work, and raises ConstraintTooLargeError when there was too much; values that are compared count by length."""

_ALL_TYPES = frozenset(("null", "boolean", "object", "array", "string", "number"))
_LARGER = ("minLength", "minItems", "minProperties", "minimum", "exclusiveMinimum")
_KEY_LENGTH = 500  # of a value's text that takes as long as a schema to read
_SMALLER = ("maxLength", "maxItems", "maxProperties", "maximum", "exclusiveMaximum")


def demands(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without annotations and definitions."""
    return {key: value for key, value in schema.items() if key not in ANNOTATIONS and key not in DEFINITIONS}


def merge(left: Schema, right: Schema, path: str, spend: Spend) -> Schema:
    """A schema for the values that satisfy both.

    Args:
        path: Where they stand, for messages.
        spend: Told the work that comparing values takes.

    Returns: Their keywords together; properties of both are left as an `allOf` to resolve later. Pure.

    Raises: ConstraintError when a keyword is in both with different values that do not go together.
    """
    if left is False or right is False:
        return False
    if left is True or right is True:
        return right if left is True else left
    left, right = _with_enum(left, spend), _with_enum(right, spend)
    types = _common_types(left, right)
    if types == []:
        return False
    merged = {**left, **right}
    if types is not None:
        merged["type"] = types
    _refuse_mixed_items(left, right, path, spend)
    for keyword in left.keys() & right.keys() - {"type"}:
        merged[keyword] = _merge_keyword(keyword, left[keyword], right[keyword], path, spend)
    if "properties" in merged:
        merged["properties"] = _merge_properties(left, right, spend)
    return False if merged.get("enum") == [] else merged


def _merge_keyword(keyword: str, left: Any, right: Any, path: str, spend: Spend) -> Any:
    if keyword in _COMBINED:
        return _COMBINED[keyword](left, right)
    if keyword in _COMPARED:
        return _COMPARED[keyword](left, right, spend)
    if _same(left, right, spend):
        return left
    raise ConstraintError(f"{path}: keyword {keyword!r} has two values that must both hold; write one schema for both")


def _both(left: Schema, right: Schema, spend: Spend) -> Schema:
    if isinstance(left, bool) or isinstance(right, bool):
        return False if left is False or right is False else right if left is True else left
    if left is right or _same(demands(left), demands(right), spend):
        return left
    return {"allOf": [left, right]}


def _same(left: Any, right: Any, spend: Spend) -> bool:
    """Whether two values are one in JSON; Python calls true and 1 equal."""
    return left is right or _key(left, spend) == _key(right, spend)


def _in_both(left: list[Any], right: list[Any], spend: Spend) -> list[Any]:
    # Through references both often hold the very same values.
    known = {id(value) for value in right}
    if all(id(value) in known for value in left):
        return left
    keys = {_key(value, spend) for value in right}
    return [value for value in left if _key(value, spend) in keys]


_COMBINED: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(_LARGER, max),
    **dict.fromkeys(_SMALLER, min),
    "required": lambda left, right: list(dict.fromkeys([*left, *right])),
    "properties": lambda left, right: right,  # put together below, where additionalProperties is known too
}


_COMPARED: dict[str, Callable[[Any, Any, Spend], Any]] = {
    "enum": _in_both, "items": _both, "additionalProperties": _both,
}  # fmt: skip


def _merge_properties(left: dict[str, Any], right: dict[str, Any], spend: Spend) -> dict[str, Schema]:
    """Every property of either, under what the other says of it: by name, or else by additionalProperties."""
    names = dict.fromkeys([*left.get("properties", ()), *right.get("properties", ())])
    return {name: _both(_property(left, name), _property(right, name), spend) for name in names}


def _property(schema: dict[str, Any], name: str) -> Schema:
    return schema.get("properties", {}).get(name, schema.get("additionalProperties", True))


def _refuse_mixed_items(left: dict[str, Any], right: dict[str, Any], path: str, spend: Spend) -> None:
    """`items` speaks of what `prefixItems` of its own schema leaves, so the two cannot be moved between schemas."""
    for first, second in ((left, right), (right, left)):
        if "prefixItems" not in first or "items" not in second:
            continue
        if not _same(first["prefixItems"], second.get("prefixItems"), spend):
            raise ConstraintError(
                f"{path}: prefixItems of one schema and items of another must both hold; write one schema"
            )


def _with_enum(schema: dict[str, Any], spend: Spend) -> dict[str, Any]:
    """`const` written as `enum`."""
    if "const" not in schema:
        return schema
    rest = {key: value for key, value in schema.items() if key not in ("const", "enum")}
    return {**rest, "enum": _in_both([schema["const"]], schema.get("enum", [schema["const"]]), spend)}


def listed_values(schema: dict[str, Any], spend: Spend) -> list[Any] | None:
    """The values that `enum` and `const` leave and `type` admits; None when the schema lists none."""
    values = _with_enum(schema, spend).get("enum")
    if values is None or "type" not in schema:
        return values
    return [value for value in values if any(_is_of(value, name) for name in type_names(schema))]


def type_names(schema: dict[str, Any]) -> list[str]:
    """What `type` lists, else the types that the schema's keywords speak of; all when they speak of none."""
    if "type" in schema:
        return [schema["type"]] if isinstance(schema["type"], str) else list(dict.fromkeys(schema["type"]))
    spoken_of = {SPEAKS_OF[keyword] for keyword in schema if keyword in SPEAKS_OF}
    return sorted(spoken_of or _ALL_TYPES)


def _common_types(left: dict[str, Any], right: dict[str, Any]) -> list[str] | None:
    """The types that both admit; None when neither says."""
    said = [type_names(schema) for schema in (left, right) if "type" in schema]
    if len(said) < 2:
        return said[0] if said else None
    common = [name for name in said[0] if name in said[1] or (name == "integer" and "number" in said[1])]
    return common + [name for name in said[1] if name == "integer" and "number" in said[0] and name not in common]


def _key(value: Any, spend: Spend) -> str:
    """A text that is the same for values that JSON schema calls equal: 1 and 1.0 are, 1 and true are not."""
    try:
        key = f'"{value}' if isinstance(value, str) else json.dumps(_plain(value), sort_keys=True)
    except RecursionError:
        raise too_large("holds values nested too deep to compare") from None
    spend(len(key) // _KEY_LENGTH)
    return key


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _is_of(value: Any, type_name: str) -> bool:
    return type_name in _types_of(value)


def _types_of(value: Any) -> tuple[str, ...]:
    match value:
        case None:
            return ("null",)
        case bool():
            return ("boolean",)
        case int() | float():
            return ("number", "integer") if value == int(value) else ("number",)
        case str():
            return ("string",)
        case list():
            return ("array",)
        case _:
            return ("object",)


def are_disjoint(left: Schema, right: Schema, resolve: Callable[[Schema], Schema], spend: Spend) -> bool:
    """Whether it is plain that no value satisfies both: by type, listed values, or a property that tells them apart.

    Args:
        resolve: Puts the `$ref` and `allOf` of a property's schema in place.
        spend: As in `merge`.
    """
    if isinstance(left, bool) or isinstance(right, bool):
        return left is False or right is False
    common = _admitted(left, spend) & _admitted(right, spend)
    if not common or _differ(left, right, spend):
        return True
    if common != {"object"}:
        return False
    known = set(right.get("required", ()))
    shared = [name for name in left.get("required", ()) if name in known]
    return any(_differ(resolve(_property(left, name)), resolve(_property(right, name)), spend) for name in shared)


def _differ(left: Schema, right: Schema, spend: Spend) -> bool:
    """Whether both list values, and none in common."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is False or right is False
    listed = listed_values(left, spend), listed_values(right, spend)
    return listed[0] is not None and listed[1] is not None and not _in_both(listed[0], listed[1], spend)


def _admitted(schema: dict[str, Any], spend: Spend) -> set[str]:
    """The types of the values that satisfy the schema, as far as it says; an integer counts as an integer only."""
    values = listed_values(schema, spend)
    if values is not None:
        return {_types_of(value)[-1] for value in values}
    if "type" not in schema:
        return {*_ALL_TYPES, "integer"}
    names = set(type_names(schema))
    return names | {"integer"} if "number" in names else names
