"""Where two texts differ, word by word, and how sure a model is of what is new there."""

import difflib
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate

_WORDS = re.compile(r"\w+|\s+|[^\w\s]")


def changes_between(old: str, new: str) -> Iterator[tuple[slice, slice]]:
    """Characters of the old and of the new text that differ, in order; words are compared, with their marks apart."""
    words = [_WORDS.findall(text) for text in (old, new)]
    places = [[0, *accumulate(map(len, one))] for one in words]
    for kind, a, b, c, d in difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        if kind != "equal":
            yield slice(places[0][a], places[0][b]), slice(places[1][c], places[1][d])


def mean_over(new: str, part: slice, sizes: Sequence[int], probabilities: Sequence[float]) -> float:
    """Mean probability of the tokens that reach into a part of a text; of an empty part, of the one behind it.

    Args: sizes: of the text's tokens, in bytes. A text's end has no token behind it, and counts as certain.
    """
    start, stop = len(new[: part.start].encode()), len(new[: part.stop].encode())
    found, place = [], 0
    for size, probability in zip(sizes, probabilities, strict=True):
        if place < max(stop, start + 1) and place + size > start:
            found.append(probability)
        place += size
    return sum(found) / len(found) if found else 1.0
