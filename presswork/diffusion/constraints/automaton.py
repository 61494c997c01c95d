"""A language over canvases: texts, then an end token, then whatever a tail may hold. S states, C classes, V vocabulary.

    "yes" or "no", a canvas of 4:      yes <eos> <eos> <eos>      no <eos> <eos> <pad>

Trained canvases hold end tokens behind the end, so a tail holds only those (and padding). A tail of any token would
also be a language; then texts that end early would weigh more than they do in the model, and every step would need
the mass of the whole vocabulary.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from presswork.errors import ConstraintError
from presswork.grammar.token_automaton import TokenAutomaton, starts_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CanvasAutomaton:
    """A token automaton with one more state, the last, that end tokens lead to and tails stay in.

    An open one has no end tokens: nothing leads to the last state, and a canvas ends in whatever state accepts.

    Args:
        text: the language of texts.
        class_of: int32 [V].
        num_classes: C, those of the text's tokens, then end tokens, then tail tokens that end nothing.
        edge_starts, edge_group, edge_to, group_starts, group_classes: as in TokenAutomaton.
        fewest: int64 [S], tokens from each state to the end of the shortest text, the end token included; 0 in the
            tail.
    """

    text: TokenAutomaton
    class_of: np.ndarray
    num_classes: int
    edge_starts: np.ndarray
    edge_group: np.ndarray
    edge_to: np.ndarray
    group_starts: np.ndarray
    group_classes: np.ndarray
    fewest: np.ndarray
    _exact: list[np.ndarray] = field(init=False, repr=False, default_factory=list)

    @property
    def tail(self) -> int:
        """The state behind an end token."""
        return len(self.fewest) - 1

    @property
    def end_class(self) -> int | None:
        """The class of end tokens; that and what follows it are the tail's. None where nothing ends a text."""
        return None if self.num_classes == self.text.num_classes else self.text.num_classes

    def finals(self, tokens_left: int, pins: Mapping[int, int] | None = None) -> np.ndarray:
        """float64 [S]: 0 for states a canvas may end in when so many tokens may still follow it, else -inf.

        Args: pins: tokens held at positions behind the canvas, counted from its end.
        """
        return np.where(self.alive_before(pins or {}, tokens_left), 0.0, -np.inf)

    def alive_before(self, pins: Mapping[int, int], tokens_left: int) -> np.ndarray:
        """bool [S]: from which states a text can be finished in so many tokens with some of the next ones held.

        Where nothing ends a text it has to have exactly so many; elsewhere its end tokens fill what is left.

        Args: pins: position, counted from 0, to token.
        """
        last = max(pins, default=-1)
        behind = tokens_left - last - 1
        alive = self._with_exactly(behind) if self.end_class is None else self.fewest <= behind
        groups = np.repeat(np.arange(len(self.group_starts) - 1), np.diff(self.group_starts))
        for position in range(last, -1, -1):
            usable = alive[self.edge_to]
            if position in pins:
                holds = np.zeros(len(self.group_starts) - 1, bool)
                holds[groups[self.group_classes == self.class_of[pins[position]]]] = True
                usable = usable & holds[self.edge_group]
            alive = self._sources(usable)
        return alive

    def _with_exactly(self, num_tokens: int) -> np.ndarray:
        """bool [S]: from which states there is a text of exactly so many tokens; all counts up to it are kept."""
        if num_tokens < 0:
            return np.zeros(self.tail + 1, bool)
        known = self._exact
        if len(known) <= num_tokens:
            # A list of its own, because other threads may do the same.
            known = list(known) or [self.fewest == 0]
            while len(known) <= num_tokens:
                known.append(self._sources(known[-1][self.edge_to]))
            object.__setattr__(self, "_exact", known)
        return known[num_tokens]

    def _sources(self, usable: np.ndarray) -> np.ndarray:
        """bool [S]: the states that a marked edge [E] leaves."""
        found = np.zeros(self.tail + 1, bool)
        found[np.repeat(np.arange(self.tail + 1), np.diff(self.edge_starts))[usable]] = True
        return found


def close(
    text: TokenAutomaton, vocab_size: int, end_ids: Collection[int], tail_ids: Collection[int]
) -> CanvasAutomaton:
    """The canvases of a language of texts.

    Args:
        vocab_size: of the model, at least the tokenizer's.
        end_ids: tokens that end a text. tail_ids: further tokens that may stand behind an end.
    Raises:
        ConstraintError: an end token is part of the language's texts.
    """
    class_of = _padded(text.class_of, vocab_size)
    shared = [token for token in end_ids if class_of[token] >= 0]
    if shared:
        raise ConstraintError(f"token {shared[0]} both ends a text and is part of the constraint's texts; leave it out")
    ends, tails = text.num_classes, text.num_classes + 1
    rest = [token for token in tail_ids if class_of[token] < 0 and token not in end_ids]
    class_of[list(end_ids)] = ends
    class_of[rest] = tails
    num_groups = len(text.group_starts) - 1
    sources = np.repeat(np.arange(text.num_states), np.diff(text.edge_starts))
    accepting = np.flatnonzero(text.accepts)
    # One edge from every accepting state, then the tail's own.
    sources = np.concatenate([sources, accepting, [text.num_states]])
    group = np.concatenate([text.edge_group, np.full(len(accepting), num_groups), [num_groups + 1]])
    target = np.concatenate([text.edge_to, np.full(len(accepting) + 1, text.num_states)])
    order = np.argsort(sources, kind="stable")
    behind = [ends, tails] if rest else [ends]
    first = text.group_starts[-1] + 1
    return CanvasAutomaton(
        text=text,
        class_of=class_of,
        num_classes=text.num_classes + (2 if rest else 1),
        edge_starts=starts_of(sources, text.num_states + 1),
        edge_group=group[order].astype(np.int32),
        edge_to=target[order].astype(np.int32),
        group_starts=np.concatenate([text.group_starts, [first, first + len(behind)]]),
        group_classes=np.concatenate([text.group_classes, [ends, *behind]]).astype(np.int32),
        fewest=np.append(text.fewest + 1, 0),
    )


def leave_open(text: TokenAutomaton, vocab_size: int) -> CanvasAutomaton:
    """The canvases of a language whose texts end where the last canvas does."""
    return CanvasAutomaton(
        text=text,
        class_of=_padded(text.class_of, vocab_size),
        num_classes=text.num_classes,
        edge_starts=np.append(text.edge_starts, text.edge_starts[-1]),
        edge_group=text.edge_group,
        edge_to=text.edge_to,
        group_starts=text.group_starts,
        group_classes=text.group_classes,
        fewest=np.append(text.fewest, np.iinfo(np.int64).max // 2),
    )


def _padded(class_of: np.ndarray, vocab_size: int) -> np.ndarray:
    """The tokenizer's classes over a model's vocabulary, which may be larger."""
    padded = np.full(vocab_size, -1, np.int32)
    padded[: len(class_of)] = class_of[:vocab_size]
    return padded
