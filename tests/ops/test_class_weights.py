"""Readings under class weights: the fast paths against the definition, the definition against direct sums."""

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from presswork.errors import RequestError
from presswork.ops.vocab_head import ClassWeights, EditGroup, LogitEdits, Reading, TokenClasses, read_vocab
from tests.ops.class_cases import some_classes
from tests.ops.vocab_head_cases import DTYPES, FAST, ask, assert_agrees, rounding, rows_of, scaled, some_edits, weights

IMPLS = ("reference", *FAST)
SIZES = ((1, 7, 64, 3), (5, 33, 1000, 40), (90, 16, 5000, 700), (17, 24, 32768 + 3, 2500))


def some_weights(rows: int, classes: TokenClasses, restricted: bool = False) -> ClassWeights:
    """A third of the classes off in each row, the others 60 nats apart; all but class 0 off in every fifth row."""
    shape = (rows, classes.num_classes)
    generator = torch.Generator().manual_seed(rows)
    log_weight = torch.randint(-240, 240, shape, generator=generator).double() / 8 - 1000
    log_weight[torch.rand(shape, generator=generator) < 0.33] = -math.inf
    log_weight[:, 0] = -1000
    log_weight[4::5, 1:] = -math.inf
    wanted = torch.full((rows,), -1)
    if restricted:
        wanted = torch.randint(-1, classes.num_classes, (rows,), generator=generator)
        wanted[::3] = 0
    return ClassWeights(classes=classes, log_weight=log_weight, sample_class=wanted)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("living", (0.05, 0.8))
@pytest.mark.parametrize(("rows", "width", "vocab", "num_classes"), SIZES)
def test_every_reading_agrees_with_the_definition(
    rows: int, width: int, vocab: int, num_classes: int, living: float, dtype: torch.dtype, impl: Any
) -> None:
    hidden, embedding = weights(rows, width, vocab, dtype, spread=2.0)
    class_weights = some_weights(rows, some_classes(vocab, num_classes, living))
    assert_agrees(hidden, embedding, impl, ask(rows, vocab, class_weights=class_weights))
    plain = ask(rows, vocab, class_weights=class_weights, top_logprobs=0, token_ids=None)
    assert_agrees(hidden, embedding, impl, plain)
    assert_agrees(hidden, embedding, impl, plain | {"edits": some_edits(rows, vocab), "softcap": None})


def test_definition_on_a_hand_worked_row() -> None:
    classes = TokenClasses(class_of=torch.tensor([0, 1, -1, 1]), num_classes=3)
    log_weight = torch.tensor([3.0, 1.0, 9.0]).log()[None]
    got = read_vocab(
        torch.ones(1, 1), torch.tensor([0.1, 0.5, 0.15, 0.25]).log()[:, None], softcap=None, temperature=torch.ones(1),
        class_weights=ClassWeights(classes=classes, log_weight=log_weight, sample_class=torch.tensor([0])),
        token_ids=torch.arange(4)[None], impl="reference", uniform=torch.tensor([0.999], dtype=torch.float64),
    )  # fmt: skip
    assert got.chosen_logprobs is not None
    p = torch.tensor([0.3, 0.5, 0.0, 0.25]) / 1.05
    torch.testing.assert_close(got.chosen_logprobs[0].exp(), p)
    torch.testing.assert_close(got.log_normalizer, torch.tensor([math.log(1.05)]))
    torch.testing.assert_close(got.entropy, torch.special.entr(p).sum()[None])
    assert got.argmax.tolist() == [1] and got.sample.tolist() == [0]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("restricted", (False, True))
def test_no_weight_on_one_class_changes_nothing(restricted: bool, dtype: torch.dtype, impl: Any) -> None:
    hidden, embedding = weights(40, 16, 5001, dtype)
    classes = TokenClasses(class_of=torch.zeros(5001, dtype=torch.int32), num_classes=1)
    wanted = torch.full((40,), 0 if restricted else -1)
    none = ClassWeights(classes=classes, log_weight=torch.zeros(40, 1), sample_class=wanted)
    for asked in (ask(40, 5001), ask(40, 5001, token_ids=None, top_logprobs=0, edits=some_edits(40, 5001))):
        plain = read_vocab(hidden, embedding, impl=impl, **asked)
        got = read_vocab(hidden, embedding, impl=impl, **asked, class_weights=none)
        assert torch.equal(got.argmax, plain.argmax) and torch.equal(got.sample, plain.sample)
        for f in fields(Reading):
            if getattr(plain, f.name) is not None:
                torch.testing.assert_close(getattr(got, f.name), getattr(plain, f.name), msg=f.name)


def even_draws(draws: int) -> Tensor:
    even = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    return even[torch.randperm(draws, generator=torch.Generator().manual_seed(5))]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wanted", (-1, 0, 2, 3))
def test_samples_have_the_frequencies_of_the_class(wanted: int, dtype: torch.dtype, impl: Any) -> None:
    """Class 3 lies 400 nats below class 0, where its part of the row's distribution is nothing at all."""
    draws, vocab = 600, 4500
    hidden, embedding = weights(1, 6, vocab, dtype)
    classes = some_classes(vocab, 6)
    log_weight = torch.tensor([0.0, 5.0, 2.0, -400.0, -math.inf, 1.0]).expand(draws, -1)
    class_weights = ClassWeights(classes=classes, log_weight=log_weight, sample_class=torch.full((draws,), wanted))
    asked = {"softcap": 30.0, "temperature": torch.full((draws,), 0.7), "class_weights": class_weights}
    uniform = even_draws(draws)
    got = read_vocab(hidden.expand(draws, -1), embedding, uniform=uniform, impl=impl, **asked)
    z = scaled(hidden.expand(draws, -1), embedding, asked)[0]
    if wanted >= 0:
        z = z.masked_fill(classes.class_of != wanted, -math.inf)
    counts = torch.bincount(got.sample, minlength=vocab)
    assert float((counts - draws * z.softmax(dim=0)).abs().max()) <= 1.001
    assert wanted < 0 or bool((classes.class_of[got.sample] == wanted).all())


@pytest.mark.parametrize("impl", IMPLS)
def test_a_class_is_drawn_from_tiles_without_any_mass(impl: Any) -> None:
    """Its tokens are 200 nats below the first tile's, and read long after it; so is the rest of their tiles."""
    draws, vocab = 200, 12 * 2048
    embedding = torch.zeros(vocab, 1)
    embedding[:2048] = 200.0
    own = torch.tensor([20_500, 22_000, 24_000])
    embedding[own, 0] = torch.tensor([1.0, 2.0, 3.0])
    class_of = torch.zeros(vocab, dtype=torch.int32)
    class_of[own] = 1
    class_weights = ClassWeights(
        classes=TokenClasses(class_of=class_of, num_classes=2),
        log_weight=torch.zeros(draws, 2),
        sample_class=torch.ones(draws, dtype=torch.int64),
    )
    got = read_vocab(
        torch.ones(draws, 1), embedding, softcap=None, temperature=torch.ones(draws), uniform=even_draws(draws),
        class_weights=class_weights, impl=impl,
    )  # fmt: skip
    expected = draws * embedding[own, 0].softmax(dim=0)
    counts = torch.bincount(got.sample, minlength=vocab)[own]
    assert float((counts - expected).abs().max()) <= 1.001
    assert got.argmax.unique().tolist() == [0]


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("edited", (False, True))
def test_samples_stay_inside_their_class(edited: bool, dtype: torch.dtype, impl: Any) -> None:
    """The same token as the definition draws, or a neighbour where the uniform number falls on a border."""
    rows, vocab = 90, 9000
    hidden, embedding = weights(rows, 9, vocab, dtype, spread=8.0)
    class_weights = some_weights(rows, some_classes(vocab, 30), restricted=True)
    asked = ask(rows, vocab, class_weights=class_weights, token_ids=None, top_logprobs=0)
    if edited:
        asked["edits"] = some_edits(rows, vocab)
    for uniform in (asked["uniform"], None):
        asked["uniform"] = uniform
        expected = read_vocab(hidden, embedding, impl="reference", **asked)
        got = read_vocab(hidden, embedding, impl=impl, **asked)
        class_of = class_weights.classes.class_of
        assert torch.equal(class_of[got.sample], class_of[expected.sample])
        assert (got.sample == expected.sample).float().mean() > 0.97
        assert torch.equal(got.argmax, expected.argmax)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("uniform", (0.4, math.nan))
def test_a_sample_class_without_tokens_gives_the_arg_max(uniform: float, impl: Any) -> None:
    """Weight minus infinity, every token banned, no token at all; and without a uniform number the class's best."""
    classes = TokenClasses(class_of=torch.tensor([0, 0, 1, 1, 2, -1]), num_classes=4)
    log_weight = torch.tensor([[0.0, 0, 0, 0], [0, 0, -math.inf, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    edits = LogitEdits(row_group=torch.tensor([-1, -1, 0, -1]), groups=(EditGroup(banned_ids=torch.tensor([4])),))
    got = read_vocab(
        torch.ones(4, 1), torch.tensor([0.0, 1, 9, 0, 3, 20])[:, None], softcap=None, temperature=torch.ones(4),
        uniform=torch.full((4,), uniform, dtype=torch.float64), edits=edits, impl=impl,
        class_weights=ClassWeights(classes=classes, log_weight=log_weight, sample_class=torch.tensor([2, 2, 2, 3])),
    )  # fmt: skip
    assert got.argmax.tolist() == [2, 2, 2, 2]
    assert got.sample.tolist() == [4, 2, 2, 2]
    class_weights = ClassWeights(classes=classes, log_weight=log_weight[:1], sample_class=torch.tensor([0]))
    best = read_vocab(
        torch.ones(1, 1), torch.tensor([0.0, 1, 9, 0, 3, 20])[:, None], softcap=None, temperature=torch.ones(1),
        class_weights=class_weights, impl=impl,
    )  # fmt: skip
    assert best.sample.tolist() == [1]


@pytest.mark.parametrize("impl", IMPLS)
def test_rows_without_any_token_left_are_marked(impl: Any) -> None:
    hidden, embedding = weights(3, 8, 3000, torch.float32)
    classes = some_classes(3000, 5)
    class_weights = some_weights(3, classes)
    class_weights.log_weight[1] = -math.inf
    got = read_vocab(hidden, embedding, impl=impl, **ask(3, 3000, class_weights=class_weights))
    assert got.finite.tolist() == [True, False, True]
    assert got.sample[1] == 0 and bool(got.entropy[1].isnan())


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("softcap", (None, 30.0))
def test_only_tokens_in_a_class_can_spoil_a_row(softcap: float | None, impl: Any) -> None:
    """In a tile with other tokens and in one without."""
    vocab = 7000
    hidden, embedding = weights(2, 8, vocab, torch.float32)
    class_of = some_classes(vocab, 9).class_of.clone()
    class_of[2048:4096] = -1
    class_of[[10, 5000]] = -1
    class_of[20] = 4
    classes = TokenClasses(class_of=class_of, num_classes=9)
    asked = ask(2, vocab, class_weights=some_weights(2, classes), token_ids=None, soft_embedding=False, softcap=softcap)
    clean = read_vocab(hidden, embedding, impl=impl, **asked)
    embedding[10], embedding[3000], embedding[5000] = math.nan, math.inf, -math.inf
    got = read_vocab(hidden, embedding, impl=impl, **asked)
    assert bool(got.finite.all()) and torch.equal(got.entropy, clean.entropy) and torch.equal(got.sample, clean.sample)
    embedding[20, 0] = math.nan
    assert not bool(read_vocab(hidden, embedding, impl=impl, **asked).finite.any())


@pytest.mark.parametrize("dtype", DTYPES)
def test_company_and_threads_change_nothing(dtype: torch.dtype, several_threads: Any) -> None:
    rows, vocab = 90, 32771
    hidden, embedding = rounding(rows, 40, vocab, dtype)
    hidden[::2] *= 8
    class_weights = some_weights(rows, some_classes(vocab, 300), restricted=True)
    asked = ask(rows, vocab, top_logprobs=0, token_ids=None, class_weights=class_weights)
    with several_threads(2):
        crowd = read_vocab(hidden, embedding, impl="tiled", **asked)
    with several_threads(1):
        single = read_vocab(hidden, embedding, impl="tiled", **asked)
    for f in fields(Reading):
        if getattr(crowd, f.name) is not None:
            assert torch.equal(getattr(crowd, f.name), getattr(single, f.name)), f.name
    for row in (0, 41, 89):
        part = slice(row, row + 1)
        alone_asked = rows_of(asked, part) | {"class_weights": class_weights.select(part)}
        alone = read_vocab(hidden[part], embedding, impl="tiled", **alone_asked)
        for name in ("argmax", "sample", "entropy", "log_normalizer"):
            assert torch.equal(getattr(alone, name)[0], getattr(crowd, name)[row]), name


@pytest.mark.parametrize(
    ("changes", "words"),
    (
        ({"sample_class": torch.zeros(2, dtype=torch.int64)}, "sample_class needs"),
        ({"sample_class": torch.tensor([0, 1, 4])}, "sample_class reaches"),
        ({"log_weight": torch.zeros(3, 5)}, "log_weight"),
        ({"classes": TokenClasses(class_of=torch.zeros(63, dtype=torch.int32), num_classes=4)}, "63 tokens"),
    ),
)
def test_weights_that_do_not_fit_are_named(changes: dict[str, Any], words: str) -> None:
    hidden, embedding = weights(3, 8, 64, torch.float32)
    fitting = some_weights(3, some_classes(64, 4))
    given = {f.name: getattr(fitting, f.name) for f in fields(ClassWeights)} | changes
    with pytest.raises(RequestError, match=words):
        read_vocab(hidden, embedding, **ask(3, 64, class_weights=ClassWeights(**given)))


@pytest.mark.parametrize("name", ("top_k", "top_p"))
def test_weights_and_filters_exclude_each_other(name: str) -> None:
    hidden, embedding = weights(3, 8, 64, torch.float32)
    class_weights = some_weights(3, some_classes(64, 4))
    with pytest.raises(RequestError, match="together with top_k or top_p"):
        read_vocab(hidden, embedding, **ask(3, 64, class_weights=class_weights, **{name: torch.ones(3).long()}))
