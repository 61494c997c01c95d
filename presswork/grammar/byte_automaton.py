"""From an expression to the table that others walk.

Symbols 0 to 255 are the bytes of UTF-8 text. Symbols from 256 on are marks: special tokens, which are no text.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from presswork.errors import ConstraintError
from presswork.grammar.dfa import DEAD, Dfa, determinize, product
from presswork.grammar.expression import Expression, Intersection, Mark, Without, children_first
from presswork.grammar.limits import Budget, Limits
from presswork.grammar.minimize import minimize
from presswork.grammar.nfa import build_nfa, nfa_size

NUM_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ByteAutomaton:
    """The minimal deterministic automaton of a language; equal languages have equal tables.

    State 0 is the start. Every state can be reached, and an accepting state from it. States are numbered as a
    breadth-first search by symbol meets them.

    Args:
        next: int32 [S, 256 + M], the state after a symbol; -1 where no text of the language goes on so. Read only.
        accepts: bool [S], whether a text may end there. Read only.
        marks: The names of the symbols from 256 on, sorted; only those that occur.
    """

    next: np.ndarray
    accepts: np.ndarray
    marks: tuple[str, ...]

    @property
    def num_states(self) -> int:
        """S."""
        return len(self.accepts)

    def walk(self, symbols: Iterable[int], state: int = 0) -> int:
        """Where a sequence of symbols (the bytes of a text are one) leads; -1 if nowhere. Pure."""
        for symbol in symbols:
            if state == DEAD:
                break
            state = int(self.next[state, symbol])
        return state

    def matches(self, symbols: Iterable[int]) -> bool:
        """Whether the language holds this sequence of symbols. Pure."""
        state = self.walk(symbols)
        return state != DEAD and bool(self.accepts[state])


def compile_expression(expression: Expression, limits: Limits | None = None) -> ByteAutomaton:
    """The minimal automaton of an expression.

    Args:
        limits: How large it may become; the defaults of `Limits` without.

    Returns: Its tables. Pure: equal languages, however they are written, give equal ones.

    Raises:
        ConstraintTooLargeError: a limit would be exceeded; found before the memory is taken.
        ConstraintError: the language is empty.
    """
    names = sorted({node.name for node in children_first(expression) if isinstance(node, Mark)})
    symbols = {name: NUM_BYTES + place for place, name in enumerate(names)}
    dfa = _compile(expression, symbols, Budget(limits or Limits()))
    if not dfa.edges:
        raise ConstraintError(
            "no text at all satisfies the constraint; loosen it where two demands contradict each other"
        )
    return _tables(dfa, names)


def _compile(root: Expression, symbols: dict[str, int], budget: Budget) -> Dfa:
    sizes: dict[Expression, int] = {}
    products: dict[Expression, Dfa] = {}

    def automaton(node: Expression) -> Dfa:
        return determinize(build_nfa(node, products, symbols), budget)

    def smallest(dfa: Dfa) -> Dfa:
        budget.spend(2 * dfa.size)  # by measured time, beside the steps of other parts
        return minimize(dfa)

    for node in children_first(root):
        if isinstance(node, Intersection | Without):
            is_difference = isinstance(node, Without)
            left, right = automaton(node.left), automaton(node.right)
            # The larger one is mostly a length, and as small as it can be.
            left, right = (smallest(left), right) if left.size < right.size else (left, smallest(right))
            pairs = product(left, right, is_difference=is_difference, budget=budget)
            products[node] = smallest(pairs)
            sizes[node] = products[node].size
        else:
            sizes[node] = nfa_size(node, sizes)
        budget.check_size(sizes[node])
    return products[root] if root in products else smallest(automaton(root))


def _tables(dfa: Dfa, names: list[str]) -> ByteAutomaton:
    table = np.full((len(dfa.edges), NUM_BYTES + len(names)), DEAD, dtype=np.int32)
    for state, edges in enumerate(dfa.edges):
        for low, high, target in edges:
            table[state, low : high + 1] = target
    # A mark whose paths were all trimmed away must not tell this table from an equal language's.
    used = [place for place in range(len(names)) if (table[:, NUM_BYTES + place] != DEAD).any()]
    table = np.ascontiguousarray(table[:, [*range(NUM_BYTES), *(NUM_BYTES + place for place in used)]])
    accepts = np.array(dfa.accepts, dtype=np.bool_)
    table.flags.writeable = accepts.flags.writeable = False
    return ByteAutomaton(next=table, accepts=accepts, marks=tuple(names[place] for place in used))
