"""Token sequences that differ from a given one in few places: an automaton that counts.

states (i, e): i tokens written, e of them changed
(i, e) -the given token-> (i + 1, e)        (i, e) -any other text token-> (i + 1, e + 1)    where i is open
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from presswork.errors import ConstraintError
from presswork.grammar import _lift_kernels as kernels
from presswork.grammar.languages import Language
from presswork.grammar.token_automaton import TokenAutomaton, starts_of
from presswork.grammar.vocabulary import Vocabulary

_MAX_STATES = 20_000  # 66,049 took 519 MB a step over a canvas of 256


@dataclass(frozen=True, slots=True)
class FewChanges(Language):
    """The given tokens with at most so many of the open ones replaced, each by one token of whole characters.

    Args:
        token_ids: the given tokens, all of them text.
        open_places: places in it that may change; those of parts of characters stay.
        max_changes: how many of them may.
        ends: whether an end token must follow; else the reply ends with the last token.
    """

    token_ids: tuple[int, ...]
    open_places: frozenset[int]
    max_changes: int
    ends: bool = True

    @property
    def key(self) -> str:
        named = json.dumps([self.token_ids, sorted(self.open_places), self.max_changes, self.ends])
        return f"few changes {hashlib.sha256(named.encode()).hexdigest()}"

    @property
    def is_open(self) -> bool:
        return not self.ends

    @property
    def is_kept(self) -> bool:
        return False

    def lifted(self, vocabulary: Vocabulary) -> TokenAutomaton:
        known = vocabulary.token_bytes
        special = [token for token in self.token_ids if token >= len(known) or not known[token]]
        if special:
            raise ConstraintError(f"token {special[0]} is no text and cannot be part of what is edited")
        places = {place for place in self.open_places if is_text(known[self.token_ids[place]])}
        # What is never too much need not be counted.
        is_counted = self.max_changes < len(places)
        num, changes = len(self.token_ids), self.max_changes if is_counted else 0
        if (num + 1) * (changes + 1) > _MAX_STATES:
            raise ConstraintError(f"{num} tokens with {changes} changes are too many at once; lower max_changes")
        distinct = sorted(set(self.token_ids))
        class_of, num_classes = self._classes(vocabulary, distinct)
        place = {token: i for i, token in enumerate(distinct)}
        members = [np.array([i], np.int32) for i in range(len(distinct))]
        whole = [i for i, token in enumerate(distinct) if is_text(known[token])] + list(
            range(len(distinct), num_classes)
        )
        members += [np.array([c for c in whole if c != i], np.int32) for i in range(len(distinct))]
        edges: list[tuple[int, int, int]] = []
        for i, token in enumerate(self.token_ids):
            for changed in range(changes + 1):
                state = i * (changes + 1) + changed
                edges.append((state, place[token], state + changes + 1))
                if i in places and (changed < changes or not is_counted) and len(members[len(distinct) + place[token]]):
                    edges.append((state, len(distinct) + place[token], state + changes + 1 + is_counted))
        return _automaton(class_of, num_classes, members, edges, num, changes)

    def _classes(self, vocabulary: Vocabulary, distinct: list[int]) -> tuple[np.ndarray, int]:
        """A class for each given token, one for all other tokens of whole characters."""
        whole = np.array([is_text(text) for text in vocabulary.token_bytes])
        class_of = np.where(whole, len(distinct), -1).astype(np.int32)
        class_of[distinct] = np.arange(len(distinct))
        return class_of, len(distinct) + int((class_of == len(distinct)).any())


def is_text(data: bytes) -> bool:
    """Whether bytes are whole characters, at least one."""
    try:
        return bool(data.decode())
    except UnicodeDecodeError:
        return False


def _automaton(
    class_of: np.ndarray, num_classes: int, members: list[np.ndarray], edges: list[tuple[int, int, int]], num: int,
    changes: int,
) -> TokenAutomaton:  # fmt: skip
    """Only states that are reached: no more changes than tokens."""
    width = changes + 1
    accepts = np.zeros((num + 1) * width, bool)
    accepts[num * width :] = True
    sources, groups, targets = (np.array(column, np.int64) for column in zip(*edges, strict=True))
    starts = starts_of(sources, len(accepts))
    return TokenAutomaton(
        class_of=class_of,
        num_classes=num_classes,
        edge_starts=starts,
        edge_group=groups.astype(np.int32),
        edge_to=targets.astype(np.int32),
        group_starts=np.cumsum([0, *map(len, members)]),
        group_classes=np.concatenate(members),
        accepts=accepts,
        fewest=kernels.fewest_steps(starts, targets, accepts),
        most=kernels.most_steps(starts, targets),
    )
