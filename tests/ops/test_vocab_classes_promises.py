"""What reading classes promises beside its numbers: isolation of rows, threads, clear refusals."""

import math
from dataclasses import fields
from typing import Any

import pytest
import torch

from presswork.errors import ConfigError, RequestError
from presswork.ops.vocab_head import ClassReading, TokenClasses, read_classes
from presswork.ops.vocab_head.classes import CROWDED, NARROW, PIECE, TILE
from tests.ops.class_cases import assert_classes_agree, some_classes
from tests.ops.vocab_head_cases import DTYPES, FAST, SLACK, some_edits, temperatures, weights

IMPLS = ("reference", *FAST)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", (math.nan, math.inf, -math.inf))
def test_a_row_that_is_not_finite_spoils_only_itself(poison: float, dtype: torch.dtype, impl: Any) -> None:
    hidden, embedding = weights(5, 8, 3000, dtype)
    classes = some_classes(3000, 20)
    asked: dict[str, Any] = {"softcap": 30.0, "temperature": temperatures(5), "classes": classes, "impl": impl}
    clean = read_classes(hidden, embedding, **asked)
    hidden[1], hidden[2, 3] = poison, poison
    got = read_classes(hidden, embedding, **asked)
    assert got.finite.tolist() == [True, False, False, True, True]
    for f in fields(ClassReading):
        ours, right = getattr(got, f.name), getattr(clean, f.name)
        assert torch.equal(ours[got.finite], right[got.finite]), f.name
        if f.name in ("best", "finite"):
            assert not ours[1:3].any(), f.name
        else:
            assert bool(ours[1:3].isnan().all()), f.name


@pytest.mark.parametrize("impl", IMPLS)
def test_tokens_in_no_class_cannot_spoil_a_row(impl: Any) -> None:
    """In a tile that is multiplied whole, and in one whose living tokens are gathered."""
    hidden, embedding = weights(2, 8, 5000, torch.float32)
    class_of = some_classes(5000, 9).class_of.clone()
    class_of[2048:4000] = -1
    class_of[10] = -1
    embedding[10], embedding[3000] = math.nan, math.inf
    classes = TokenClasses(class_of=class_of, num_classes=9)
    asked: dict[str, Any] = {"softcap": 30.0, "temperature": temperatures(2), "impl": impl}
    got = read_classes(hidden, embedding, classes=classes, **asked)
    assert bool(got.finite.all()) and not bool(got.log_mass.isnan().any())
    class_of[3000] = 3
    spoilt = read_classes(hidden, embedding, classes=TokenClasses(class_of=class_of, num_classes=9), **asked)
    assert not bool(spoilt.finite.any())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("living", (0.1, 0.9))
def test_company_and_threads_change_nothing(living: float, dtype: torch.dtype, several_threads: Any) -> None:
    rows, vocab = 300, 40_003
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(rows, 40, generator=generator).to(dtype)
    embedding = (torch.randn(vocab, 40, generator=generator) / 4).to(dtype)
    asked: dict[str, Any] = {"softcap": 30.0, "impl": "tiled", "classes": some_classes(vocab, 900, living)}
    with several_threads(2):
        crowd = read_classes(hidden, embedding, temperature=temperatures(rows), **asked)
    with several_threads(1):
        single = read_classes(hidden, embedding, temperature=temperatures(rows), **asked)
    for row in (0, 37, 255, 256, 299):
        part = slice(row, row + 1)
        alone = read_classes(hidden[part], embedding, temperature=temperatures(rows)[part], **asked)
        for f in fields(ClassReading):
            ours, right = getattr(alone, f.name)[0], getattr(crowd, f.name)[row]
            assert torch.equal(getattr(crowd, f.name), getattr(single, f.name)), f.name
            if dtype == torch.bfloat16:
                assert torch.equal(ours, right), f.name
            elif f.name in ("log_mass", "mean", "top"):
                torch.testing.assert_close(ours, right, rtol=SLACK, atol=SLACK)


def test_every_living_token_is_in_one_chunk_and_every_piece_in_one_class() -> None:
    classes = some_classes(30_000, 700)
    thinned = classes.class_of.clone()
    thinned[TILE : 3 * TILE][torch.arange(2 * TILE) % 5 > 0] = -1
    classes = TokenClasses(class_of=thinned, num_classes=700)
    ids = torch.cat([torch.from_numpy(chunk.ids) for chunk in classes.chunks])
    assert torch.equal(ids.sort().values.long(), (thinned >= 0).nonzero()[:, 0])
    for chunk in classes.chunks:
        assert chunk.first < 0 or len(chunk.ids) >= CROWDED * chunk.width
        for place, c in enumerate(chunk.piece_class):
            own = chunk.ids[chunk.piece_starts[place] : chunk.piece_starts[place + 1]]
            assert 0 < len(own) <= PIECE and bool((thinned[own] == int(c)).all())
    assert {chunk.first for chunk in classes.chunks} >= {-1, 0}


def test_few_living_tokens_are_kept_apart() -> None:
    class_of = torch.full((200_000,), -1)
    class_of[::20] = 3
    few = TokenClasses(class_of=class_of, num_classes=4).narrow
    assert few is not None and torch.equal(few[0], torch.arange(0, 200_000, 20))
    class_of[: 2 * NARROW] = 1
    assert TokenClasses(class_of=class_of, num_classes=4).narrow is None


@pytest.mark.parametrize("dtype", (torch.float16, torch.float64))
def test_auto_serves_other_formats(dtype: torch.dtype) -> None:
    hidden, embedding = weights(3, 8, 500, dtype)
    asked: dict[str, Any] = {"softcap": 30.0, "temperature": temperatures(3), "edits": some_edits(3, 500)}
    assert_classes_agree(hidden, embedding, some_classes(500, 11), "auto", asked)


def test_no_rows_give_empty_readings() -> None:
    hidden, embedding = weights(0, 8, 500, torch.bfloat16)
    got = read_classes(hidden, embedding, softcap=30.0, temperature=torch.ones(0), classes=some_classes(500, 11))
    assert got.log_mass.shape == got.best.shape == (0, 11) and got.finite.shape == (0,)


@pytest.mark.parametrize(
    ("class_of", "words"),
    (
        (torch.tensor([0, 4]), "reaches from 0 to 4"),
        (torch.tensor([-2, 0]), "reaches from -2 to 0"),
        (torch.zeros(3), "class_of is"),
        (torch.zeros(3, 2, dtype=torch.int32), "class_of is"),
    ),
)
def test_classes_that_make_no_sense_are_refused(class_of: torch.Tensor, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        TokenClasses(class_of=class_of, num_classes=4)


def test_arguments_that_do_not_fit_are_named() -> None:
    hidden, embedding = weights(3, 8, 64, torch.float32)
    asked: dict[str, Any] = {"softcap": 30.0, "temperature": torch.ones(3)}
    with pytest.raises(RequestError, match="63 tokens"):
        read_classes(hidden, embedding, classes=some_classes(63, 4), **asked)
    with pytest.raises(RequestError, match="temperature"):
        read_classes(hidden, embedding, classes=some_classes(64, 4), **asked | {"temperature": torch.ones(2)})
    with pytest.raises(ConfigError, match="unknown impl"):
        read_classes(hidden, embedding, classes=some_classes(64, 4), impl="fast", **asked)  # type: ignore[arg-type]
