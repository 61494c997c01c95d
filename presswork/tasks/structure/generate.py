"""Random regexes and random JSON schemas that can be kept to."""

import random
from typing import Any


def random_regex(random_: random.Random, depth: int = 3) -> str:
    """A pattern over a, b, c, digits and é that both `re` and `parse_regex` understand."""
    if depth == 0 or random_.random() < 0.2:
        return random_.choice(["a", "b", "c", "é", "[ab]", "[^a]", "[^bé]", ".", r"\d", r"[\da-b]", "ab", "(?i:aB)"])
    inner = random_regex(random_, depth - 1)
    match random_.randrange(5):
        case 0:
            return inner + random_regex(random_, depth - 1)
        case 1:
            return f"(?:{inner}|{random_regex(random_, depth - 1)})"
        case 2:
            return f"({inner})" + random_.choice(["*", "+", "?", "*?", "+?", "??"])
        case 3:
            low = random_.randrange(3)
            return f"(?:{inner}){{{low},{low + random_.randrange(3)}}}"
        case _:
            return f"(?P<name{random_.randrange(10**9)}>{inner})"


_NAMES = ["a", "b", "id", "naïve", "x y", 'q"\\', "日本"]
_STRINGS: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^[a-c]+$"},
    {"type": "string", "pattern": r"\d[^x\"]", "maxLength": 6},
    {"pattern": r"^\S\W\D", "minLength": 4},
    {"minLength": 3},
]
_FORMATS = ["date", "time", "date-time", "duration", "uuid", "ipv4", "ipv6", "hostname", "email", "uri"]


def random_schema(random_: random.Random, depth: int = 3) -> dict[str, Any]:
    """A schema that can be kept to, with every kind of keyword; references go to #/$defs/node and to the root."""
    schema = _random_part(random_, depth)
    schema["$defs"] = {
        "leaf": _random_scalar(random_),
        "node": {
            "type": "object",
            "properties": {"value": _random_scalar(random_), "next": {"$ref": "#/$defs/node"}},
            "required": ["value"],
        },
    }
    return schema


def _random_part(random_: random.Random, depth: int) -> dict[str, Any]:
    if depth == 0 or random_.random() < 0.2:
        return _random_scalar(random_)
    return random_.choice((_random_object, _random_array, _random_map, _random_choice, _random_reference))(
        random_, depth - 1
    )


def _random_scalar(random_: random.Random) -> dict[str, Any]:
    low, high = sorted((random_.randint(-1200, 1200), random_.randint(-1200, 1200)))
    chosen = random_.choice([
        *_STRINGS,
        {"type": "string", "format": random_.choice(_FORMATS)},
        {"type": "integer"},
        {"type": "integer", "minimum": low, "maximum": high},
        {"type": "integer", "exclusiveMinimum": low, "multipleOf": 10},
        {"type": "number"},
        {"type": "number", "minimum": low / 8, "exclusiveMaximum": high / 8 + 0.25},
        {"type": "number", "exclusiveMinimum": low / 1000},
        {"type": ["boolean", "null"]},
        {"enum": ["é", 'a"\n', 1, 2.5, None, [1, {"k": []}]]},
        {"type": "integer", "enum": [1, "x", 2.0, True]},
        {"const": {"a": [True, "\\"]}},
        {},
    ])  # fmt: skip
    return dict(chosen)


def _random_object(random_: random.Random, depth: int) -> dict[str, Any]:
    names = random_.sample(_NAMES, random_.randint(1, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _random_part(random_, depth) for name in names},
        "required": random_.sample(names, random_.randint(0, len(names))),
    }
    if random_.random() < 0.3:
        schema["additionalProperties"] = random_.choice([False, {"type": "integer"}])
    if random_.random() < 0.2:
        schema["minProperties"] = 1
    if random_.random() < 0.2 and schema.get("additionalProperties", True):
        schema["required"] = [*schema["required"], "undeclared"]
    return schema


def _random_array(random_: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "minItems": random_.randint(0, 2)}
    if random_.random() < 0.4:
        schema["prefixItems"] = [_random_part(random_, depth) for _ in range(random_.randint(1, 2))]
    if random_.random() < 0.8:
        schema["items"] = _random_part(random_, depth)
    if random_.random() < 0.5:
        schema["maxItems"] = schema["minItems"] + random_.randint(0, 2)
    return schema


def _random_map(random_: random.Random, depth: int) -> dict[str, Any]:
    values = random_.choice([True, _random_part(random_, depth)])
    return {
        "type": "object",
        "additionalProperties": values,
        "minProperties": random_.randint(0, 1),
        "maxProperties": 3,
    }


def _random_choice(random_: random.Random, depth: int) -> dict[str, Any]:
    match random_.randrange(4):
        case 0:
            return {"anyOf": [_random_part(random_, depth) for _ in range(2)]}
        case 1:
            return {"oneOf": [{"type": "string", "maxLength": 2}, {"type": "integer"}, {"type": "array", "items": {}}]}
        case 2:
            branches = [_random_object(random_, depth) for _ in range(2)]
            for kind, branch in zip(("cat", "dog"), branches, strict=True):
                branch["properties"]["kind"] = {"const": kind}
                branch["required"] = [*branch["required"], "kind"]
            return {"oneOf": branches}
        case _:
            part = _random_object(random_, depth)
            part.pop("additionalProperties", None)
            return {"allOf": [part, {"properties": {"more": {"type": "integer"}}, "required": ["more"]}]}


def _random_reference(random_: random.Random, depth: int) -> dict[str, Any]:
    target = random_.choice(["leaf", "node"])
    return {"$ref": f"#/$defs/{target}", "description": "a reference"}
