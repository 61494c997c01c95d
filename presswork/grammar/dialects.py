"""How values are spelled: as JSON text, and as arguments of a Gemma 4 tool call."""

import json
from dataclasses import dataclass
from typing import Any

from presswork.errors import ConstraintError
from presswork.grammar.code_points import EVERY, Ranges, complement, intersect, one_of, subtract, unicode_class
from presswork.grammar.expression import (
    EMPTY_TEXT,
    NOTHING,
    Chars,
    Expression,
    Intersection,
    Mark,
    Repeat,
    Sequence,
    Text,
    Union,
    Without,
    chars,
    intersection,
    literal,
    optional,
    repeat,
    sequence,
    union,
    without,
)

# As in presswork.text.parsers, which lies above this layer; a test holds them equal.
CALL_OPEN, CALL_CLOSE, QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'

_JSON_ESCAPES = (('"', '"'), ("\\", "\\"), ("\b", "b"), ("\f", "f"), ("\n", "n"), ("\r", "r"), ("\t", "t"))
_CONTROLS: Ranges = ((0, 31),)
_NO_KEY = one_of("{}[],:")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dialect:
    """A way to spell JSON values that some parser reads back.

    Args:
        name: As messages call it.
        quote: What stands before and after a string.
        escapes: Characters that a string spells as a backslash and a letter, with that letter.
        unwritable: Characters that a string cannot hold otherwise.
        space: What may follow a colon or a comma.
        has_bare_keys: Whether keys stand without quotes.
    """

    name: str
    quote: Expression
    escapes: tuple[tuple[str, str], ...]
    unwritable: Ranges
    space: Expression
    has_bare_keys: bool

    @property
    def colon(self) -> Expression:
        """Between a key and its value."""
        return sequence(Text(":"), self.space)

    @property
    def comma(self) -> Expression:
        """Between members and between items."""
        return sequence(Text(","), self.space)

    def string(self, content: Expression) -> Expression:
        """The spelling of the strings that an expression (without marks) describes."""
        return sequence(self.quote, self._spelled(content), self.quote)

    def key(self, name: str) -> Expression:
        """The spelling of one key. Raises: ConstraintError if it cannot be read back."""
        if not self.has_bare_keys:
            return self._constant_string(name)
        if name != name.strip() or not name or intersect(one_of(name), _NO_KEY):
            raise ConstraintError(
                f"key {name!r:.60} cannot be written in {self.name}; use one without {{}}[],: and outer white space"
            )
        return literal(name)

    @property
    def any_key(self) -> Expression:
        """Every key that can be read back."""
        if not self.has_bare_keys:
            return self.string(repeat(chars(EVERY), 0))
        inner = complement(_NO_KEY)
        outer = subtract(inner, unicode_class("s"))
        return sequence(chars(outer), optional(sequence(repeat(chars(inner), 0), chars(outer))))

    def value(self, value: Any) -> Expression:
        """The spelling of one JSON value. Raises: ConstraintError if it cannot be read back."""
        match value:
            case str():
                return self._constant_string(value)
            case list():
                items = [self.value(item) for item in value]
                return sequence(Text("["), *_between(items, self.comma), Text("]"))
            case dict():
                pairs = [sequence(self.key(key), self.colon, self.value(item)) for key, item in value.items()]
                return sequence(Text("{"), *_between(pairs, self.comma), Text("}"))
            case _:
                return Text(json.dumps(value))

    def _constant_string(self, text: str) -> Expression:
        found = self.string(literal(text))
        if found is not NOTHING:
            return found
        raise ConstraintError(f"string {text!r:.80} cannot be written in {self.name}; leave out its control characters")

    def _spelled(self, node: Expression) -> Expression:
        """The same language with every character escaped; one character has one spelling, so this keeps products."""
        match node:
            case Chars(ranges=ranges):
                return self._spelled_chars(ranges)
            case Text(text=text):
                letters = {ord(character): "\\" + letter for character, letter in self.escapes}
                return NOTHING if intersect(one_of(text), self.unwritable) else Text(text.translate(letters))
            case Sequence(parts=parts):
                return sequence(*map(self._spelled, parts))
            case Union(parts=parts):
                return union(*map(self._spelled, parts))
            case Repeat():
                return repeat(self._spelled(node.inner), node.low, node.high, self._spelled(node.separator))
            case Intersection(left=left, right=right):
                return intersection(self._spelled(left), self._spelled(right))
            case Without(left=left, right=right):
                return without(self._spelled(left), self._spelled(right))
        raise TypeError(f"{type(node).__name__} is no part of a string")

    def _spelled_chars(self, ranges: Ranges) -> Expression:
        letters = "".join(letter for character, letter in self.escapes if intersect(one_of(character), ranges))
        escaped = one_of("".join(character for character, _ in self.escapes))
        plain = chars(subtract(subtract(ranges, escaped), self.unwritable))
        return union(plain, sequence(Text("\\"), chars(one_of(letters))))


def _between(parts: list[Expression], separator: Expression) -> list[Expression]:
    return [piece for place, part in enumerate(parts) for piece in ([separator, part] if place else [part])]


JSON_TEXT = Dialect(
    name="JSON",
    quote=Text('"'),
    escapes=_JSON_ESCAPES,
    unwritable=subtract(_CONTROLS, one_of("\b\f\n\r\t")),
    space=optional(Text(" ")),
    has_bare_keys=False,
)
TOOL_CALL = Dialect(
    name="a tool call", quote=Mark(QUOTE), escapes=(), unwritable=(), space=EMPTY_TEXT, has_bare_keys=True
)
