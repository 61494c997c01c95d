"""The keywords of JSON schema that are kept to, and what their values may be.

Source: JSON Schema draft 2020-12, "core" and "validation". A keyword that is not in the table is refused, never
ignored.
"""

import math
import reprlib
from collections.abc import Callable, Iterator
from typing import Any

from presswork.errors import ConstraintError
from presswork.grammar.formats import FORMATS
from presswork.grammar.limits import too_large

Schema = bool | dict[str, Any]

TYPES = ("null", "boolean", "object", "array", "string", "integer", "number")
MAX_SCHEMAS = 3_000
MAX_SCHEMA_LEVELS = 64
# Constants and names, and their characters.
MAX_CONSTANTS_SIZE = 80_000
# What the parser of tool calls reads back: values in values, and integers of 300 digits.
MAX_VALUE_LEVELS = 32
_MAX_BITS = 990

ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated", "readOnly", "writeOnly")
)
DEFINITIONS = frozenset(("$defs", "definitions"))
# The types that a keyword speaks of; a schema without `type` is narrowed to those.
SPEAKS_OF = {
    "properties": "object", "required": "object", "additionalProperties": "object", "minProperties": "object",
    "maxProperties": "object", "items": "array", "prefixItems": "array", "minItems": "array", "maxItems": "array",
    "minLength": "string", "maxLength": "string", "pattern": "string", "format": "string", "minimum": "number",
    "maximum": "number", "exclusiveMinimum": "number", "exclusiveMaximum": "number", "multipleOf": "number",
}  # fmt: skip
_PAIRS = (("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties"))
_HINTS = {
    "not": "say what is allowed instead",
    "uniqueItems": "leave it out or list the allowed arrays with enum",
    "patternProperties": "use additionalProperties without properties for free keys",
    "propertyNames": "use additionalProperties without properties for free keys",
    "nullable": "add null to type",
    "if": "write the alternatives with anyOf",
    "dependentRequired": "write the alternatives with anyOf",
    "dependentSchemas": "write the alternatives with anyOf",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items",
    "contains": "use prefixItems or items",
}


def check_schema(schema: Any, path: str) -> int:
    """Refuse what is malformed or not supported in a schema and those within it; references are not followed.

    Args:
        path: Where it stands, as a JSON pointer in a fragment: #/properties/age.

    Returns: How many schemas were looked at. Pure.

    Raises:
        ConstraintError: names the keyword and where it is.
        ConstraintTooLargeError: schemas or constants are too many or too deep.
    """
    pending = [(schema, path, 0, "")]
    seen = 0
    while pending:
        part, where, level, document = pending.pop()
        seen += 1
        if seen > MAX_SCHEMAS:
            raise too_large(f"holds more than {MAX_SCHEMAS:,} schemas")
        if level > MAX_SCHEMA_LEVELS:
            raise too_large(f"holds schemas nested more than {MAX_SCHEMA_LEVELS} deep")
        if not isinstance(part, bool):
            _check_one(part, where)
            document = where if "$id" in part and where != "#" else document
            if document and "$ref" in part:
                raise nested_document(document)
            pending += [(inner, inner_path, level + 1, document) for inner, inner_path in _inner(part, where)]
    return seen


def references(schema: Any, path: str) -> Iterator[tuple[str, str]]:
    """Each `$ref` in a checked schema and those within it, and where it stands."""
    pending = [(schema, path)]
    while pending:
        part, where = pending.pop()
        if isinstance(part, dict):
            if "$ref" in part:
                yield part["$ref"], where
            pending += _inner(part, where)


def nested_document(path: str) -> ConstraintError:
    """A schema with `$id` is a document of its own, in which `#/...` means another place."""
    return ConstraintError(f"{path}: $id is only supported at the root; remove it, and let $ref point from the root")


def escaped(name: str) -> str:
    """A name as a step of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def _check_one(schema: Any, path: str) -> None:
    if not isinstance(schema, dict):
        raise ConstraintError(f"{path}: a schema is an object, true or false, not {_shown(schema)}")
    for keyword, value in schema.items():
        if keyword in ANNOTATIONS or keyword in DEFINITIONS:
            continue
        if keyword not in _ACCEPTED:
            hint = _HINTS.get(keyword, "remove it")
            raise ConstraintError(f"{path}: keyword {keyword!r:.60} is not supported; {hint}")
        what, is_accepted = _ACCEPTED[keyword]
        if not is_accepted(value):
            raise ConstraintError(f"{path}: {keyword} is {_shown(value)}; it must be {what}")
    names = [*schema.get("properties", ()), *schema.get("required", ())]
    _check_constants([*schema.get("enum", ()), schema.get("const"), *names], path)
    for low, high in _PAIRS:
        if low in schema and high in schema and schema[low] > schema[high]:
            raise ConstraintError(f"{path}: {low} {schema[low]} is above {high} {schema[high]}; swap or drop one")
    for name in schema.get("required", ()):
        if schema.get("properties", {}).get(name, schema.get("additionalProperties")) is False:
            raise ConstraintError(
                f"{path}: property {name!r} is required, but its schema is false; drop one of the two"
            )


def _check_constants(values: list[Any], path: str) -> None:
    """Refuse what is no JSON value, and bound the work that constants and names make."""
    pending = [(value, 0) for value in values]
    size = 0
    while pending:
        value, level = pending.pop()
        if not (value is None or isinstance(value, bool | str | list) or is_number(value) or _are_named(value)):
            raise ConstraintError(f"{path}: constant {_shown(value)} is no JSON value; use one")
        size += 1 + (len(value) if isinstance(value, str) else 0)
        if size > MAX_CONSTANTS_SIZE:
            raise too_large(f"lists constants or names of more than {MAX_CONSTANTS_SIZE:,} characters")
        if level > MAX_VALUE_LEVELS:
            raise too_large(f"holds a constant nested more than {MAX_VALUE_LEVELS} deep")
        if isinstance(value, dict):
            pending += [(name, level) for name in value]
        if isinstance(value, dict | list):
            pending += [(part, level + 1) for part in (value.values() if isinstance(value, dict) else value)]


def _inner(schema: dict[str, Any], path: str) -> Iterator[tuple[Any, str]]:
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield schema[keyword], f"{path}/{keyword}"
    for keyword in ("prefixItems", "anyOf", "oneOf", "allOf"):
        for place, inner in enumerate(schema.get(keyword, ())):
            yield inner, f"{path}/{keyword}/{place}"
    for name, inner in schema.get("properties", {}).items():
        yield inner, f"{path}/properties/{escaped(name)}"


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes out no integer of more than 4,300 digits.
        return "a huge number"


def is_number(value: Any) -> bool:
    """Whether a value is a JSON number of a bearable size (True and False are none)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value.bit_length() <= _MAX_BITS if isinstance(value, int) else math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_step(value: Any) -> bool:
    return is_number(value) and value > 0


def _is_schema(value: Any) -> bool:
    return isinstance(value, bool | dict)


def _is_filled_list(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0


def _are_types(value: Any) -> bool:
    listed = value if isinstance(value, list) else [value]
    return len(listed) > 0 and all(isinstance(name, str) and name in TYPES for name in listed)


def _are_named(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value) and len(set(value)) == len(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_format(value: Any) -> bool:
    return isinstance(value, str) and value in FORMATS


_COUNT = ("a whole number from 0", _is_count)
_NUMBER = ("a number", is_number)
_SCHEMA = ("a schema", _is_schema)
_SCHEMAS = ("a list of schemas, not empty", _is_filled_list)
_TEXT = ("a string", _is_text)
_ACCEPTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "type": (f"one of {', '.join(TYPES)}, or a list of them", _are_types),
    "enum": ("a list of values, not empty", _is_filled_list),
    "const": ("a JSON value", lambda value: True),
    "properties": ("an object of schemas", _are_named),
    "required": ("a list of different names", _are_names),
    "additionalProperties": _SCHEMA,
    "minProperties": _COUNT,
    "maxProperties": _COUNT,
    "items": _SCHEMA,
    "prefixItems": _SCHEMAS,
    "minItems": _COUNT,
    "maxItems": _COUNT,
    "anyOf": _SCHEMAS,
    "oneOf": _SCHEMAS,
    "allOf": _SCHEMAS,
    "$ref": _TEXT,
    "minLength": _COUNT,
    "maxLength": _COUNT,
    "pattern": _TEXT,
    "format": (f"one of {', '.join(FORMATS)}; pattern can say others", _is_format),
    "minimum": _NUMBER,
    "maximum": _NUMBER,
    "exclusiveMinimum": _NUMBER,
    "exclusiveMaximum": _NUMBER,
    "multipleOf": ("a number above 0", _is_step),
}
