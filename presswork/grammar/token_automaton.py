"""From bytes to tokens: an automaton whose edges are sets of tokens, grouped so that few numbers decide a step.

Tokens that lead to the same state from every state form a class; a class is all that the recursions over a canvas
(`presswork/diffusion/constraints`) know of a token. Classes that lead from one state to the same other state form a
group, and edges are between states by groups; groups are shared by all edges that have the same classes.

    bytes:    0 -"-> 1 -a..z-> 1 -"-> 2             (a quoted word)
    tokens:   0 -{", "a, "the, ...}-> 1    1 -{a, the, ...}-> 1    1 -{", s"}-> 2    0 -{"a"}-> 2

S states, C classes, E edges, G groups, V vocabulary.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from presswork.errors import ConstraintError, ConstraintTooLargeError
from presswork.grammar import _lift_kernels as kernels
from presswork.grammar.byte_automaton import ByteAutomaton
from presswork.grammar.vocabulary import TokenTrie, Vocabulary

MAX_STEPS = 1_000_000_000  # trie nodes visited while lifting, as a sample of states foretells
MAX_CLASS_EDGES = 20_000_000  # 160 MB while lifting
_SAMPLE = 64
_WORTH_UNFOLDING = 50_000_000  # trie nodes: half a second
_MAX_UNFOLDING = 50_000_000  # edges looked at to find states that are alike


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenAutomaton:
    """A language over tokens; state 0 is the start, and from every state an accepting one can be reached.

    Args:
        class_of: int32 [V], each token's class, -1 for tokens of no edge.
        num_classes: C.
        edge_starts: int64 [S + 1], edges of state s are edge_starts[s] .. edge_starts[s + 1] - 1, by target.
        edge_group, edge_to: int32 [E].
        group_starts: int64 [G + 1]. group_classes: int32, the classes of each group, ascending.
        accepts: bool [S].
        fewest: int64 [S], tokens of the shortest way to an accepting state.
        most: int64 [S], tokens of the longest way to the end of a text; -1 where there is no longest.
    """

    class_of: np.ndarray
    num_classes: int
    edge_starts: np.ndarray
    edge_group: np.ndarray
    edge_to: np.ndarray
    group_starts: np.ndarray
    group_classes: np.ndarray
    accepts: np.ndarray
    fewest: np.ndarray
    most: np.ndarray

    @property
    def num_states(self) -> int:
        return len(self.accepts)

    def after(self, state: int, token: int) -> int:
        """The state a token leads to, -1 for none."""
        wanted = self.class_of[token] if 0 <= token < len(self.class_of) else -1
        for edge in range(self.edge_starts[state], self.edge_starts[state + 1]) if wanted >= 0 else ():
            group = self.edge_group[edge]
            classes = self.group_classes[self.group_starts[group] : self.group_starts[group + 1]]
            place = np.searchsorted(classes, wanted)
            if place < len(classes) and classes[place] == wanted:
                return int(self.edge_to[edge])
        return -1


def without_tokens(automaton: TokenAutomaton, never: np.ndarray) -> TokenAutomaton:
    """The texts that need none of some tokens: the same automaton where every class keeps a token.

    Args: never: int64, the tokens.
    Raises: ConstraintError where no text is left.
    """
    class_of = automaton.class_of.copy()
    class_of[never[never < len(class_of)]] = -1
    sizes = [np.bincount(of[of >= 0], minlength=automaton.num_classes) for of in (automaton.class_of, class_of)]
    lost = (sizes[0] > 0) & (sizes[1] == 0)
    if not lost.any():
        return automaton
    members, number = [], np.full(len(automaton.group_starts) - 1, -1, np.int32)
    for group, held in enumerate(np.split(automaton.group_classes, automaton.group_starts[1:-1])):
        left = held[~lost[held]]
        if len(left):
            number[group] = len(members)
            members.append(left)
    edge_group = number[automaton.edge_group]
    kept = edge_group >= 0
    sources = np.repeat(np.arange(automaton.num_states), np.diff(automaton.edge_starts))[kept]
    try:
        return _trimmed(
            class_of, automaton.num_classes, sources, edge_group[kept], automaton.edge_to[kept], members,
            automaton.accepts,
        )  # fmt: skip
    except ConstraintError as error:
        raise ConstraintError("the tokens that may be written spell no text of the constraint; allow more") from error


def lift(automaton: ByteAutomaton, vocabulary: Vocabulary) -> TokenAutomaton:
    """The language of an automaton over bytes and marks, over tokens instead.

    Every way to spell a text in tokens is an edge path, not only the tokenizer's own.

    Raises:
        ConstraintError: a mark the tokenizer does not have, or a language that its tokens cannot spell.
        ConstraintTooLargeError: a language too large to lift.
    """
    signature = _signatures(automaton, vocabulary)
    used = np.flatnonzero(signature.any(axis=1))
    distinct, first, inverse = np.unique(signature[used], axis=0, return_index=True, return_inverse=True)
    # In the order of their first pieces, whatever the signatures are.
    order = np.argsort(first)
    class_of_piece = np.full(len(signature) + 1, -1, np.int32)
    class_of_piece[used] = np.argsort(order)[inverse.reshape(-1)]
    class_of = class_of_piece[vocabulary.piece_of]
    sources, classes, targets = _piece_edges(automaton, [vocabulary.pieces[i] for i in used[first[order]]])
    # np.unique sorted the classes, the trie sorts pieces: back to the order of classes.
    for number, name in enumerate(automaton.marks):
        token = vocabulary.marks.get(name)
        if token is None or token >= len(class_of):
            raise ConstraintError(f"the constraint needs the special token {name!r}, which this model does not have")
        class_of[token] = len(distinct) + number
        column = automaton.next[:, 256 + number]
        froms = np.flatnonzero(column >= 0)
        sources = np.concatenate([sources, froms])
        classes = np.concatenate([classes, np.full(len(froms), class_of[token])])
        targets = np.concatenate([targets, column[froms]])
    num_classes = len(distinct) + len(automaton.marks)
    return _grouped(class_of, num_classes, sources, classes, targets, automaton.accepts)


def _signatures(automaton: ByteAutomaton, vocabulary: Vocabulary) -> np.ndarray:
    """uint64 [P, 2]: equal for pieces that every state leads to the same state, zero for those that lead nowhere."""
    following = np.ascontiguousarray(automaton.next[:, :256])
    num_workers = min(os.cpu_count() or 1, 8)
    signature = np.zeros((num_workers, len(vocabulary.pieces), 2), np.uint64)
    if not vocabulary.pieces:
        return signature[0]
    states = np.random.default_rng(0).permutation(len(following))
    sample, rest = states[:_SAMPLE], states[_SAMPLE:]
    with ThreadPoolExecutor(num_workers) as pool:

        def sign(states: np.ndarray) -> int:
            parts = [
                pool.submit(kernels.sign_pieces, following, states[i::num_workers], *vocabulary.trie.arrays, one)
                for i, one in enumerate(signature)
            ]
            return sum(part.result() for part in parts)

        steps = sign(sample) / len(sample)
        if steps * len(rest) > _WORTH_UNFOLDING:
            rest = _unlike(following, rest, int(vocabulary.trie.arrays[1].max()) + 1)
        if steps * len(rest) > MAX_STEPS:
            raise ConstraintTooLargeError(
                f"the constraint has {len(following)} states over a vocabulary of {len(vocabulary.token_bytes)} "
                "tokens, more than can be prepared; shorten the bounds of strings and arrays"
            )
        sign(rest)
    return signature.sum(axis=0)


def _unlike(following: np.ndarray, states: np.ndarray, most_bytes: int) -> np.ndarray:
    """Of states that tell the same pieces apart one; a counted repeat has hundreds of them.

    Args:
        following: int [S, 256].
        most_bytes: of a piece.
    """
    numbers: dict[bytes, int] = {}
    columns = np.ascontiguousarray(following.T)
    for byte, column in enumerate(columns):
        numbers.setdefault(column.tobytes(), byte)
    narrow = np.ascontiguousarray(columns[list(numbers.values())].T)
    signs = np.empty((len(states), 2), np.uint64)
    kernels.sign_states(narrow, states, most_bytes, _MAX_UNFOLDING, signs)
    return states[np.unique(signs, axis=0, return_index=True)[1]]


def _piece_edges(automaton: ByteAutomaton, pieces: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(state, number of the piece, state it leads to) for every piece and state where it leads anywhere."""
    order = sorted(range(len(pieces)), key=pieces.__getitem__)
    following = np.ascontiguousarray(automaton.next[:, :256])
    counts = np.zeros(len(following), np.int64)
    nothing = np.empty(0, np.int64)
    if not pieces:
        return nothing, nothing, nothing
    trie = TokenTrie([pieces[i] for i in order])
    num = kernels.list_edges(following, *trie.arrays, counts, nothing, nothing)
    if num > MAX_CLASS_EDGES:
        raise ConstraintTooLargeError(
            f"the constraint has {num} edges, at most {MAX_CLASS_EDGES} are taken; "
            "shorten the bounds of strings and arrays"
        )
    edge_piece, edge_to = np.empty(num, np.int64), np.empty(num, np.int64)
    kernels.list_edges(following, *trie.arrays, counts, edge_piece, edge_to)
    return np.repeat(np.arange(len(following)), counts), np.array(order)[edge_piece], edge_to


def _grouped(
    class_of: np.ndarray, num_classes: int, sources: np.ndarray, classes: np.ndarray, targets: np.ndarray,
    accepts: np.ndarray,
) -> TokenAutomaton:  # fmt: skip
    """Edges by class as edges by group, states that tokens cannot use left out."""
    order = np.lexsort((classes, targets, sources))
    sources, classes, targets = sources[order], classes[order], targets[order]
    is_first = np.ones(len(sources), bool)
    is_first[1:] = (sources[1:] != sources[:-1]) | (targets[1:] != targets[:-1])
    starts = np.flatnonzero(is_first)
    stops = np.append(starts, len(sources))[1:]
    numbers: dict[bytes, int] = {}
    members: list[np.ndarray] = []
    edge_group = np.empty(len(starts), np.int32)
    narrow = classes.astype(np.int32)
    for edge, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        held = narrow[start:stop]
        number = numbers.setdefault(held.tobytes(), len(members))
        if number == len(members):
            members.append(held)
        edge_group[edge] = number
    return _trimmed(class_of, num_classes, sources[starts], edge_group, targets[starts], members, accepts)


def _trimmed(
    class_of: np.ndarray, num_classes: int, sources: np.ndarray, edge_group: np.ndarray, targets: np.ndarray,
    members: list[np.ndarray], accepts: np.ndarray,
) -> TokenAutomaton:  # fmt: skip
    num = len(accepts)
    fewest = kernels.fewest_steps(starts_of(sources, num), targets, accepts)
    alive = (fewest >= 0) & _reachable(sources, targets, num)
    if not alive[0]:
        raise ConstraintError("no text of the constraint can be spelt with this model's tokens")
    kept = alive[sources] & alive[targets]
    place = np.cumsum(alive) - 1
    sources, targets, edge_group = place[sources[kept]], place[targets[kept]], edge_group[kept]
    edge_starts = starts_of(sources, int(alive.sum()))
    return TokenAutomaton(
        class_of=class_of,
        num_classes=num_classes,
        edge_starts=edge_starts,
        edge_group=edge_group,
        edge_to=targets.astype(np.int32),
        group_starts=np.cumsum([0, *map(len, members)]),
        group_classes=np.concatenate([np.empty(0, np.int32), *members]),
        accepts=accepts[alive],
        fewest=fewest[alive],
        most=kernels.most_steps(edge_starts, targets),
    )


def starts_of(sources: np.ndarray, num: int) -> np.ndarray:
    """int64 [num + 1]: where the edges of each of so many states start, when they stand in order of their sources."""
    return np.concatenate([[0], np.cumsum(np.bincount(sources, minlength=num))])


def _reachable(sources: np.ndarray, targets: np.ndarray, num: int) -> np.ndarray:
    """Which states tokens lead to from the first."""
    is_start = np.zeros(num, bool)
    is_start[0] = True
    order = np.argsort(targets, kind="stable")
    return kernels.fewest_steps(starts_of(targets, num), sources[order], is_start) >= 0
