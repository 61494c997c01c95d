"""Languages as trees: what regexes and schemas are read into, and what is compiled.

A tree may share parts (a definition that is referred to twice is one object). Nodes are therefore compared by identity,
and whoever walks a tree visits each object once (`children_first`).

The lower-case functions build nodes and drop what is empty: a sequence with a part that no text matches is `NOTHING`,
a union leaves such an alternative out.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from presswork.errors import ConstraintError
from presswork.grammar.code_points import Ranges
from presswork.grammar.limits import Limits, too_large


class Expression:
    """A set of texts; the base of the nodes below."""

    __slots__ = ()

    @property
    def children(self) -> tuple["Expression", ...]:
        """The parts this node is made of."""
        return ()


@dataclass(frozen=True, slots=True, eq=False)
class Chars(Expression):
    """One character out of sorted, disjoint, inclusive ranges of code points."""

    ranges: Ranges


@dataclass(frozen=True, slots=True, eq=False)
class Text(Expression):
    """Exactly this text."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Mark(Expression):
    """A special token, by name. No text matches it, not even its own spelling."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Sequence(Expression):
    """Every part in order."""

    parts: tuple[Expression, ...]

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.parts


@dataclass(frozen=True, slots=True, eq=False)
class Union(Expression):
    """Any one of the parts."""

    parts: tuple[Expression, ...]

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.parts


EMPTY_TEXT = Sequence(())
NOTHING = Union(())


@dataclass(frozen=True, slots=True, eq=False)
class Repeat(Expression):
    """The inner language low to high times (None: without end), the separator between each two."""

    inner: Expression
    low: int
    high: int | None
    separator: Expression = EMPTY_TEXT

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.inner, self.separator)


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A part of `Members`."""

    inner: Expression
    is_required: bool


@dataclass(frozen=True, slots=True, eq=False)
class Members(Expression):
    """Parts in order, some optional, with the separator between those that are present."""

    parts: tuple[Member, ...]
    separator: Expression

    @property
    def children(self) -> tuple[Expression, ...]:
        return (*(part.inner for part in self.parts), self.separator)


@dataclass(frozen=True, slots=True, eq=False)
class Intersection(Expression):
    """What both languages hold."""

    left: Expression
    right: Expression

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.left, self.right)


@dataclass(frozen=True, slots=True, eq=False)
class Without(Expression):
    """What the left language holds and the right one does not."""

    left: Expression
    right: Expression

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.left, self.right)


def chars(ranges: Ranges) -> Expression:
    """One of these characters."""
    return Chars(ranges) if ranges else NOTHING


def literal(text: str) -> Expression:
    """Exactly this text. Raises: ConstraintError if it is no valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConstraintError(f"a text holds half a surrogate pair: {text!r:.80}; use valid Unicode") from None
    return Text(text)


def choices(texts: Iterable[str]) -> Expression:
    """One of these texts. Raises: ConstraintError if there are none, or far too many."""
    listed = list(texts)
    if not listed:
        raise ConstraintError("a list of choices is empty; give at least one text")
    # Every character is a state at least: what cannot be compiled need not be built.
    most = Limits().max_nfa_size
    if sum(map(len, listed)) > most:
        raise too_large(f"lists texts of more than {most:,} characters")
    return union(*map(literal, listed))


def sequence(*parts: Expression) -> Expression:
    """Every part in order."""
    if any(part is NOTHING for part in parts):
        return NOTHING
    kept = tuple(part for part in parts if part is not EMPTY_TEXT)
    return kept[0] if len(kept) == 1 else Sequence(kept) if kept else EMPTY_TEXT


def union(*parts: Expression) -> Expression:
    """Any one of the parts."""
    kept = tuple(part for part in parts if part is not NOTHING)
    return kept[0] if len(kept) == 1 else Union(kept) if kept else NOTHING


def optional(part: Expression) -> Expression:
    """The part, or the empty text."""
    return union(EMPTY_TEXT, part)


def repeat(inner: Expression, low: int, high: int | None = None, separator: Expression = EMPTY_TEXT) -> Expression:
    """The inner language low to high times (None: without end), the separator between each two."""
    if high is not None and high < low:
        return NOTHING
    if inner is NOTHING:
        return NOTHING if low else EMPTY_TEXT
    if high == 0 or (inner is EMPTY_TEXT and separator is EMPTY_TEXT):
        return EMPTY_TEXT
    return inner if low == high == 1 else Repeat(inner, low, high, separator)


def members(parts: Iterable[Member], separator: Expression) -> Expression:
    """Parts in order, some optional, with the separator between those that are present."""
    listed = list(parts)
    if any(part.inner is NOTHING and part.is_required for part in listed):
        return NOTHING
    kept = tuple(part for part in listed if part.inner is not NOTHING)
    return Members(kept, separator) if kept else EMPTY_TEXT


def intersection(left: Expression, right: Expression) -> Expression:
    """What both languages hold."""
    return NOTHING if left is NOTHING or right is NOTHING else Intersection(left, right)


def without(left: Expression, right: Expression) -> Expression:
    """What the left language holds and the right one does not."""
    return left if left is NOTHING or right is NOTHING else Without(left, right)


def children_first(root: Expression) -> list[Expression]:
    """Every node below and including the root, once each, parts before what they are parts of."""
    found: list[Expression] = []
    seen: set[Expression] = set()
    # Without recursion: trees of long lists are deep.
    pending: list[tuple[Expression, bool]] = [(root, False)]
    while pending:
        node, is_done = pending.pop()
        if is_done:
            found.append(node)
        elif node not in seen:
            seen.add(node)
            pending.append((node, True))
            pending += [(child, False) for child in node.children]
    return found
