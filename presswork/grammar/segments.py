"""Texts of which parts are fixed and parts are gaps.

    fixed 0   gap 1   fixed 1   gap 2   fixed 2         and then the end of the text, or more of what follows it

A gap ends where the fixed part behind it, or the first ANCHOR characters of a long one, first occurs, so that a text
has one reading. Only a short last part may occur in the gap before it too: there the end of the text decides. States
inside an anchor are those from which nearly every token leads somewhere, so a long one would make lifting slow.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from presswork.errors import ConstraintError
from presswork.grammar import _lift_kernels as kernels
from presswork.grammar.byte_automaton import ByteAutomaton, compile_expression
from presswork.grammar.expression import Expression, intersection, literal, repeat, sequence, without
from presswork.grammar.languages import TextLanguage
from presswork.grammar.regex import ANY_CHARACTER, ANY_TEXT
from presswork.grammar.token_automaton import starts_of

ANCHOR = 48
_MAX_ANCHOR = 400


def anchor_length(old: str, part: str) -> int | None:
    """How much of a part ends the gap before it, so that the gap can hold `old`; None where no beginning of it tells.

    A beginning tells if it first occurs behind the old text.
    """
    size = min(len(part), ANCHOR)
    while True:
        if (old + part[:size]).find(part[:size]) == len(old):
            return size
        if size >= min(len(part), _MAX_ANCHOR):
            return None
        size = min(2 * size, len(part), _MAX_ANCHOR)


@dataclass(frozen=True, slots=True)
class Segments(TextLanguage):
    """Fixed texts with gaps between them.

    Args:
        fixed: at least two texts, the first and the last possibly empty, the others not.
        gap: what each gap holds; None allows any text.
        shown: None: the text ends with its last part. A number of bytes: the text goes on behind the gap with the last
            part, of which at least so many bytes (of whole characters) have to be there; where it stops is left open.
        anchors: characters of each part but the first that end the gap before it; 0 for a last part leaves that to
            the end of the text. None: at most ANCHOR, and 0 for a last part no longer than that.
    """

    fixed: tuple[str, ...]
    gap: TextLanguage | None = None
    shown: int | None = None
    anchors: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.fixed) < 2:
            raise ConstraintError(f"a gap lies between two texts, got {len(self.fixed)}")
        if not all(self.fixed[1:-1]):
            raise ConstraintError("the text between two gaps must not be empty; join the gaps")
        if self.shown is not None and not self._shown_text():
            raise ConstraintError(f"at least one character must follow a gap, got {self.shown} bytes of the last text")

    @property
    def key(self) -> str:
        inner = None if self.gap is None else self.gap.key
        digest = hashlib.sha256(json.dumps([self.fixed, inner, self.shown, self.anchors]).encode()).hexdigest()
        return f"segments {digest}"

    @property
    def is_open(self) -> bool:
        return self.shown is not None

    @property
    def is_kept(self) -> bool:
        return False

    def expression(self) -> Expression:
        parts = [literal(self.fixed[0])]
        for number, text in enumerate(self.fixed[1:], start=1):
            anchor = self._anchor(number)
            if anchor:
                parts.append(sequence(self._gap_before(anchor), literal(text[len(anchor) :])))
            else:
                parts.append(sequence(self._inner(), literal(text)))
        return sequence(*parts)

    def automaton(self) -> ByteAutomaton:
        whole = compile_expression(self.expression())
        if self.shown is None:
            return whole
        # So far from the end of the last part, that much of it has been shown.
        left = len(self.fixed[-1].encode()) - self.shown
        return ByteAutomaton(next=whole.next, accepts=_steps_to_end(whole) <= left, marks=whole.marks)

    def _anchor(self, number: int) -> str:
        """The beginning of a fixed part that ends the gap before it; "" where the end of the text does."""
        text, is_last = self.fixed[number], number == len(self.fixed) - 1
        if self.anchors is not None:
            return text[: self.anchors[number - 1]]
        if is_last and self.shown is None:
            return "" if len(text) <= ANCHOR else text[:ANCHOR]
        return (self._shown_text() if is_last else text)[:ANCHOR]

    def _shown_text(self) -> str:
        return self.fixed[-1].encode()[: self.shown].decode(errors="ignore")

    def _inner(self) -> Expression:
        return ANY_TEXT if self.gap is None else self.gap.expression()

    def _gap_before(self, anchor: str) -> Expression:
        """A gap and what ends it, at its first occurrence."""
        ended = sequence(ANY_TEXT, literal(anchor))
        first = without(ended, sequence(ended, repeat(ANY_CHARACTER, 1)))
        return first if self.gap is None else intersection(first, sequence(self._inner(), literal(anchor)))

    def gaps_of(self, text: bytes) -> list[bytes]:
        """The gaps of a text of the language, in order; pure."""
        place, gaps = len(self.fixed[0].encode()), []
        for number, part in enumerate(self.fixed[1:], start=1):
            anchor = self._anchor(number).encode()
            end = text.index(anchor, place) if anchor else len(text) - len(part.encode())
            gaps.append(text[place:end])
            place = end + len(part.encode())
        return gaps


def _steps_to_end(automaton: ByteAutomaton) -> np.ndarray:
    """Fewest bytes from each state to an accepting one."""
    sources, symbols = np.nonzero(automaton.next >= 0)
    num = automaton.num_states
    pairs = np.unique(sources * num + automaton.next[sources, symbols])
    return kernels.fewest_steps(starts_of(pairs // num, num), pairs % num, automaton.accepts)
