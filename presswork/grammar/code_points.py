"""Sets of code points as sorted, disjoint, inclusive ranges. Surrogates are no characters and in none of them."""

import re
from collections.abc import Iterable
from functools import cache

import numpy as np

Ranges = tuple[tuple[int, int], ...]

LAST = 0x10FFFF
EVERY: Ranges = ((0, 0xD7FF), (0xE000, LAST))
# ECMA 262 counts the byte order mark as white space, Python does not.
_EXTRA_SPACE = 0xFEFF


def normalize(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """The set of code points that any of the inclusive pairs holds."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        elif low <= high:
            merged.append((low, high))
    return intersect(tuple(merged), EVERY)


def intersect(left: Ranges, right: Ranges) -> Ranges:
    """Code points in both."""
    found = []
    i = j = 0
    while i < len(left) and j < len(right):
        low, high = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if low <= high:
            found.append((low, high))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def complement(ranges: Ranges) -> Ranges:
    """Characters that are not in the ranges."""
    edges = [-1, *(edge for pair in ranges for edge in pair), LAST + 1]
    return normalize((edges[n] + 1, edges[n + 1] - 1) for n in range(0, len(edges), 2))


def subtract(left: Ranges, right: Ranges) -> Ranges:
    """Code points of the first that are not in the second."""
    return intersect(left, complement(right))


def one_of(characters: str) -> Ranges:
    """The characters of a text."""
    return normalize((ord(character), ord(character)) for character in characters)


@cache
def unicode_class(letter: str) -> Ranges:
    r"""What \d, \w or \s may match in any dialect: Python's Unicode sets, and ECMA 262's own white space."""
    # Surrogates too, so that places in the text are code points.
    everything = np.arange(LAST + 1, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    pairs = [(found.start(), found.end() - 1) for found in re.finditer(rf"\{letter}+", everything)]
    return normalize([*pairs, (_EXTRA_SPACE, _EXTRA_SPACE)] if letter == "s" else pairs)


@cache
def cased_beyond_ascii() -> Ranges:
    """Characters outside ASCII that have another case."""
    characters = ((code, chr(code)) for code in range(128, LAST + 1))
    return normalize((code, code) for code, text in characters if text.lower() != text or text.upper() != text)
