"""JSON schemas as expressions: every text of the language is valid, though not every valid text is in it.

Declared properties come in declared order and no others; one space may follow a colon or comma, nothing else is white
space; numbers are of bounded length; a character has one spelling. Recursion is unrolled to a depth.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from presswork.errors import ConstraintError, ConstraintTooLargeError
from presswork.grammar.dialects import JSON_TEXT, Dialect
from presswork.grammar.expression import (
    EMPTY_TEXT,
    NOTHING,
    Expression,
    Member,
    Text,
    choices,
    intersection,
    members,
    optional,
    repeat,
    sequence,
    union,
    without,
)
from presswork.grammar.keywords import (
    MAX_SCHEMAS,
    MAX_VALUE_LEVELS,
    SPEAKS_OF,
    Schema,
    check_schema,
    escaped,
    nested_document,
    references,
)
from presswork.grammar.limits import too_large
from presswork.grammar.merge import are_disjoint, demands, listed_values, merge, type_names
from presswork.grammar.numbers import has_bounds, integer_expression, is_within, number_expression
from presswork.grammar.regex import num_wide_sets
from presswork.grammar.strings import string_expression

DEFAULT_DEPTH = 3
# How deep a value that no schema describes may be nested.
_FREE_LEVELS = 2
# Schemas around a schema on the way down: properties and items, but also references and alternatives.
_MAX_STEPS = 64


class Work:
    """Schemas that may still be read, by one reader or by several after each other."""

    def __init__(self, most: int = MAX_SCHEMAS):
        self._most = self.left = most

    def spend(self, amount: int) -> None:
        """Raises ConstraintTooLargeError when it is used up."""
        self.left -= amount
        if self.left < 0:
            raise too_large(f"holds or refers to more than {self._most:,} schemas, or ones that take as long to read")


def schema_expression(
    schema: Schema, dialect: Dialect = JSON_TEXT, *, depth: int = DEFAULT_DEPTH, shared: Work | None = None
) -> Expression:
    """The texts, in a dialect, of values that satisfy a schema.

    Args:
        schema: JSON schema, draft 2020-12, as an object (or true, or false).
        depth: How many times a definition may stand inside itself, itself counted.
        shared: What several schemas may take together; mutated.

    Returns: The expression; its size is checked where it is compiled. Pure.

    Raises:
        ConstraintError: the schema is malformed, contradicts itself, or uses what is not supported; says where.
        ConstraintTooLargeError: it holds or refers to too many schemas.
    """
    if depth < 1:
        raise ConstraintError(f"depth is {depth}; it must be at least 1")
    found = _Reader(schema, dialect, depth, shared).read()
    if found is NOTHING:
        raise ConstraintError("#: no value can satisfy the schema; a definition that needs itself needs a way to end")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a schema is used.

    Args:
        path: Its JSON pointer, for messages.
        level: The values around it.
        steps: The schemas around it.
        open_refs: The references that led here and may do so again.
        is_constant: Whether the value is known: a part of a constant, or a branch beside listed ones.
    """

    path: str = "#"
    level: int = 0
    steps: int = 0
    open_refs: tuple[str, ...] = ("#",)
    is_constant: bool = False

    def inside(self, *names: str) -> "_Place":
        """A schema that this one holds, for the same value."""
        return replace(self, path="/".join((self.path, *names)), steps=self.steps + 1)

    def part(self, *names: str) -> "_Place":
        """A schema that this one holds, for a part of the value."""
        return replace(self.inside(*names), level=self.level + 1)

    def behind(self, reference: str, *, counts: bool) -> "_Place":
        """What a reference here leads to; one that may lead to itself counts."""
        open_refs = (*self.open_refs, reference) if counts else self.open_refs
        return replace(self, path=reference, steps=self.steps + 1, open_refs=open_refs)


class _Reader:
    """Reads one document. What a reference leads to is read once for each set of references it stands in."""

    def __init__(self, document: Schema, dialect: Dialect, depth: int, shared: Work | None):
        self._document = document
        self._dialect = dialect
        self._depth = depth
        self._own, self._shared = Work(), shared
        self._checked: set[str] = set()
        self._broken: set[str] = set()
        self._recursive: set[str] | None = None
        self._known: dict[Any, Expression] = {}
        self._free: dict[int, Expression] = {}

    def read(self) -> Expression:
        self._spend(check_schema(self._document, "#"))
        return self._value(self._document, _Place())

    def _spend(self, work: int, *, shared: int | None = None) -> None:
        """Args: shared: what it counts among several readers; as much without."""
        self._own.spend(work)
        if self._shared is not None:
            self._shared.spend(work if shared is None else shared)

    def _value(self, schema: Schema, place: _Place) -> Expression:
        if not isinstance(schema, dict) or demands(schema).keys() != {"$ref"}:
            return self._resolved_value(*self._resolve(schema, place))
        key = (schema["$ref"], place.level, tuple(sorted(place.open_refs)))
        if key not in self._known:
            self._known[key] = self._resolved_value(*self._resolve(schema, place))
        return self._known[key]

    def _resolve(self, schema: Schema, place: _Place) -> tuple[Schema, _Place]:
        """The schema with what `$ref` and `allOf` lead to merged in, and where that stands."""
        self._spend(1)
        if place.steps > _MAX_STEPS or place.level > MAX_VALUE_LEVELS:
            raise too_large(f"nests values more than {MAX_VALUE_LEVELS} or schemas more than {_MAX_STEPS} deep")
        if isinstance(schema, bool):
            return schema, place
        merged: Schema = {key: value for key, value in demands(schema).items() if key not in ("$ref", "allOf")}
        if "$ref" in schema:
            reference, target = self._follow(schema["$ref"], place.path)
            if place.open_refs.count(reference) >= self._depth:
                return False, place
            found, place = self._resolve(target, place.behind(reference, counts=self._is_recursive(reference)))
            merged = self._merge(merged, found, place)
        for number, part in enumerate(schema.get("allOf", ())):
            found, inner = self._resolve(part, place.inside("allOf", str(number)))
            merged = self._merge(merged, found, place)
            place = replace(place, open_refs=inner.open_refs)
        return merged, place

    def _merge(self, left: Schema, right: Schema, place: _Place) -> Schema:
        """What both say; an empty schema says nothing."""
        if left == {}:
            return right
        sides = [side for side in (left, right) if isinstance(side, dict)]
        self._spend(sum(len(side.get(keyword, ())) for side in sides for keyword in ("properties", "enum")) // 10)
        return merge(left, right, place.path, self._spend)

    def _is_recursive(self, pointer: str) -> bool:
        """Whether a schema refers to itself, through others or not."""
        if self._recursive is None:
            self._recursive = self._cycles()
        return pointer in self._recursive

    def _cycles(self) -> set[str]:
        """The references of the document that lead to themselves."""
        leads_to: dict[str, set[str]] = {}
        pending: list[tuple[str, Any]] = [("#", self._document)]
        while pending:
            pointer, schema = pending.pop()
            if pointer not in leads_to:
                self._spend(1)
                found = list(self._targets(schema, pointer))
                leads_to[pointer] = {target for target, _ in found}
                pending += found
        # What leads nowhere is in no cycle, and neither is what only leads there.
        has_shrunk = True
        while has_shrunk:
            ended = [pointer for pointer, targets in leads_to.items() if not targets & leads_to.keys()]
            has_shrunk = bool(ended)
            for pointer in ended:
                del leads_to[pointer]
        return {pointer for pointer in leads_to if self._leads_back(pointer, leads_to)}

    def _targets(self, schema: Any, path: str) -> Iterator[tuple[str, Any]]:
        """What the references in a schema lead to. One that leads nowhere is told where it is used, if it is."""
        for reference, where in references(schema, path):
            if reference in self._broken:
                continue
            try:
                yield self._follow(reference, where)
            except ConstraintTooLargeError:
                raise
            except ConstraintError:
                self._spend(10)
                self._broken.add(reference)

    def _leads_back(self, start: str, leads_to: dict[str, set[str]]) -> bool:
        seen: set[str] = set()
        pending = list(leads_to[start])
        while pending:
            pointer = pending.pop()
            if pointer == start:
                return True
            if pointer in leads_to and pointer not in seen:
                seen.add(pointer)
                pending += leads_to[pointer]
        self._spend(len(seen) // 50)
        return False

    def _follow(self, reference: str, path: str) -> tuple[str, Any]:
        """The schema that a reference names, and the reference in its plainest form."""
        pointer = unquote(reference)
        if not pointer.startswith("#"):
            raise ConstraintError(f"{path}: $ref {reference!r:.80} leaves the document; only '#/...' is supported")
        target: Any = self._document
        for step in pointer[1:].split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            target = _step(target, name)
            if isinstance(target, dict) and isinstance(target.get("$id"), str) and pointer[1:2] == "/":
                raise nested_document(pointer)
        if target is None or pointer[1:2] not in ("", "/"):
            raise ConstraintError(f"{path}: $ref {reference!r:.80} leads nowhere; define it in the document's $defs")
        if pointer not in self._checked:
            self._spend(check_schema(target, pointer))
            self._checked.add(pointer)
        return pointer, target

    def _resolved_value(self, schema: Schema, place: _Place) -> Expression:
        if isinstance(schema, bool):
            return self._free_value(_FREE_LEVELS, place) if schema else NOTHING
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._branches(schema, keyword, place)
        listed = listed_values(schema, self._spend)
        if listed is not None:
            return self._listed(schema, listed, place)
        return union(*(self._typed(name, schema, place) for name in type_names(schema)))

    def _branches(self, schema: dict[str, Any], keyword: str, place: _Place) -> Expression:
        rest: Schema = {key: value for key, value in schema.items() if key != keyword}
        if "enum" in rest or "const" in rest:
            place = replace(place, is_constant=True)
        branches = []
        for number, branch in enumerate(schema[keyword]):
            found, inner = self._resolve(branch, place.inside(keyword, str(number)))
            branches.append((self._merge(rest, found, inner), inner))
        if keyword == "oneOf":
            self._check_disjoint(rest, schema[keyword], replace(place, open_refs=()))
        return union(*(self._resolved_value(branch, inner) for branch, inner in branches))

    def _check_disjoint(self, rest: Schema, alternatives: list[Schema], place: _Place) -> None:
        """`oneOf` holds when exactly one branch does; that is only kept to where no value can satisfy two.

        The place has no references open: a branch that is left out at the innermost level still counts.
        """

        def resolve(schema: Schema) -> Schema:
            return self._resolve(schema, place)[0]

        branches = [self._merge(rest, resolve(branch), place) for branch in alternatives]
        listed = sum(len(branch.get("enum", ())) for branch in branches if isinstance(branch, dict))
        self._spend(len(branches) * (len(branches) + listed) // 10)
        for second, right in enumerate(branches):
            for first, left in enumerate(branches[:second]):
                if not are_disjoint(left, right, resolve, self._spend):
                    raise ConstraintError(
                        f"{place.path}/oneOf: branches {first} and {second} may both hold; use anyOf, or tell them "
                        "apart by type, enum, const, or a required property with different constants"
                    )

    def _listed(self, schema: dict[str, Any], values: list[Any], place: _Place) -> Expression:
        if not values and place.is_constant:
            return NOTHING
        if not values:
            raise ConstraintError(
                f"{place.path}: no value of enum or const is of the schema's type; correct one of them"
            )
        rest = {key: value for key, value in schema.items() if key not in ("enum", "const")}
        return union(*(self._constant(value, rest, place) for value in values))

    def _constant(self, value: Any, schema: Schema, place: _Place) -> Expression:
        """A value's spelling where it satisfies a schema of its type."""
        if not isinstance(schema, dict) or not schema.keys() & SPEAKS_OF.keys():
            return self._spelled(self._dialect.value, value, place)
        match value:
            case dict():
                return self._constant_object(value, schema, place)
            case list():
                return self._constant_array(value, schema, place)
            case str():
                return intersection(
                    self._spelled(self._dialect.value, value, place), self._typed("string", schema, place)
                )
            case int() | float() if not isinstance(value, bool) and not is_within(value, schema):
                return NOTHING
        return self._spelled(self._dialect.value, value, place)

    def _constant_object(self, value: dict[str, Any], schema: dict[str, Any], place: _Place) -> Expression:
        least, most = schema.get("minProperties", 0), schema.get("maxProperties", len(value))
        if not least <= len(value) <= most or any(name not in value for name in schema.get("required", ())):
            return NOTHING
        known, extra = schema.get("properties", {}), schema.get("additionalProperties", True)
        parts = [
            sequence(
                self._spelled(self._dialect.key, name, place),
                self._dialect.colon,
                self._constant_part(inner, known.get(name, extra), place.part("properties", escaped(name))),
            )
            for name, inner in value.items()
        ]
        return _braced(_listing(parts, self._dialect.comma))

    def _constant_array(self, value: list[Any], schema: dict[str, Any], place: _Place) -> Expression:
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return NOTHING
        first, others = schema.get("prefixItems", []), schema.get("items", True)
        parts = [
            self._constant_part(inner, first[n] if n < len(first) else others, place.part("items", str(n)))
            for n, inner in enumerate(value)
        ]
        return sequence(Text("["), _listing(parts, self._dialect.comma), Text("]"))

    def _constant_part(self, value: Any, schema: Schema, place: _Place) -> Expression:
        if schema is True:
            return self._spelled(self._dialect.value, value, place)
        return self._value({"allOf": [schema, {"const": value}]}, replace(place, is_constant=True))

    def _spelled(self, spell: Callable[[Any], Expression], value: Any, place: _Place) -> Expression:
        try:
            return spell(value)
        except ConstraintError as error:
            raise ConstraintError(f"{place.path}: {error}") from None

    def _typed(self, name: str, schema: dict[str, Any], place: _Place) -> Expression:
        match name:
            case "object":
                return self._object(schema, place)
            case "array":
                return self._array(schema, place)
            case "string":
                pattern = schema.get("pattern", "")
                self._spend(len(pattern) // 5)
                num_wide = num_wide_sets(pattern)
                self._spend(10 * num_wide, shared=40 * num_wide)
                return self._dialect.string(string_expression(schema, place.path))
            case "integer" | "number":
                self._spend(10 if has_bounds(schema) else 0)
                return (integer_expression if name == "integer" else number_expression)(schema, place.path)
            case "boolean":
                return choices(["true", "false"])
            case _:
                return Text("null")

    def _object(self, schema: dict[str, Any], place: _Place) -> Expression:
        properties: dict[str, Schema] = schema.get("properties", {})
        required: list[str] = schema.get("required", [])
        undeclared = [name for name in required if name not in properties]
        if not properties and not undeclared:
            return self._map(schema, place)
        parts = [
            self._member(name, inner, name in required, place.part("properties", escaped(name)))
            for name, inner in properties.items()
        ]
        extra: Schema = schema.get("additionalProperties", True)
        parts += [self._member(name, extra, True, place.part("additionalProperties")) for name in undeclared]
        body = members(parts, self._dialect.comma)
        num_parts = sum(part.inner is not NOTHING for part in parts)
        return _braced(_counted(body, len(required), num_parts, schema, place.path))

    def _member(self, name: str, schema: Schema, is_required: bool, place: _Place) -> Member:
        key = self._spelled(self._dialect.key, name, place)
        return Member(sequence(key, self._dialect.colon, self._value(schema, place)), is_required)

    def _map(self, schema: dict[str, Any], place: _Place) -> Expression:
        """An object of free keys; without any when `properties` says that there are none."""
        inner: Schema = schema.get("additionalProperties", "properties" not in schema)
        least = schema.get("minProperties", 0)
        if least > 1:
            raise ConstraintError(
                f"{place.path}: minProperties {least} is not supported for free keys, which may be equal and then "
                "count once; name them in properties and required"
            )
        member = sequence(
            self._dialect.any_key, self._dialect.colon, self._part_value(inner, place.part("additionalProperties"))
        )
        return _braced(repeat(member, least, schema.get("maxProperties"), self._dialect.comma))

    def _array(self, schema: dict[str, Any], place: _Place) -> Expression:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        first = schema.get("prefixItems", [])[:most]
        # Like undeclared properties: what nothing describes is only written where it must be.
        others: Schema = schema.get("items", not first or least > len(first))
        item = self._part_value(others, place.part("items"))
        num_least, num_most = max(least - len(first), 0), None if most is None else most - len(first)
        body = repeat(item, num_least if not first else max(num_least, 1), num_most, self._dialect.comma)
        for number in reversed(range(len(first))):
            part = self._value(first[number], place.part("prefixItems", str(number)))
            rest = sequence(self._dialect.comma, body)
            body = sequence(part, optional(rest) if least <= number + 1 else rest)
        return sequence(Text("["), optional(body) if first and not least else body, Text("]"))

    def _part_value(self, schema: Schema, place: _Place) -> Expression:
        """A value inside one that nothing describes further."""
        return self._free_value(_FREE_LEVELS - 1, place) if schema is True else self._value(schema, place)

    def _free_value(self, levels: int, place: _Place) -> Expression:
        """Any value with so many levels of objects and arrays, fewer where it would be nested too deeply."""
        levels = max(min(levels, MAX_VALUE_LEVELS - place.level), 0)
        if levels not in self._free:
            scalars = [self._typed(name, {}, place) for name in ("null", "boolean", "string", "number")]
            self._free[levels] = union(*scalars, *(self._free_containers(levels - 1, place) if levels else ()))
        return self._free[levels]

    def _free_containers(self, levels: int, place: _Place) -> tuple[Expression, Expression]:
        inner, comma = self._free_value(levels, place), self._dialect.comma
        member = sequence(self._dialect.any_key, self._dialect.colon, inner)
        return sequence(Text("["), repeat(inner, 0, None, comma), Text("]")), _braced(repeat(member, 0, None, comma))


def _listing(parts: list[Expression], separator: Expression) -> Expression:
    return sequence(*(piece for n, part in enumerate(parts) for piece in ([separator, part] if n else [part])))


def _braced(body: Expression) -> Expression:
    return sequence(Text("{"), body, Text("}"))


def _counted(body: Expression, num_required: int, num_parts: int, schema: dict[str, Any], path: str) -> Expression:
    """The members of an object under `minProperties` and `maxProperties`, where those are easily kept to."""
    least, most = schema.get("minProperties", 0), schema.get("maxProperties", num_parts)
    if most < num_parts:
        raise ConstraintError(
            f"{path}: maxProperties {most} is below the {num_parts} properties; drop it or some of them"
        )
    if least > max(num_required, 1):
        raise ConstraintError(
            f"{path}: minProperties {least} is above the {num_required} required properties; require as many"
        )
    return without(body, EMPTY_TEXT) if least > num_required else body


def _step(target: Any, name: str) -> Any:
    """What a step of a JSON pointer leads to; None if nowhere."""
    if isinstance(target, dict):
        return target.get(name)
    if isinstance(target, list) and name.isascii() and name.isdigit() and int(name[:6]) < len(target):
        return target[int(name[:6])]
    return None
