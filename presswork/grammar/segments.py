"""Texts of which parts are fixed and parts are gaps.

    fixed 0   gap 1   fixed 1   gap 2   fixed 2         and then the end of the text, or more of what follows it

A gap ends where the fixed part behind it first occurs, so that a text has one reading; the last gap ends where the last
part ends the text.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from presswork.errors import ConstraintError
from presswork.grammar.byte_automaton import ByteAutomaton, compile_expression
from presswork.grammar.expression import Expression, intersection, literal, repeat, sequence, without
from presswork.grammar.languages import TextLanguage
from presswork.grammar.regex import ANY_CHARACTER, ANY_TEXT


@dataclass(frozen=True, slots=True)
class Segments(TextLanguage):
    """Fixed texts with gaps between them.

    Args:
        fixed: at least two texts, the first and the last possibly empty, the others not.
        gap: what each gap holds; None allows any text.
        shown: None: the text ends with its last part. A number of bytes: the text goes on behind the gap with the last
            part, of which at least so many bytes have to be there, and where it stops is left open.
    """

    fixed: tuple[str, ...]
    gap: TextLanguage | None = None
    shown: int | None = None

    def __post_init__(self) -> None:
        if len(self.fixed) < 2:
            raise ConstraintError(f"a gap lies between two texts, got {len(self.fixed)}")
        if not all(self.fixed[1:-1]):
            raise ConstraintError("the text between two gaps must not be empty; join the gaps")

    @property
    def key(self) -> str:
        inner = None if self.gap is None else self.gap.key
        digest = hashlib.sha256(json.dumps([self.fixed, inner, self.shown]).encode()).hexdigest()
        return f"segments {digest}"

    @property
    def is_open(self) -> bool:
        return self.shown is not None

    def expression(self) -> Expression:
        parts = [literal(self.fixed[0])]
        for number, text in enumerate(self.fixed[1:], start=1):
            last = number == len(self.fixed) - 1
            parts.append(self._gap_before(text) if not last else sequence(self._inner(), literal(text)))
        return sequence(*parts)

    def automaton(self) -> ByteAutomaton:
        whole = compile_expression(self.expression())
        if self.shown is None:
            return whole
        # So far from the end of the last part, that much of it has been shown.
        left = len(self.fixed[-1].encode()) - self.shown
        return ByteAutomaton(next=whole.next, accepts=_steps_to_end(whole) <= left, marks=whole.marks)

    def _inner(self) -> Expression:
        return ANY_TEXT if self.gap is None else self.gap.expression()

    def _gap_before(self, text: str) -> Expression:
        """A gap and the fixed text behind it, at its first occurrence."""
        first = without(sequence(ANY_TEXT, literal(text)), sequence(ANY_TEXT, literal(text), repeat(ANY_CHARACTER, 1)))
        return first if self.gap is None else intersection(first, sequence(self._inner(), literal(text)))

    def gaps_of(self, text: bytes) -> list[bytes]:
        """The gaps of a text of the language, in order; pure."""
        fixed = [part.encode() for part in self.fixed]
        place, gaps = len(fixed[0]), []
        for part in fixed[1:-1]:
            end = text.index(part, place)
            gaps.append(text[place:end])
            place = end + len(part)
        rest, last = text[place:], fixed[-1]
        shown = len(last) if self.shown is None else _overlap(rest, last)
        return [*gaps, rest[: len(rest) - shown]]


def _overlap(text: bytes, last: bytes) -> int:
    """How much of the beginning of `last` a text ends with, at most."""
    return next(size for size in range(min(len(text), len(last)), -1, -1) if text.endswith(last[:size]))


def _steps_to_end(automaton: ByteAutomaton) -> np.ndarray:
    """Fewest bytes from each state to an accepting one."""
    steps = np.where(automaton.accepts, 0, np.iinfo(np.int64).max - 1)
    while True:
        reached = np.where(automaton.next >= 0, steps[automaton.next], np.iinfo(np.int64).max - 1)
        better = np.minimum(steps, reached.min(axis=1) + 1)
        if (better == steps).all():
            return steps
        steps = better
