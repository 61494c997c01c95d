"""Deterministic automata with edges over symbol ranges: from a nondeterministic one, and of two others' product."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from presswork.grammar.limits import Budget

if TYPE_CHECKING:
    from presswork.grammar.nfa import Nfa

Edge = tuple[int, int, int]
DEAD = -1


@dataclass(slots=True)
class Dfa:
    """State 0 is the start.

    Args:
        edges: For each state (low symbol, high symbol, target), sorted and disjoint.
        accepts: For each state, whether a text may end there.
    """

    edges: list[list[Edge]] = field(default_factory=list)
    accepts: list[bool] = field(default_factory=list)

    @property
    def size(self) -> int:
        """States and edges."""
        return 2 * len(self.edges) + sum(map(len, self.edges))


def determinize(nfa: Nfa, budget: Budget) -> Dfa:
    """Subset construction; the work for a state is proportional to its edges, not to the alphabet.

    Raises: ConstraintTooLargeError when there are too many states, or they take too much work.
    Mutates: budget.
    """
    return _Determinizer(nfa, budget).run()


class _Determinizer:
    def __init__(self, nfa: Nfa, budget: Budget):
        self._nfa = nfa
        self._budget = budget
        self._closures: dict[int, tuple[int, ...]] = {}
        # The same targets occur again and again; their closure is looked up once.
        self._state_of_targets: dict[frozenset[int], int] = {}
        self._state_of_subset: dict[frozenset[int], int] = {}
        self._subsets: list[frozenset[int]] = []

    def run(self) -> Dfa:
        self._state(frozenset([0]))
        dfa = Dfa()
        for subset in self._subsets:
            dfa.accepts.append(1 in subset)
            dfa.edges.append(self._edges(subset))
        return dfa

    def _edges(self, subset: frozenset[int]) -> list[Edge]:
        edges = [edge for state in subset for edge in self._nfa.edges[state]]
        self._budget.spend(len(edges) + 1)
        return _joined((low, high, self._state(targets)) for low, high, targets in self._split(edges))

    def _split(self, edges: list[Edge]) -> Iterator[tuple[int, int, frozenset[int]]]:
        """Disjoint ranges with every target that the edges have there."""
        changes: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for low, high, target in edges:
            changes[low].append((target, 1))
            changes[high + 1].append((target, -1))
        counts: dict[int, int] = {}
        previous = 0
        for symbol in sorted(changes):
            if counts:
                self._budget.spend(len(counts))
                yield previous, symbol - 1, frozenset(counts)
            for target, change in changes[symbol]:
                counts[target] = counts.get(target, 0) + change
                if not counts[target]:
                    del counts[target]
            previous = symbol

    def _state(self, targets: frozenset[int]) -> int:
        known = self._state_of_targets.get(targets)
        if known is not None:
            return known
        closures = [self._closure(target) for target in targets]
        self._budget.spend(sum(map(len, closures)))
        subset = frozenset().union(*closures)
        state = self._state_of_subset.setdefault(subset, len(self._subsets))
        if state == len(self._subsets):
            self._subsets.append(subset)
            self._budget.check_states(len(self._subsets))
        self._state_of_targets[targets] = state
        return state

    def _closure(self, state: int) -> tuple[int, ...]:
        """States with edges, or the end, that jumps lead to."""
        known = self._closures.get(state)
        if known is None:
            seen = {state}
            pending = [state]
            while pending:
                fresh = [target for target in self._nfa.jumps[pending.pop()] if target not in seen]
                seen.update(fresh)
                pending += fresh
            self._budget.spend(len(seen))
            known = tuple(found for found in seen if found == 1 or self._nfa.edges[found])
            self._closures[state] = known
        return known


def product(left: Dfa, right: Dfa, *, is_difference: bool, budget: Budget) -> Dfa:
    """What both accept; with is_difference, what the left one accepts and the right one does not.

    Raises: ConstraintTooLargeError when there are too many states, or they take too much work.
    Mutates: budget.
    """
    # An automaton without states accepts nothing.
    start = (0, 0 if right.edges else DEAD)
    if not left.edges or (start[1] == DEAD and not is_difference):
        return Dfa()
    pairs: list[tuple[int, int]] = [start]
    state_of: dict[tuple[int, int], int] = {start: 0}

    def state(pair: tuple[int, int]) -> int:
        found = state_of.setdefault(pair, len(pairs))
        if found == len(pairs):
            pairs.append(pair)
            budget.check_states(len(pairs))
        return found

    dfa = Dfa()
    for first, second in pairs:
        others = right.edges[second] if second != DEAD else []
        meeting = _meet(left.edges[first], others, keeps_rest=is_difference)
        edges = _joined((low, high, state(pair)) for low, high, pair in meeting)
        budget.spend(len(left.edges[first]) + len(others) + len(edges) + 1)
        dfa.edges.append(edges)
        is_in_right = second != DEAD and right.accepts[second]
        dfa.accepts.append(left.accepts[first] and is_in_right != is_difference)
    return dfa


def _meet(left: list[Edge], right: list[Edge], *, keeps_rest: bool) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Ranges of the left edges with both targets; where the right has none, DEAD (or nothing, without keeps_rest)."""
    place = 0
    for low, high, target in left:
        while place < len(right) and right[place][1] < low:
            place += 1
        ahead = place
        while low <= high:
            other_low, other_high, other = right[ahead] if ahead < len(right) else (high + 1, high + 1, DEAD)
            if low < other_low:
                until = min(high, other_low - 1)
                if keeps_rest:
                    yield low, until, (target, DEAD)
            else:
                until = min(high, other_high)
                yield low, until, (target, other)
                ahead += 1
            low = until + 1


def _joined(edges: Iterable[Edge]) -> list[Edge]:
    """The same edges with neighbours that lead to one target put together."""
    found: list[Edge] = []
    for low, high, target in edges:
        if found and found[-1][2] == target and found[-1][1] == low - 1:
            found[-1] = (found[-1][0], high, target)
        else:
            found.append((low, high, target))
    return found


def sources(dfa: Dfa) -> list[list[int]]:
    """For each state, those with an edge to it."""
    found: list[list[int]] = [[] for _ in dfa.edges]
    for state, edges in enumerate(dfa.edges):
        for target in {target for _, _, target in edges}:
            found[target].append(state)
    return found


def renumbered(dfa: Dfa, name: Callable[[int], int | None]) -> Dfa:
    """The automaton of the start's reachable states, numbered as a search in symbol order meets their names.

    Args:
        name: States of one name become one; a state named None is left out.
    """
    start = name(0)
    order = [] if start is None else [0]
    number = {start: 0}
    result = Dfa()
    for state in order:
        edges = []
        for low, high, target in dfa.edges[state]:
            target_name = name(target)
            if target_name is None:
                continue
            if target_name not in number:
                number[target_name] = len(order)
                order.append(target)
            edges.append((low, high, number[target_name]))
        result.edges.append(_joined(edges))
        result.accepts.append(dfa.accepts[state])
    return result
