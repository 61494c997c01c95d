"""What the vocabulary head's tests share: exact weights, full questions, the comparison. N rows, D model, V vocab."""

from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from presswork.ops.vocab_head import EditGroup, LogitEdits, Reading, read_vocab
from presswork.ops.vocab_head.reading import Query
from presswork.ops.vocab_head.reference import filtered_logits

FAST = ("tiled", "portable")
DTYPES = (torch.float32, torch.bfloat16)
SLACK = 2e-5  # float32 rounding of z around 75, the largest a softcap of 30 and a temperature of 0.4 allow


def some_edits(rows: int, vocab: int) -> LogitEdits:
    generator = torch.Generator().manual_seed(11)
    biased = torch.randperm(vocab, generator=generator)[:60]
    groups = (
        EditGroup(
            seen_ids=torch.randint(0, vocab, (200,), generator=generator),
            repetition_penalty=1.4,
            bias_ids=biased,
            bias=torch.randint(-24, 25, (len(biased),), generator=generator) / 4,
        ),
        EditGroup(banned_ids=torch.randint(0, vocab, (5,), generator=generator)),
        EditGroup(
            seen_ids=torch.randint(0, vocab, (20,), generator=generator),
            repetition_penalty=0.7,
            bias_ids=biased[:9],
            bias=torch.full((9,), 2.5),
            banned_ids=torch.arange(0, vocab, 2),
        ),
    )
    return LogitEdits(row_group=torch.arange(rows) % 4 - 1, groups=groups)


def weights(rows: int, width: int, vocab: int, dtype: torch.dtype, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Hidden rows and embedding whose products are exact in float32, so that every order of summation agrees."""
    generator = torch.Generator().manual_seed(rows * 1000 + vocab)
    hidden = torch.randint(-8, 9, (rows, width), generator=generator) / 8 * spread
    embedding = torch.randint(-16, 17, (vocab, width), generator=generator) / 16
    return hidden.to(dtype), embedding.to(dtype)


def rounding(rows: int, width: int, vocab: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Hidden rows and embedding whose products are rounded, so that another order of summation shows."""
    generator = torch.Generator().manual_seed(rows * 1000 + vocab)
    hidden = torch.randn(rows, width, generator=generator).to(dtype)
    return hidden, (torch.randn(vocab, width, generator=generator) / 4).to(dtype)


def uniforms(rows: int) -> Tensor:
    return torch.rand(rows, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)


def temperatures(rows: int) -> Tensor:
    return torch.linspace(0.4, 1.3, rows)


def ask(rows: int, vocab: int, **changes: Any) -> dict[str, Any]:
    """Every reading at once."""
    token_ids = torch.randint(0, vocab, (rows, 3), generator=torch.Generator().manual_seed(vocab))
    asked = {"softcap": 30.0, "temperature": temperatures(rows), "uniform": uniforms(rows), "token_ids": token_ids}
    return asked | {"top_logprobs": 7, "soft_embedding": True} | changes


def rows_of(asked: dict[str, Any], rows: slice) -> dict[str, Any]:
    """The same question for some of the rows."""
    return {name: value[rows] if isinstance(value, Tensor) else value for name, value in asked.items()}


def scaled(hidden: Tensor, embedding: Tensor, asked: dict[str, Any]) -> Tensor:
    names = ("softcap", "temperature", "edits", "top_k", "top_p", "class_weights")
    kept = {name: asked[name] for name in names if name in asked}
    return filtered_logits(Query(hidden=hidden, embedding=embedding, soft_source=embedding, **kept))[1]


def assert_agrees(hidden: Tensor, embedding: Tensor, impl: Any, asked: dict[str, Any]) -> Reading:
    """Numbers to float tolerance; choices equal, or else a proven near-tie in the definition's own numbers."""
    expected = read_vocab(hidden, embedding, impl="reference", **asked)
    got = read_vocab(hidden, embedding, impl=impl, **asked)
    for f in fields(Reading):
        right, ours = getattr(expected, f.name), getattr(got, f.name)
        assert (right is None) == (ours is None), f.name
        if right is None or f.name in ("argmax", "sample", "topk_ids"):
            continue
        slack = SLACK
        if f.name == "soft_embedding" and right.dtype == torch.bfloat16:
            slack = 0.01 * float(embedding.float().abs().max())
        torch.testing.assert_close(
            ours, right, rtol=SLACK, atol=slack, equal_nan=True, msg=partial(str.__add__, f.name)
        )
    z = scaled(hidden, embedding, asked)
    rows = torch.arange(len(z))[got.finite]
    assert torch.equal(got.argmax[rows], expected.argmax[rows])
    if got.topk_ids is not None and expected.topk_ids is not None:
        listed = z[rows].gather(1, got.topk_ids[rows].clamp(min=0))
        right = z[rows].gather(1, expected.topk_ids[rows].clamp(min=0))
        torch.testing.assert_close(listed, right, rtol=0, atol=SLACK)
        assert torch.equal(got.topk_ids[rows] < 0, expected.topk_ids[rows] < 0)
    assert_inverse_cdf(z[rows], asked.get("uniform"), got.sample[rows], rows)
    return got


def assert_inverse_cdf(z: Tensor, uniform: Tensor | None, sample: Tensor, rows: Tensor) -> None:
    if uniform is None:
        return
    p = z.double().softmax(dim=1)
    upper = p.cumsum(dim=1).gather(1, sample[:, None])[:, 0]
    own = p.gather(1, sample[:, None])[:, 0]
    wanted = uniform[rows]
    drawn = ~wanted.isnan()
    assert bool((own > 0).all())
    assert bool((upper - own - 1e-6 <= wanted)[drawn].all())
    assert bool((wanted <= upper + 1e-6)[drawn].all())
