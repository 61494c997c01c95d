"""Reading classes of tokens: the fast paths against the definition, the definition against direct sums."""

import math
from typing import Any

import pytest
import torch

from presswork.ops.vocab_head import EditGroup, LogitEdits, TokenClasses, read_classes, read_vocab
from tests.ops.class_cases import assert_classes_agree, some_classes
from tests.ops.vocab_head_cases import DTYPES, FAST, SLACK, scaled, some_edits, temperatures, weights

SIZES = ((1, 7, 64, 3), (5, 33, 1000, 40), (90, 16, 5000, 700), (300, 8, 2100, 90), (17, 24, 32768 + 3, 2500))
IMPLS = ("reference", *FAST)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("living", (0.05, 0.8))
@pytest.mark.parametrize(("rows", "width", "vocab", "num_classes"), SIZES)
def test_every_class_agrees_with_the_definition(
    rows: int, width: int, vocab: int, num_classes: int, living: float, dtype: torch.dtype, impl: Any
) -> None:
    hidden, embedding = weights(rows, width, vocab, dtype, spread=2.0)
    classes = some_classes(vocab, num_classes, living)
    asked = {"softcap": None if vocab == 5000 else 30.0, "temperature": temperatures(rows)}
    assert_classes_agree(hidden, embedding, classes, impl, asked)


@pytest.mark.parametrize("dtype", DTYPES)
def test_definition_against_sums_over_one_class_at_a_time(dtype: torch.dtype) -> None:
    hidden, embedding = weights(4, 9, 200, dtype)
    classes = some_classes(200, 12)
    asked = {"softcap": 30.0, "temperature": temperatures(4)}
    got = read_classes(hidden, embedding, classes=classes, impl="reference", **asked)
    z = scaled(hidden, embedding, asked).double()
    for i in range(4):
        for c in range(12):
            own = [(float(z[i, v]), v) for v in range(200) if classes.class_of[v] == c]
            if not own:
                assert got.log_mass[i, c] == -math.inf and got.best[i, c] == -1 and got.mean[i, c] == 0
                continue
            mass = sum(math.exp(x) for x, _ in own)
            assert float(got.log_mass[i, c]) == pytest.approx(math.log(mass), abs=1e-9)
            assert float(got.mean[i, c]) == pytest.approx(sum(math.exp(x) / mass * x for x, _ in own), abs=1e-9)
            assert int(got.best[i, c]) == min(v for x, v in own if x == max(own)[0])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("vocab", (64, 5000))
def test_a_class_far_below_the_best_keeps_its_mass(vocab: int, impl: Any) -> None:
    """300 nats apart, where float32 and even the other class's float64 sums know nothing of it."""
    ids = torch.arange(vocab)
    low = 0.01 * (ids % 7)
    embedding = torch.where(ids % 2 == 0, 300.0 + low, low)[:, None]
    classes = TokenClasses(class_of=(ids % 2).int(), num_classes=2)
    got = read_classes(
        torch.ones(1, 1), embedding, softcap=None, temperature=torch.ones(1), classes=classes, impl=impl
    )  # fmt: skip
    z = embedding[:, 0].double()
    for c in (0, 1):
        own = z[c::2]
        assert float(got.log_mass[0, c]) == pytest.approx(float(own.logsumexp(0)), abs=1e-6)
        assert float(got.mean[0, c]) == pytest.approx(float((own.softmax(0) * own).sum()), abs=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_gaps_inside_a_class_are_sums_too(impl: Any) -> None:
    """Tops that rise and fall by hundreds of nats from one token, piece and tile to the next."""
    vocab = 6000
    z = torch.randint(-400, 400, (vocab,), generator=torch.Generator().manual_seed(1)).float()
    classes = some_classes(vocab, 50)
    assert_classes_agree(
        torch.ones(2, 1), z[:, None], classes, impl, {"softcap": None, "temperature": torch.tensor([1.0, 7.0])}
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_class_of_all_tokens_is_the_whole_distribution(dtype: torch.dtype, impl: Any) -> None:
    hidden, embedding = weights(20, 16, 5001, dtype)
    asked: dict[str, Any] = {"softcap": 30.0, "temperature": temperatures(20), "edits": some_edits(20, 5001)}
    classes = TokenClasses(class_of=torch.zeros(5001, dtype=torch.int32), num_classes=1)
    got = read_classes(hidden, embedding, classes=classes, impl=impl, **asked)
    whole = read_vocab(hidden, embedding, impl=impl, **asked)
    torch.testing.assert_close(got.log_mass[:, 0].float(), whole.log_normalizer, rtol=0, atol=SLACK)
    torch.testing.assert_close((got.log_mass - got.mean)[:, 0].float(), whole.entropy, rtol=0, atol=SLACK)
    assert torch.equal(got.best[:, 0], whole.argmax)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("living", (0.1, 0.9))
def test_edits_reach_only_their_rows(living: float, dtype: torch.dtype, impl: Any) -> None:
    hidden, embedding = weights(23, 9, 5000, dtype)
    asked = {"softcap": 30.0, "temperature": temperatures(23), "edits": some_edits(23, 5000)}
    got = assert_classes_agree(hidden, embedding, some_classes(5000, 60, living), impl, asked)
    even_banned = asked["edits"].row_group == 2
    assert bool((got.best[even_banned] % 2 != 0).all())


@pytest.mark.parametrize("impl", IMPLS)
def test_a_class_whose_tokens_are_all_banned_is_empty(impl: Any) -> None:
    class_of = (torch.arange(300) % 3).int()
    edits = LogitEdits(row_group=torch.tensor([0, -1]), groups=(EditGroup(banned_ids=torch.arange(1, 300, 3)),))
    hidden, embedding = weights(2, 8, 300, torch.float32)
    got = read_classes(
        hidden, embedding, softcap=30.0, temperature=torch.ones(2), edits=edits, impl=impl,
        classes=TokenClasses(class_of=class_of, num_classes=3),
    )  # fmt: skip
    assert (got.log_mass == -math.inf).tolist() == [[False, True, False], [False] * 3]
    assert got.best[0, 1] == -1 and got.mean[0, 1] == 0 and got.top[0, 1] == -math.inf
    assert bool(got.finite.all())


@pytest.mark.parametrize("impl", IMPLS)
def test_ties_go_to_the_lowest_id_of_the_class(impl: Any) -> None:
    """Whichever of whole tiles and gathered tokens is read first."""
    vocab = 9000
    embedding = torch.zeros(vocab, 1)
    embedding[[70, 2050, 2100, 4100, 8999]] = 500.0
    class_of = torch.full((vocab,), -1, dtype=torch.int32)
    class_of[[70, 90, 8999]] = 1
    class_of[2048:6144] = 0
    class_of[2050] = 1
    got = read_classes(
        torch.ones(1, 1), embedding, softcap=30.0, temperature=torch.ones(1), impl=impl,
        classes=TokenClasses(class_of=class_of, num_classes=2),
    )  # fmt: skip
    assert got.best.tolist() == [[2100, 70]]
    assert got.top.tolist() == [[30.0, 30.0]]


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("class_of", ([-1] * 90, [0] + [-1] * 89))
def test_classes_may_be_all_or_nearly_empty(class_of: list[int], impl: Any) -> None:
    hidden, embedding = weights(3, 8, 90, torch.float32)
    classes = TokenClasses(class_of=torch.tensor(class_of), num_classes=4)
    assert_classes_agree(hidden, embedding, classes, impl, {"softcap": 30.0, "temperature": torch.ones(3)})
