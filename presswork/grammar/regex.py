r"""Regexes as expressions.

What is generated must be valid under Python's `re` and under ECMA 262 (which JSON schema's `pattern` speaks), so where
the two differ the set is the smaller one: \d \w \s match ASCII, \D \W \S leave out what either of them calls a digit, a
word character or a space.
"""

# The standard library's own parser: the syntax is then Python's by definition. It has no public name, but has kept its
# shape for twenty years; hypothesis reads the same trees. The tests compare with `re` on random patterns.
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from presswork.errors import ConstraintError
from presswork.grammar.code_points import (
    EVERY,
    Ranges,
    cased_beyond_ascii,
    complement,
    intersect,
    normalize,
    one_of,
    unicode_class,
)
from presswork.grammar.expression import EMPTY_TEXT, Expression, chars, repeat, sequence, union
from presswork.grammar.limits import too_large

MAX_PATTERN_LENGTH = 10_000
# Sets that any Unicode class makes wide take some tenth of a millisecond each; there may be as many.
MAX_WIDE_SETS = 400
_WIDE = re.compile(r"\\[DWS]|\[\^[^\]]*\\[dws]")
# Group and repeat in group and repeat; far below Python's own recursion limit.
MAX_DEPTH = 60

ANY_CHARACTER = chars(EVERY)
ANY_TEXT = repeat(ANY_CHARACTER, 0)

_ASCII_CLASS: dict[str, Ranges] = {
    "d": ((48, 57),),
    "w": ((48, 57), (65, 90), (95, 95), (97, 122)),
    "s": ((9, 13), (32, 32)),
}
_CLASS_LETTER = {
    codes.CATEGORY_DIGIT: "d", codes.CATEGORY_NOT_DIGIT: "D", codes.CATEGORY_WORD: "w",
    codes.CATEGORY_NOT_WORD: "W", codes.CATEGORY_SPACE: "s", codes.CATEGORY_NOT_SPACE: "S",
}  # fmt: skip
_AT_START = (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING)
_AT_END = (codes.AT_END, codes.AT_END_STRING)
# Python folds these into ASCII letters, so under (?i) [^k] must not hold the Kelvin sign.
_FOLD_TO_ASCII = {"i": "\u0130\u0131", "k": "\u212a", "s": "\u017f"}
_REFUSED = {
    codes.ASSERT: "lookaround",
    codes.ASSERT_NOT: "lookaround",
    codes.FAILURE: "lookaround",
    codes.GROUPREF: "a backreference",
    codes.GROUPREF_EXISTS: "a conditional group",
    codes.ATOMIC_GROUP: "an atomic group (?>...)",
    codes.POSSESSIVE_REPEAT: "a possessive repeat",
}


def parse_regex(pattern: str, *, search: bool = False) -> Expression:
    r"""The texts that match a regex.

    Args:
        pattern: In Python's syntax, without lookaround, backreferences, \b and anchors other than at the ends.
        search: False: the whole text matches. True: the pattern is found somewhere in the text, and `.` leaves out
            ECMA 262's four line terminators, as JSON schema's `pattern` has it.

    Returns: The expression, before any size is checked but the pattern's own. Pure.

    Raises:
        ConstraintError: the pattern is malformed, or uses what cannot be expressed.
        ConstraintTooLargeError: the pattern is too long or too deep.
    """
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise too_large(f"holds a regex of {len(pattern):,} characters (at most {MAX_PATTERN_LENGTH:,})")
    if num_wide_sets(pattern) > MAX_WIDE_SETS:
        raise too_large(rf"holds a regex with more than {MAX_WIDE_SETS} sets like \W or [^\w]")
    try:
        tree = _parser.parse(pattern)
    except re.error as error:
        raise ConstraintError(f"the regex {_shown(pattern)} is malformed: {error}") from None
    except (RecursionError, OverflowError):
        raise too_large("holds a regex that is nested or repeated beyond what can be parsed") from None
    edge = _OPEN if search else _CLOSED
    context = _Context(pattern=pattern, search=search, flags=tree.state.flags, left=edge, right=edge)
    return _sequence(list(tree), context)


def num_wide_sets(pattern: str) -> int:
    r"""How many sets like \W or [^\w] a regex has, about."""
    return sum(1 for _ in _WIDE.finditer(pattern))


def _shown(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 60 else pattern[:57] + "...")


# What stands on one side of a piece of the pattern: another piece (so no anchor may), an end of the pattern beyond
# which any text may lie, or one beyond which none may.
_INNER, _OPEN, _CLOSED = "inner", "open", "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Context:
    pattern: str
    search: bool
    flags: int
    left: str
    right: str
    depth: int = 0

    def refuse(self, what: str, instead: str) -> ConstraintError:
        return ConstraintError(f"the regex {_shown(self.pattern)} uses {what}, which is not supported; {instead}")

    @property
    def inner(self) -> "_Context":
        return self if self.left == self.right == _INNER else replace(self, left=_INNER, right=_INNER)

    @property
    def deeper(self) -> "_Context":
        if self.depth == MAX_DEPTH:
            raise too_large(f"holds a regex nested more than {MAX_DEPTH} deep")
        return replace(self, depth=self.depth + 1)

    def padded(self, part: Expression) -> Expression:
        """The part with any text on the sides that are open."""
        before = ANY_TEXT if self.left == _OPEN else EMPTY_TEXT
        after = ANY_TEXT if self.right == _OPEN else EMPTY_TEXT
        return sequence(before, part, after)


def _sequence(items: list[tuple[Any, Any]], context: _Context) -> Expression:
    if context.flags & re.MULTILINE:
        raise context.refuse("the flag (?m)", "write the pattern without it")
    left, right = context.left, context.right
    first, last = 0, len(items)
    while first < last and left != _INNER and items[first] in [(codes.AT, at) for at in _AT_START]:
        left, first = _CLOSED, first + 1
    while first < last and right != _INNER and items[last - 1] in [(codes.AT, at) for at in _AT_END]:
        right, last = _CLOSED, last - 1
    if first == last:
        # Both sides open: any text twice would be any text.
        return replace(context, left=left, right=_CLOSED if left == _OPEN else right).padded(EMPTY_TEXT)
    inner = context.inner
    parts = []
    for place in range(first, last):
        is_edge = place in (first, last - 1)
        sides = (
            replace(inner, left=left if place == first else _INNER, right=right if place == last - 1 else _INNER)
            if is_edge
            else inner
        )
        parts.append(_item(*items[place], sides))
    return sequence(*parts)


def _item(code: Any, argument: Any, context: _Context) -> Expression:
    if code in _REFUSED:
        raise context.refuse(_REFUSED[code], "write the pattern without it")
    if code == codes.AT:
        name = {codes.AT_BOUNDARY: r"\b", codes.AT_NON_BOUNDARY: r"\B"}.get(argument)
        raise context.refuse(name or "an anchor in the middle", "only anchors at the ends of the pattern are kept to")
    if code in (codes.SUBPATTERN, codes.BRANCH) and _has_anchor(argument):
        # The anchors decide which alternatives are open, so the padding belongs inside.
        return _PARTS[code](argument, context)
    return context.padded(_PARTS[code](argument, context.inner))


def _has_anchor(tree: Any) -> bool:
    """Whether an anchor is anywhere in what the parser returned for a group."""
    pending = [tree]
    while pending:
        part = pending.pop()
        if isinstance(part, tuple) and part and part[0] is codes.AT:
            return True
        if isinstance(part, tuple | list | _parser.SubPattern):
            pending += list(part)
    return False


def _group(argument: Any, context: _Context) -> Expression:
    _, added, removed, items = argument
    return _sequence(list(items), replace(context.deeper, flags=(context.flags | added) & ~removed))


def _branch(argument: Any, context: _Context) -> Expression:
    return union(*(_sequence(list(items), context.deeper) for items in argument[1]))


def _repeat(argument: Any, context: _Context) -> Expression:
    low, high, items = argument
    inner = _sequence(list(items), context.deeper)
    return repeat(inner, int(low), None if high == codes.MAXREPEAT else int(high))


def _any(argument: None, context: _Context) -> Expression:
    if context.flags & re.DOTALL:
        return chars(EVERY)
    return chars(complement(one_of("\n\r\u2028\u2029" if context.search else "\n")))


def _literal(code_point: int, context: _Context) -> Expression:
    return chars(_member(codes.LITERAL, code_point, context, is_negated=False))


def _not_literal(code_point: int, context: _Context) -> Expression:
    return chars(complement(_member(codes.LITERAL, code_point, context, is_negated=True)))


def _set(items: list[tuple[Any, Any]], context: _Context) -> Expression:
    is_negated = items[0][0] == codes.NEGATE
    held = [pair for item in items[is_negated:] for pair in _member(*item, context, is_negated=is_negated)]
    ranges = normalize(held)
    return chars(complement(ranges) if is_negated else ranges)


def _member(code: Any, argument: Any, context: _Context, *, is_negated: bool) -> Ranges:
    """One item of a set: in a negated set all that any dialect may match, else what every dialect matches."""
    if code == codes.CATEGORY:
        return _category(_CLASS_LETTER[argument], bool(context.flags & re.ASCII), is_negated)
    pair = argument if code == codes.RANGE else (argument, argument)
    ranges = normalize([pair])
    return _folded(ranges, context, is_widest=is_negated) if context.flags & re.IGNORECASE else ranges


@cache
def _category(letter: str, is_ascii: bool, is_widest: bool) -> Ranges:
    is_complement = letter.isupper()
    # The complement of the narrow set is the wide one of the complement. The Unicode sets take a while the first time.
    is_narrow = is_widest == is_complement or is_ascii
    members = _ASCII_CLASS[letter.lower()] if is_narrow else unicode_class(letter.lower())
    return complement(members) if is_complement else members


def _folded(ranges: Ranges, context: _Context, *, is_widest: bool) -> Ranges:
    """The ranges with the other case of their ASCII letters."""
    if not context.flags & re.ASCII and intersect(ranges, cased_beyond_ascii()):
        raise context.refuse("(?i) with a letter that is not ASCII", "list both cases, as in [éÉ], without (?i)")
    letters = [chr(code) for low, high in intersect(ranges, ((65, 90), (97, 122))) for code in range(low, high + 1)]
    others = "".join(letter.swapcase() for letter in letters)
    if is_widest and not context.flags & re.ASCII:
        others += "".join(_FOLD_TO_ASCII.get(letter.lower(), "") for letter in letters)
    return normalize([*ranges, *one_of(others)])


_PARTS: dict[Any, Callable[[Any, _Context], Expression]] = {
    codes.LITERAL: _literal, codes.NOT_LITERAL: _not_literal, codes.ANY: _any, codes.IN: _set,
    codes.BRANCH: _branch, codes.SUBPATTERN: _group, codes.MAX_REPEAT: _repeat, codes.MIN_REPEAT: _repeat,
}  # fmt: skip
