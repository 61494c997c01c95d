"""Recursions over a canvas, against every canvas written out and against the plain recursions."""

import itertools

import numpy as np
import pytest

from presswork.diffusion.constraints import reference
from presswork.diffusion.constraints.automaton import CanvasAutomaton, close, leave_open
from presswork.diffusion.constraints.conditioned import Conditioned, condition
from presswork.errors import ConstraintError, GenerationError
from presswork.grammar.byte_automaton import ByteAutomaton
from presswork.grammar.token_automaton import TokenAutomaton, lift
from presswork.grammar.vocabulary import Vocabulary

TOKENS = [b"", b"a", b"b", b"ab", b"ba", b"aab", b"a", b"", b"c"]
END, PAD = 0, 7


def vocabulary() -> Vocabulary:
    return Vocabulary(TOKENS, {})


def random_language(seed: int) -> ByteAutomaton:
    """A few states over a and b, every state reachable and able to accept."""
    rng = np.random.default_rng(seed)
    while True:
        num = int(rng.integers(1, 5))
        following = np.full((num, 256), -1, np.int32)
        following[:, [ord("a"), ord("b")]] = rng.integers(-1, num, (num, 2))
        accepts = rng.random(num) < 0.4
        reach, back = {0}, set(np.flatnonzero(accepts))
        for _ in range(num):
            reach |= {int(t) for s in reach for t in following[s] if t >= 0}
            back |= {s for s in range(num) for t in following[s] if t in back}
        if reach == back == set(range(num)):
            return ByteAutomaton(next=following, accepts=accepts, marks=())


def accepts(language: ByteAutomaton, text: bytes) -> bool:
    state = 0
    for byte in text:
        state = language.next[state, byte] if state >= 0 else -1
    return state >= 0 and bool(language.accepts[state])


def canvases(language: ByteAutomaton, length: int, tokens_left: int = 0) -> list[tuple[int, ...]]:
    """Every canvas of a language, by definition: text up to the first end token, then ends and padding."""
    found = []
    for ids in itertools.product(range(len(TOKENS)), repeat=length):
        body = list(itertools.takewhile(lambda token: token != END, ids))
        tail = ids[len(body) + 1 :]
        if any(not TOKENS[token] for token in body) or any(token not in (END, PAD) for token in tail):
            continue
        text = b"".join(TOKENS[token] for token in body)
        more = [b"".join(p) for n in range(tokens_left) for p in itertools.product(TOKENS[1:7], repeat=n)]
        # Behind a full canvas come the rest of the text and an end token.
        endings = [b""] if len(body) < length else more
        if any(accepts(language, text + ending) for ending in endings):
            found.append(ids)
    return found


def masses(automaton: CanvasAutomaton, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(log-mass, largest logit) of each class from logits [L, V]."""
    mass = np.full((len(z), automaton.num_classes), -np.inf)
    top = np.full(mass.shape, -np.inf, np.float32)
    for token, c in enumerate(automaton.class_of):
        if c >= 0:
            mass[:, c] = np.logaddexp(mass[:, c], z[:, token])
            top[:, c] = np.maximum(top[:, c], z[:, token])
    return mass, top


def edges(automaton: CanvasAutomaton) -> list[reference.Edge]:
    listed = []
    for state in range(automaton.tail + 1):
        for e in range(automaton.edge_starts[state], automaton.edge_starts[state + 1]):
            g = automaton.edge_group[e]
            for c in automaton.group_classes[automaton.group_starts[g] : automaton.group_starts[g + 1]]:
                listed.append((state, int(c), int(automaton.edge_to[e])))
    return listed


def made(seed: int, length: int, spread: float = 3.0) -> tuple[ByteAutomaton, CanvasAutomaton, np.ndarray]:
    language = random_language(seed)
    automaton = close(lift(language, vocabulary()), len(TOKENS), {END}, {PAD})
    z = np.random.default_rng(1000 + seed).normal(0, spread, (length, len(TOKENS)))
    return language, automaton, z


def conditioned(automaton: CanvasAutomaton, z: np.ndarray, tokens_left: int = 0, seed: int = 0) -> Conditioned:
    uniform = np.random.default_rng(seed).random(len(z))
    return condition(automaton, 0, *masses(automaton, z), uniform, automaton.finals(tokens_left))


@pytest.mark.parametrize("seed", range(12))
def test_where_nothing_ends_a_text_it_has_exactly_the_tokens_that_are_left(seed: int) -> None:
    language = random_language(seed)
    automaton = leave_open(lift(language, vocabulary()), len(TOKENS))
    following = [set[int]() for _ in range(automaton.tail + 1)]
    for state, _, to in edges(automaton):
        following[state].add(to)
    reached = [{state} for state in range(automaton.tail)]
    for tokens_left in range(7):
        expected = [any(automaton.text.accepts[end] for end in ends) for ends in reached]
        assert automaton.alive_before({}, tokens_left)[:-1].tolist() == expected
        reached = [{to for state in ends for to in following[state]} for ends in reached]


@pytest.mark.parametrize("tokens_left", [0, 2])
@pytest.mark.parametrize("seed", range(12))
def test_masses_and_marginals_are_those_of_all_canvases_written_out(seed: int, tokens_left: int) -> None:
    language, automaton, z = made(seed, 4)
    members = canvases(language, 4, tokens_left)
    if not members:
        with pytest.raises(GenerationError, match="no text of the constraint"):
            conditioned(automaton, z, tokens_left)
        return
    ids = np.array(members)
    scores = z[np.arange(4), ids].sum(axis=1)
    total = np.logaddexp.reduce(scores)
    found = conditioned(automaton, z, tokens_left)
    assert abs(found.log_mass - total) < 1e-9
    wanted = np.zeros_like(found.weights)
    for i in range(4):
        np.add.at(wanted[i], automaton.class_of[ids[:, i]], np.exp(scores - total))
    np.testing.assert_allclose(found.weights, wanted, atol=1e-9, rtol=0)
    best = ids[np.argmax(scores)]
    assert found.best.tolist() == automaton.class_of[best].tolist()


@pytest.mark.parametrize("spread", [1.0, 400.0, 1e9, 1e16, 1e20, 1e35])
@pytest.mark.parametrize("seed", range(6))
def test_compiled_recursions_are_the_plain_ones_over_long_canvases_and_wide_ranges(seed: int, spread: float) -> None:
    _, automaton, z = made(seed, 30, spread)
    mass, top = masses(automaton, z)
    listed, final = edges(automaton), automaton.finals(0)
    expected = reference.backward(mass, listed, final)[0, 0]
    if expected == -np.inf:
        pytest.skip("this language has no text of 30 tokens or fewer")
    found = conditioned(automaton, z)
    assert found.log_mass == pytest.approx(expected, rel=1e-12, abs=1e-9)
    best = reference.best_path(top, listed, 0, final)[1]
    assert found.best.tolist() == best
    # Logarithms of 10^10 have few digits behind the point, and larger ones none; temperatures near 0 make such ones.
    if spread < 1e12:
        atol = 1e-4 if spread > 1e6 else 1e-9
        np.testing.assert_allclose(found.weights, reference.class_weights(mass, listed, 0, final), atol=atol, rtol=0)
    else:
        np.testing.assert_allclose(found.weights[np.arange(30), best], 1.0)
        assert found.sampled.tolist() == best


def test_terms_that_a_positions_units_lose_are_counted() -> None:
    # aa, bb or bca. Behind b both texts are 2^-1000 or so of the one behind a; b itself makes up for it.
    following = np.full((5, 256), -1, np.int32)
    for state, byte, to in ((0, "a", 1), (0, "b", 2), (1, "a", 3), (2, "b", 3), (2, "c", 4), (4, "a", 3)):
        following[state, ord(byte)] = to
    language = ByteAutomaton(next=following, accepts=np.array([False, False, False, True, False]), marks=())
    automaton = close(lift(language, vocabulary()), len(TOKENS), {END}, {PAD})
    z = np.full((4, len(TOKENS)), -np.inf)
    two, (a, b, c) = np.log(2), (1, 2, 8)
    z[0, [a, b]] = -1009 * two, 0.0
    z[1, [a, b, c]] = 0.0, -998.5 * two, -1000.5 * two
    z[2, [a, END]], z[3, END] = 0.0, 0.0
    found = conditioned(automaton, z)
    expected = np.array([2.0**-10.5, 1.0, 2.0**-2])
    np.testing.assert_allclose(found.weights[1, automaton.class_of[[a, b, c]]], expected / expected.sum(), rtol=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_tokens_ruled_out_at_some_positions_come_back_at_others(seed: int) -> None:
    _, automaton, z = made(seed, 12)
    mass, top = masses(automaton, z)
    # The same classes for three positions on end, then others.
    banned = np.random.default_rng(seed).random((4, mass.shape[1])).repeat(3, axis=0) < 0.4
    mass[banned], top[banned] = -np.inf, -np.inf
    listed, final = edges(automaton), automaton.finals(3)
    args = (automaton, 0, mass, top, np.random.default_rng(seed).random(12), final)
    if reference.backward(mass, listed, final)[0, 0] == -np.inf:
        with pytest.raises(GenerationError, match="no text of the constraint"):
            condition(*args)
        return
    found = condition(*args)
    np.testing.assert_allclose(found.weights, reference.class_weights(mass, listed, 0, final), atol=1e-9, rtol=0)
    assert found.best.tolist() == reference.best_path(top, listed, 0, final)[1]
    assert (found.weights[np.arange(12), found.sampled] > 0).all()


def test_samples_are_as_frequent_as_the_canvases_are_probable() -> None:
    language, automaton, z = made(1, 4, 1.0)
    members = canvases(language, 4)
    classes = automaton.class_of[np.array(members)]
    scores = z[np.arange(4), np.array(members)].sum(axis=1)
    p: dict[tuple[int, ...], float] = {}
    for row, weight in zip(classes.tolist(), np.exp(scores - np.logaddexp.reduce(scores)), strict=True):
        p[tuple(row)] = p.get(tuple(row), 0.0) + weight
    num = 20_000
    counts = dict.fromkeys(p, 0)
    mass, top = masses(automaton, z)
    uniform = np.random.default_rng(5).random((num, 4))
    left = []
    for numbers in uniform:
        found = condition(automaton, 0, mass, top, numbers, automaton.finals(0))
        counts[tuple(found.sampled.tolist())] += 1
        left.append(found.uniform)
    assert len(p) > 5
    for row, share in p.items():
        assert abs(counts[row] / num - share) < 5 * np.sqrt(share * (1 - share) / num) + 1e-12
    # What is left of the numbers is uniform too.
    rest = np.sort(np.concatenate(left))
    assert np.abs(rest - (np.arange(len(rest)) + 0.5) / len(rest)).max() < 1.95 / np.sqrt(len(rest))


def test_without_random_numbers_the_sample_is_the_best_canvas() -> None:
    _, automaton, z = made(1, 5)
    found = condition(automaton, 0, *masses(automaton, z), np.full(5, np.nan), automaton.finals(0))
    assert found.sampled.tolist() == found.best.tolist()


@pytest.mark.parametrize("seed", range(8))
def test_alive_states_are_those_from_which_a_canvas_with_the_pins_exists(seed: int) -> None:
    language, automaton, _ = made(seed, 3)
    members = canvases(language, 3)
    for position, token in itertools.product(range(3), range(len(TOKENS))):
        exists = any(ids[position] == token for ids in members)
        assert automaton.alive_before({position: token}, 3)[0] == exists


def test_an_end_token_that_is_text_of_the_language_is_refused() -> None:
    following = np.full((1, 256), -1, np.int32)
    following[0, ord("a")] = 0
    text: TokenAutomaton = lift(ByteAutomaton(next=following, accepts=np.array([True]), marks=()), vocabulary())
    with pytest.raises(ConstraintError, match="token 1 both ends a text and is part"):
        close(text, len(TOKENS), {END, 1}, {PAD})
