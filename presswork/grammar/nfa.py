"""A nondeterministic automaton over bytes and marks, built from an expression between given end states.

Every node is built between a start that gets no edge back into it and an end that gets no edge out of it, so neighbours
and alternatives can share both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from presswork.grammar.dfa import Dfa
from presswork.grammar.expression import (
    Chars,
    Expression,
    Mark,
    Members,
    Repeat,
    Sequence,
    Text,
    Union,
)
from presswork.grammar.utf8 import END, START, utf8_fragment


@dataclass(slots=True)
class Nfa:
    """State 0 is the start, state 1 the end.

    Args:
        edges: For each state, (low symbol, high symbol, target).
        jumps: For each state, the targets reached without a symbol.
    """

    edges: list[list[tuple[int, int, int]]] = field(default_factory=list)
    jumps: list[list[int]] = field(default_factory=list)

    def add_state(self) -> int:
        self.edges.append([])
        self.jumps.append([])
        return len(self.edges) - 1


def nfa_size(node: Expression, sizes: Mapping[Expression, int]) -> int:
    """States and edges that `build_nfa` makes of a node, given those of its children (for products, `Dfa.size`)."""
    match node:
        case Chars(ranges=ranges):
            fragment = utf8_fragment(ranges)
            return len(fragment.edges) + fragment.num_inner
        case Text(text=text):
            return 2 * len(text.encode()) + 1
        case Repeat(inner=inner, low=low, high=high, separator=separator):
            return _num_copies(low, high) * (sizes[inner] + sizes[separator] + 4) + 1
        case Members(parts=parts, separator=separator):
            return sum(sizes[part.inner] + sizes[separator] + 9 for part in parts) + 2
        case _:
            return sum(sizes[child] + 1 for child in node.children) + 1


def build_nfa(root: Expression, products: Mapping[Expression, Dfa], symbols: Mapping[str, int]) -> Nfa:
    """The automaton of an expression.

    Args:
        products: The automata of every `Intersection` and `Without` below the root.
        symbols: The symbol of each mark.
    """
    return _Builder(products, symbols).build(root)


def _num_copies(low: int, high: int | None) -> int:
    return max(low, 1) if high is None else high


class _Builder:
    """Nodes still to be built wait in a list, so that deep trees need no deep recursion."""

    def __init__(self, products: Mapping[Expression, Dfa], symbols: Mapping[str, int]):
        self._nfa = Nfa()
        self._products = products
        self._symbols = symbols
        self._pending: list[tuple[Expression, int, int]] = []
        self._build: dict[type, Callable[..., None]] = {
            Chars: self._chars, Text: self._text, Mark: self._mark, Sequence: self._sequence, Union: self._union,
            Repeat: self._repeat, Members: self._members,
        }  # fmt: skip

    def build(self, root: Expression) -> Nfa:
        start, end = self._nfa.add_state(), self._nfa.add_state()
        self._pending.append((root, start, end))
        while self._pending:
            node, before, after = self._pending.pop()
            self._build.get(type(node), self._product)(node, before, after)
        return self._nfa

    def _chars(self, node: Chars, before: int, after: int) -> None:
        fragment = utf8_fragment(node.ranges)
        state = {START: before, END: after}
        state.update((inner, self._nfa.add_state()) for inner in range(fragment.num_inner))
        for source, low, high, target in fragment.edges:
            self._nfa.edges[state[source]].append((low, high, state[target]))

    def _text(self, node: Text, before: int, after: int) -> None:
        data = node.text.encode()
        if not data:
            self._nfa.jumps[before].append(after)
        for place, byte in enumerate(data):
            target = after if place == len(data) - 1 else self._nfa.add_state()
            self._nfa.edges[before].append((byte, byte, target))
            before = target

    def _mark(self, node: Mark, before: int, after: int) -> None:
        symbol = self._symbols[node.name]
        self._nfa.edges[before].append((symbol, symbol, after))

    def _sequence(self, node: Sequence, before: int, after: int) -> None:
        if not node.parts:
            self._nfa.jumps[before].append(after)
        for place, part in enumerate(node.parts):
            target = after if place == len(node.parts) - 1 else self._nfa.add_state()
            self._pending.append((part, before, target))
            before = target

    def _union(self, node: Union, before: int, after: int) -> None:
        self._pending += [(part, before, after) for part in node.parts]

    def _repeat(self, node: Repeat, before: int, after: int) -> None:
        """Copies in a row, each with a start and an end of its own; without a limit the last one is a loop."""
        jumps = self._nfa.jumps
        if node.low == 0:
            jumps[before].append(after)
        for copy in range(1, _num_copies(node.low, node.high) + 1):
            start, end = self._nfa.add_state(), self._nfa.add_state()
            self._connect(before, start, node.separator if copy > 1 else None)
            self._pending.append((node.inner, start, end))
            if copy >= node.low:
                jumps[end].append(after)
            before = end
        if node.high is None:
            self._connect(before, start, node.separator)

    def _connect(self, before: int, after: int, separator: Expression | None) -> None:
        if separator is None:
            self._nfa.jumps[before].append(after)
        else:
            self._pending.append((separator, before, after))

    def _members(self, node: Members, before: int, after: int) -> None:
        """Two rails lead past the parts that may be absent; both enter the same copy of a part.

        empty  o----->o----->o---->    no part was present yet: the text may end behind the last one
                `-.    `-.
               part-. part-.           behind a part the text ends, or goes on with a separator to `ready`
                ,-'    ,-'
        ready  o----->o----->o         a separator was written: another part must come
        """
        jumps = self._nfa.jumps
        empty, ready = before, self._nfa.add_state()
        first_last = max((place for place, part in enumerate(node.parts) if part.is_required), default=-1)
        for place, part in enumerate(node.parts):
            start, end, next_empty, next_ready = (self._nfa.add_state() for _ in range(4))
            for rail, next_rail in ((empty, next_empty), (ready, next_ready)):
                jumps[rail] += [start] if part.is_required else [start, next_rail]
            self._pending += [(part.inner, start, end), (node.separator, end, next_ready)]
            if place >= first_last:
                jumps[end].append(after)
            empty, ready = next_empty, next_ready
        jumps[empty].append(after)

    def _product(self, node: Expression, before: int, after: int) -> None:
        product = self._products[node]
        states = [self._nfa.add_state() for _ in product.edges]
        # A product without a state accepts nothing: nothing leads through it.
        self._nfa.jumps[before] += states[:1]
        for state, edges, is_accepting in zip(states, product.edges, product.accepts, strict=True):
            self._nfa.edges[state] += [(low, high, states[target]) for low, high, target in edges]
            if is_accepting:
                self._nfa.jumps[state].append(after)
