"""The smallest automaton of a language, numbered so that equal languages give equal automata."""

from collections import defaultdict
from collections.abc import Iterable

from presswork.grammar.dfa import Dfa, renumbered, sources


def minimize(dfa: Dfa) -> Dfa:
    """Leave out states that no accepted text passes, and put together states that the same texts lead to acceptance.

    Returns: The one minimal automaton, states in the order in which a breadth-first search by symbol meets them;
        without any state when nothing is accepted.
    """
    living = _living(dfa)
    trimmed = renumbered(dfa, lambda state: state if state in living else None)
    if not trimmed.edges:
        return trimmed
    block_of = _Partition(trimmed).refine()
    return renumbered(trimmed, block_of.__getitem__)


def _living(dfa: Dfa) -> set[int]:
    """States from which an accepting one can be reached."""
    before = sources(dfa)
    living = {state for state, is_accepting in enumerate(dfa.accepts) if is_accepting}
    pending = list(living)
    while pending:
        fresh = [source for source in before[pending.pop()] if source not in living]
        living.update(fresh)
        pending += fresh
    return living


class _Partition:
    """Blocks of states that nothing has told apart yet.

    When a block is split its largest part keeps the number. A state whose targets kept theirs cannot have come to
    differ from its block, so only sources of renumbered states are looked at again: at most log2(states) times for
    each edge, as in Hopcroft's algorithm (1971).
    """

    def __init__(self, dfa: Dfa):
        self._edges = dfa.edges
        self._sources = sources(dfa)
        self._block_of = [int(is_accepting) for is_accepting in dfa.accepts]
        self._blocks: list[set[int]] = [set(), set()]
        for state, block in enumerate(self._block_of):
            self._blocks[block].add(state)

    def refine(self) -> list[int]:
        """Split until no two states of a block differ. Returns: the block of each state."""
        doubtful: Iterable[int] = range(len(self._edges))
        while doubtful:
            by_block: defaultdict[int, list[int]] = defaultdict(list)
            for state in doubtful:
                by_block[self._block_of[state]].append(state)
            moved = [state for block, states in by_block.items() for state in self._split(block, states)]
            doubtful = {source for state in moved for source in self._sources[state]}
        return self._block_of

    def _split(self, block: int, doubtful: list[int]) -> list[int]:
        """Part the block's doubtful states from its others and by where they lead. Returns: states that were moved."""
        by_signature: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for state in doubtful:
            by_signature[self._signature(state)].append(state)
        parts = sorted(by_signature.values(), key=len)
        num_others = len(self._blocks[block]) - len(doubtful)
        if num_others < len(parts[-1]):
            largest = parts.pop()
            if num_others:
                parts.append(list(self._blocks[block].difference(largest, *parts)))
        for part in parts:
            self._blocks[block].difference_update(part)
            for state in part:
                self._block_of[state] = len(self._blocks)
            self._blocks.append(set(part))
        return [state for part in parts for state in part]

    def _signature(self, state: int) -> tuple[int, ...]:
        """The state's edges as low, high, block, low, high, block, ..., neighbours of one block put together."""
        found: list[int] = []
        for low, high, target in self._edges[state]:
            block = self._block_of[target]
            if found and found[-1] == block and found[-2] == low - 1:
                found[-2] = high
            else:
                found += (low, high, block)
        return tuple(found)
