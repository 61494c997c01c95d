"""The vocabulary head's fast paths against the definition, and the definition against worked examples."""

import math
from typing import Any

import pytest
import torch

from presswork.ops.vocab_head import EditGroup, LogitEdits, read_vocab
from tests.ops.vocab_head_cases import DTYPES, FAST, ask, assert_agrees, scaled, some_edits, weights

SIZES = ((1, 7, 64), (5, 33, 1000), (90, 16, 1000), (17, 24, 32768 + 3))


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softcap", (None, 30.0))
@pytest.mark.parametrize(("rows", "width", "vocab"), SIZES)
def test_every_reading_agrees_with_the_definition(
    rows: int, width: int, vocab: int, softcap: float | None, dtype: torch.dtype, impl: Any
) -> None:
    hidden, embedding = weights(rows, width, vocab, dtype, spread=2.0)
    assert_agrees(hidden, embedding, impl, ask(rows, vocab, softcap=softcap))


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ordinary_rounded_products_agree_too(dtype: torch.dtype, impl: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(40, 96, generator=generator).to(dtype)
    embedding = (torch.randn(5000, 96, generator=generator) / 4).to(dtype)
    asked = ask(40, 5000, top_logprobs=0)
    expected = read_vocab(hidden, embedding, impl="reference", **asked)
    got = read_vocab(hidden, embedding, impl=impl, **asked)
    assert (got.argmax == expected.argmax).float().mean() > 0.97
    assert (got.sample == expected.sample).float().mean() > 0.95
    torch.testing.assert_close(got.entropy, expected.entropy, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(got.soft_embedding, expected.soft_embedding, rtol=0.02, atol=0.02)


def test_definition_on_a_hand_worked_row() -> None:
    p = torch.tensor([0.1, 0.5, 0.15, 0.25])
    got = read_vocab(
        torch.ones(3, 1), p.log()[:, None], softcap=None, temperature=torch.ones(3), impl="reference",
        uniform=torch.tensor([0.0999, 0.1001, math.nan], dtype=torch.float64), top_logprobs=5,
        token_ids=torch.tensor([[3], [0], [2]]), soft_embedding=True,
    )  # fmt: skip
    assert got.argmax.tolist() == [1, 1, 1]
    assert got.sample.tolist() == [0, 1, 1]
    assert got.topk_ids is not None and got.topk_ids[0].tolist() == [1, 3, 2, 0, -1]
    entropy = -float((p * p.log()).sum())
    torch.testing.assert_close(got.entropy, torch.full((3,), entropy))
    torch.testing.assert_close(got.max_logprob, torch.full((3,), math.log(0.5)))
    torch.testing.assert_close(got.log_normalizer, torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(got.chosen_logprobs, torch.tensor([0.25, 0.1, 0.15]).log()[:, None])
    torch.testing.assert_close(got.soft_embedding, torch.full((3, 1), -entropy))


def test_definition_filters_by_rank_then_by_mass() -> None:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()[:, None]
    cases = [(2, 1.0, {1, 3}), (0, 0.74, {1, 3}), (0, 0.76, {1, 2, 3}), (3, 0.83, {1, 3}), (0, 0.0, {1}), (1, 1.0, {1})]
    for top_k, top_p, kept in cases:
        got = read_vocab(
            torch.ones(1, 1), logits, softcap=None, temperature=torch.ones(1), token_ids=torch.arange(4)[None],
            top_k=torch.tensor([top_k]), top_p=torch.tensor([top_p]), impl="reference",
        )  # fmt: skip
        assert got.chosen_logprobs is not None
        assert {i for i, x in enumerate(got.chosen_logprobs[0].tolist()) if x > -math.inf} == kept
        assert abs(float(got.chosen_logprobs.exp().sum()) - 1) < 1e-6


def test_definition_edits_by_sign_and_bans_last() -> None:
    edits = LogitEdits(
        row_group=torch.tensor([-1, 0]),
        groups=(EditGroup(seen_ids=torch.tensor([0, 1, 1, 3]), repetition_penalty=2.0, banned_ids=torch.tensor([3])),),
    )
    logits = torch.tensor([4.0, -2.0, 1.0, 9.0])
    asked = {"softcap": None, "temperature": torch.full((2,), 0.5), "edits": edits}
    z = scaled(torch.ones(2, 1), logits[:, None], asked)
    assert z.tolist() == [[8.0, -4.0, 2.0, 18.0], [4.0, -8.0, 2.0, -math.inf]]


def test_definition_biases_are_added_after_the_penalty_and_before_the_temperature() -> None:
    group = EditGroup(
        seen_ids=torch.tensor([0, 1]), repetition_penalty=2.0, bias_ids=torch.tensor([2, 0, 3]),
        bias=torch.tensor([-1.5, 1.0, 50.0]), banned_ids=torch.tensor([3]),
    )  # fmt: skip
    edits = LogitEdits(row_group=torch.tensor([-1, 0]), groups=(group,))
    logits = torch.tensor([4.0, -2.0, 1.0, 9.0])
    asked = {"softcap": None, "temperature": torch.full((2,), 0.5), "edits": edits}
    z = scaled(torch.ones(2, 1), logits[:, None], asked)
    assert z.tolist() == [[8.0, -4.0, 2.0, 18.0], [6.0, -8.0, -1.0, -math.inf]]


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", (64, 5000))
def test_edits_of_different_requests_stay_in_their_rows(vocab: int, dtype: torch.dtype, impl: Any) -> None:
    hidden, embedding = weights(23, 9, vocab, dtype)
    edits = some_edits(23, vocab)
    got = assert_agrees(hidden, embedding, impl, ask(23, vocab, edits=edits))
    everything_even_banned = edits.row_group == 2
    assert bool((got.sample[everything_even_banned] % 2 == 1).all())
    assert bool((got.argmax[everything_even_banned] % 2 == 1).all())


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocab", "spread"), ((64, 4.0), (2101, 0.125), (2101, 4.0)))
def test_filters_agree_inside_and_beyond_the_candidates(
    vocab: int, spread: float, dtype: torch.dtype, impl: Any
) -> None:
    """A spread of 1/8 leaves nuclei far wider than the candidates that a sweep keeps, with many ties at their edge."""
    rows = 24
    hidden, embedding = weights(rows, 12, vocab, dtype, spread)
    top_k = torch.tensor([0, 1, 2, 40, 300, vocab + 5]).repeat(4)
    top_p = torch.tensor([1.0, 0.0, 0.31, 0.947]).repeat_interleave(6)
    assert_agrees(hidden, embedding, impl, ask(rows, vocab, top_k=top_k, top_p=top_p, edits=some_edits(rows, vocab)))
    assert_agrees(hidden, embedding, impl, ask(rows, vocab, top_k=top_k, top_logprobs=0))
    assert_agrees(hidden, embedding, impl, ask(rows, vocab, top_p=top_p, uniform=None))


@pytest.mark.parametrize("impl", ("reference", *FAST))
def test_a_nucleus_among_equals_keeps_the_lowest_ids(impl: Any) -> None:
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    got = read_vocab(
        torch.zeros(3, 4), torch.ones(5000, 4), softcap=30.0, temperature=torch.ones(3), uniform=uniform, impl=impl,
        top_k=torch.tensor([0, 4000, 3000]), top_p=torch.tensor([0.5001, 0.50001, 1.0]),
    )  # fmt: skip
    assert got.sample.tolist() == [0, 1000, 2999]
    torch.testing.assert_close(got.entropy.exp(), torch.tensor([2501.0, 2001.0, 3000.0]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("impl", FAST)
def test_ties_go_to_the_lowest_id(impl: Any) -> None:
    """Also where a wide span of logits saturates the softcap."""
    vocab = 9000
    embedding = torch.zeros(vocab, 1)
    embedding[[70, 4100, 8999]] = torch.tensor([[500.0], [900.0], [700.0]])
    got = read_vocab(
        torch.ones(1, 1), embedding, softcap=30.0, temperature=torch.ones(1), top_logprobs=4,
        top_k=torch.tensor([2]), token_ids=torch.tensor([[70, 4100, 8999]]), impl=impl,
    )  # fmt: skip
    assert got.argmax.tolist() == [70]
    assert got.topk_ids is not None and got.topk_ids.tolist() == [[70, 4100, -1, -1]]
    torch.testing.assert_close(got.chosen_logprobs, torch.tensor([[0.5, 0.5, 0.0]]).log())


@pytest.mark.parametrize("impl", ("reference", *FAST))
@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_have_the_frequencies_of_the_distribution(dtype: torch.dtype, impl: Any) -> None:
    """Evenly spaced uniform numbers: every count is its expectation to within one at each end."""
    draws, vocab = 600, 2500
    hidden, embedding = weights(1, 6, vocab, dtype)
    temperature = torch.full((draws,), 0.7)
    even = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    shuffled = even[torch.randperm(draws, generator=torch.Generator().manual_seed(5))]
    got = read_vocab(
        hidden.expand(draws, -1), embedding, softcap=30.0, temperature=temperature, uniform=shuffled, impl=impl
    )  # fmt: skip
    p = scaled(hidden, embedding, {"softcap": 30.0, "temperature": temperature[:1]}).double().softmax(dim=1)[0]
    counts = torch.bincount(got.sample, minlength=vocab)
    assert float((counts - draws * p).abs().max()) <= 1.001


@pytest.mark.parametrize("impl", FAST)
def test_random_samples_pass_a_chi_square_test(impl: Any) -> None:
    draws, vocab = 1500, 64
    hidden, embedding = weights(1, 6, vocab, torch.float32)
    temperature = torch.full((draws,), 1.0)
    uniform = torch.rand(draws, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    got = read_vocab(
        hidden.expand(draws, -1), embedding, softcap=None, temperature=temperature, uniform=uniform, impl=impl
    )  # fmt: skip
    p = scaled(hidden, embedding, {"temperature": temperature[:1]}).double().softmax(dim=1)[0]
    expected = p * draws
    chi_square = float(((torch.bincount(got.sample, minlength=vocab) - expected) ** 2 / expected).sum())
    assert 63 - 5 * math.sqrt(126) < chi_square < 63 + 5 * math.sqrt(126)


@pytest.mark.parametrize("impl", ("reference", *FAST))
def test_the_ends_of_the_unit_interval_draw_possible_tokens(impl: Any) -> None:
    vocab = 4200
    edits = LogitEdits(
        row_group=torch.zeros(3, dtype=torch.int64),
        groups=(EditGroup(banned_ids=torch.cat([torch.arange(130), torch.arange(4000, vocab)])),),
    )
    uniform = torch.tensor([0.0, 1 - 2**-53, math.nan], dtype=torch.float64)
    got = read_vocab(
        torch.ones(3, 1), torch.full((vocab, 1), 0.5), softcap=30.0, temperature=torch.ones(3), uniform=uniform,
        edits=edits, impl=impl,
    )  # fmt: skip
    assert got.sample.tolist() == [130, 3999, 130]


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits_stay_exact(dtype: torch.dtype, impl: Any) -> None:
    """One token with all the mass, products of 8192 and a temperature of 1/128."""
    vocab = 5000
    hidden = torch.tensor([[2.0**13], [-(2.0**13)], [2.0**-13], [0.0]]).to(dtype)
    embedding = torch.linspace(-1, 1, vocab)[torch.randperm(vocab, generator=torch.Generator().manual_seed(2))]
    asked = ask(4, vocab, softcap=None, temperature=torch.tensor([2.0**-7, 1.0, 2.0**-7, 5.0]), soft_embedding=False)
    got = assert_agrees(hidden, embedding[:, None].to(dtype), impl, asked)
    assert bool(got.finite.all())
    assert got.entropy[3].item() == pytest.approx(math.log(vocab), abs=1e-5)
    one_hot = read_vocab(
        torch.ones(1, 1), torch.eye(vocab)[:, 4321:4322] * 300, softcap=None, temperature=torch.ones(1),
        uniform=torch.tensor([0.999], dtype=torch.float64), soft_embedding=True, impl=impl,
    )  # fmt: skip
    assert one_hot.argmax.tolist() == one_hot.sample.tolist() == [4321]
    assert one_hot.entropy.item() == one_hot.max_logprob.item() == 0.0
    torch.testing.assert_close(one_hot.soft_embedding, torch.tensor([[300.0]]))
