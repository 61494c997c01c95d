"""A set of characters as edges over bytes of UTF-8.

Source: the range splitting of Russ Cox, "Regular Expression Matching in the Wild" (2010), as in RE2's compiler.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from presswork.grammar.code_points import Ranges

ByteRanges = tuple[tuple[int, int], ...]

START, END = -1, -2
_LAST_OF_LENGTH = (0x7F, 0x7FF, 0xFFFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """Edges (from, low byte, high byte, to) between START, END and inner states 0, 1, ..."""

    edges: tuple[tuple[int, int, int, int], ...]
    num_inner: int


@lru_cache(maxsize=256)
def utf8_fragment(ranges: Ranges) -> Fragment:
    """The edges that read one character of the ranges; ends that read alike are shared."""
    state_of: dict[ByteRanges, int] = {(): END}
    edges: dict[tuple[int, int, int, int], None] = {}
    for pair in ranges:
        for sequence in byte_sequences(*pair):
            for place, (low, high) in enumerate(sequence):
                before = START if place == 0 else state_of[sequence[place:]]
                after = state_of.setdefault(sequence[place + 1 :], len(state_of) - 1)
                edges[before, low, high, after] = None
    return Fragment(edges=tuple(edges), num_inner=len(state_of) - 1)


def byte_sequences(low: int, high: int) -> Iterator[ByteRanges]:
    """Byte ranges whose products together are the UTF-8 forms of low to high; no surrogates may lie between."""
    pending = [(low, high)]
    while pending:
        low, high = pending.pop()
        split = _split_point(low, high)
        if split is None:
            yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))
        else:
            pending += [(split + 1, high), (low, split)]


def _split_point(low: int, high: int) -> int | None:
    """Where to cut a range that is no product of byte ranges yet."""
    for last in _LAST_OF_LENGTH:
        if low <= last < high:
            return last
    if high <= _LAST_OF_LENGTH[0]:
        return None
    for bits in (6, 12, 18):
        mask = (1 << bits) - 1
        if low & ~mask != high & ~mask:
            if low & mask:
                return low | mask
            if high & mask != mask:
                return (high & ~mask) - 1
    return None
