"""What two schemas say together, and whether no value can satisfy both.

A schema here is an object whose `$ref` and `allOf` have been resolved, or true or false.
"""

import json
from collections.abc import Callable
from typing import Any

from presswork.errors import ConstraintError
from presswork.grammar.keywords import ANNOTATIONS, DEFINITIONS, SPEAKS_OF, Schema

_ALL_TYPES = frozenset(("null", "boolean", "object", "array", "string", "number"))
_LARGER = ("minLength", "minItems", "minProperties", "minimum", "exclusiveMinimum")
_SMALLER = ("maxLength", "maxItems", "maxProperties", "maximum", "exclusiveMaximum")


def demands(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without annotations and definitions."""
    return {key: value for key, value in schema.items() if key not in ANNOTATIONS and key not in DEFINITIONS}


def merge(left: Schema, right: Schema, path: str) -> Schema:
    """A schema for the values that satisfy both.

    Args:
        path: Where they stand, for messages.

    Returns: Their keywords together; properties of both are left as an `allOf` to resolve later. Pure.

    Raises: ConstraintError when a keyword is in both with different values that do not go together.
    """
    if left is False or right is False:
        return False
    if left is True or right is True:
        return right if left is True else left
    left, right = _with_enum(left), _with_enum(right)
    types = _common_types(left, right)
    if types == []:
        return False
    merged = {**left, **right}
    if types is not None:
        merged["type"] = types
    _refuse_mixed_items(left, right, path)
    for keyword in left.keys() & right.keys() - {"type"}:
        merged[keyword] = _merge_keyword(keyword, left[keyword], right[keyword], path)
    if "properties" in merged:
        merged["properties"] = _merge_properties(left, right)
    return False if merged.get("enum") == [] else merged


def _merge_keyword(keyword: str, left: Any, right: Any, path: str) -> Any:
    if keyword in _COMBINED:
        return _COMBINED[keyword](left, right)
    if _same(left, right):
        return left
    raise ConstraintError(f"{path}: keyword {keyword!r} has two values that must both hold; write one schema for both")


def _both(left: Schema, right: Schema) -> Schema:
    if isinstance(left, bool):
        return right if left else False
    return left if right is True or _same(left, right) else {"allOf": [left, right]}


def _same(left: Any, right: Any) -> bool:
    """Whether two values are one in JSON; Python calls true and 1 equal."""
    return value_key(left) == value_key(right)


def _in_both(left: list[Any], right: list[Any]) -> list[Any]:
    keys = {value_key(value) for value in right}
    return [value for value in left if value_key(value) in keys]


_COMBINED: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(_LARGER, max),
    **dict.fromkeys(_SMALLER, min),
    "required": lambda left, right: list(dict.fromkeys([*left, *right])),
    "enum": _in_both,
    "items": _both,
    "additionalProperties": _both,
    "properties": lambda left, right: right,  # put together below, where additionalProperties is known too
}


def _merge_properties(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Schema]:
    """Every property of either, under what the other says of it: by name, or else by additionalProperties."""
    names = dict.fromkeys([*left.get("properties", ()), *right.get("properties", ())])
    return {name: _both(_property(left, name), _property(right, name)) for name in names}


def _property(schema: dict[str, Any], name: str) -> Schema:
    return schema.get("properties", {}).get(name, schema.get("additionalProperties", True))


def _refuse_mixed_items(left: dict[str, Any], right: dict[str, Any], path: str) -> None:
    """`items` speaks of what `prefixItems` of its own schema leaves, so the two cannot be moved between schemas."""
    for first, second in ((left, right), (right, left)):
        if "prefixItems" in first and "items" in second and not _same(first["prefixItems"], second.get("prefixItems")):
            raise ConstraintError(
                f"{path}: prefixItems of one schema and items of another must both hold; write one schema"
            )


def _with_enum(schema: dict[str, Any]) -> dict[str, Any]:
    """`const` written as `enum`."""
    if "const" not in schema:
        return schema
    rest = {key: value for key, value in schema.items() if key not in ("const", "enum")}
    return {**rest, "enum": _in_both([schema["const"]], schema.get("enum", [schema["const"]]))}


def listed_values(schema: dict[str, Any]) -> list[Any] | None:
    """The values that `enum` and `const` leave and `type` admits; None when the schema lists none."""
    values = _with_enum(schema).get("enum")
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


def value_key(value: Any) -> str:
    """A text that is the same for values that JSON schema calls equal: 1 and 1.0 are, 1 and true are not."""
    return f'"{value}' if isinstance(value, str) else json.dumps(_plain(value), sort_keys=True)


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


def are_disjoint(left: Schema, right: Schema, resolve: Callable[[Schema], Schema]) -> bool:
    """Whether it is plain that no value satisfies both: by type, listed values, or a property that tells them apart.

    Args:
        resolve: Puts the `$ref` and `allOf` of a property's schema in place.
    """
    if isinstance(left, bool) or isinstance(right, bool):
        return left is False or right is False
    if not _admitted(left) & _admitted(right):
        return True
    listed = listed_values(left), listed_values(right)
    if listed[0] is not None and listed[1] is not None:
        return not _in_both(listed[0], listed[1])
    if _admitted(left) & _admitted(right) != {"object"}:
        return False
    shared = set(left.get("required", ())) & set(right.get("required", ()))
    return any(_differ(resolve(_property(left, name)), resolve(_property(right, name))) for name in shared)


def _differ(left: Schema, right: Schema) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is False or right is False
    listed = listed_values(left), listed_values(right)
    return listed[0] is not None and listed[1] is not None and not _in_both(listed[0], listed[1])


def _admitted(schema: dict[str, Any]) -> set[str]:
    """The types of the values that satisfy the schema, as far as it says; an integer counts as an integer only."""
    values = listed_values(schema)
    if values is not None:
        return {_types_of(value)[-1] for value in values}
    if "type" not in schema:
        return {*_ALL_TYPES, "integer"}
    names = set(type_names(schema))
    return names | {"integer"} if "number" in names else names
