"""Attention: a row worked by hand, then the CPU twin against the reference, masks, and company that changes nothing."""

import math

import pytest
import torch
from torch import Tensor

from presswork.errors import ConfigError
from presswork.ops.attention import attend, fast
from tests.ops.closeness import DTYPES, random

# rows, query heads, KV heads, head width, keys: grouped and not, one key, odd widths, more than one span of 256 keys
SIZES = [
    (1, 1, 1, 8, 1), (3, 4, 2, 16, 5), (7, 6, 1, 10, 33), (40, 4, 4, 32, 90), (33, 8, 2, 64, 257), (5, 4, 1, 128, 700),
    (0, 2, 1, 16, 4), (90, 4, 4, 32, 182),
]  # fmt: skip


def draw(size: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    rows, heads, kv_heads, width, keys = size
    q = random(rows, heads, width, seed=1) / width**0.25
    k = random(kv_heads, keys, width, seed=2) / width**0.25
    return q.to(dtype), k.to(dtype), random(kv_heads, keys, width, seed=3, dtype=dtype)


def draw_mask(rows: int, keys: int, kind: str) -> Tensor | None:
    if kind == "none":
        return None
    if kind == "causal":
        return torch.arange(keys)[None, :] <= torch.arange(rows)[:, None] + keys - rows
    mask = torch.rand(rows, keys, generator=torch.Generator().manual_seed(4)) < 0.3
    mask[rows // 2 : rows // 2 + 1] = False
    return mask


def exact(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """The definition in float64, one query head at a time."""
    groups = q.shape[1] // k.shape[0]
    out = torch.zeros(q.shape, dtype=torch.float64)
    for head in range(q.shape[1]):
        scores = q[:, head].double() @ k[head // groups].double().T
        if visible is not None:
            scores = scores.masked_fill(~visible, -math.inf)
        weights = torch.softmax(scores, -1).nan_to_num(0.0)
        out[:, head] = weights @ v[head // groups].double()
    return out


def test_a_row_worked_by_hand() -> None:
    q, k = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[math.log(3), 5.0], [0.0, -7.0]]])
    v = torch.tensor([[[4.0, 0.0], [0.0, 8.0]]])
    for impl in ("fast", "reference"):
        torch.testing.assert_close(attend(q, k, v, impl=impl), torch.tensor([[[3.0, 2.0]]]))


@pytest.mark.parametrize("kind", ["none", "causal", "random"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_float32_equals_the_definition(size: tuple[int, ...], kind: str) -> None:
    q, k, v = draw(size, torch.float32)
    visible = draw_mask(size[0], size[4], kind)
    for impl in ("fast", "reference"):
        found = attend(q, k, v, visible, impl=impl)
        assert found.shape == q.shape and found.dtype is torch.float32
        torch.testing.assert_close(found.double(), exact(q, k, v, visible), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["none", "causal", "random"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bfloat16_is_no_further_from_the_definition_than_the_reference(size: tuple[int, ...], kind: str) -> None:
    q, k, v = draw(size, torch.bfloat16)
    visible = draw_mask(size[0], size[4], kind)
    expected = exact(q, k, v, visible)
    errors = {i: (attend(q, k, v, visible, impl=i).double() - expected).square() for i in ("fast", "reference")}
    if not expected.numel():
        return
    assert errors["fast"].mean() <= 1.5 * errors["reference"].mean() + 1e-8
    assert errors["fast"].max() <= (2**-7 * expected.abs().max() + 1e-3) ** 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("impl", ["fast", "reference"])
def test_a_row_that_sees_nothing_is_zero(impl, dtype: torch.dtype) -> None:
    q, k, v = draw((4, 2, 1, 32, 64), dtype)
    visible = torch.ones(4, 64, dtype=torch.bool)
    visible[1] = False
    found = attend(q, k, v, visible, impl=impl)
    assert (found[1] == 0).all() and (found[[0, 2, 3]] != 0).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unseen_keys_change_not_a_bit(dtype: torch.dtype) -> None:
    q, k, v = draw((20, 4, 2, 32, 300), dtype)
    visible = draw_mask(20, 300, "random")
    assert visible is not None
    before = attend(q, k, v, visible, impl="fast")
    for key in (0, 17, 255, 256, 299):
        changed_k, changed_v = k.clone(), v.clone()
        changed_k[:, key], changed_v[:, key] = 9.0, -9.0
        after = attend(q, changed_k, changed_v, visible, impl="fast")
        blind = ~visible[:, key]
        assert torch.equal(after[blind], before[blind])
        assert not torch.equal(after[~blind], before[~blind])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_a_row_does_not_depend_on_its_company(masked: bool, dtype: torch.dtype) -> None:
    q, k, v = draw((50, 4, 2, 32, 400), dtype)
    visible = draw_mask(50, 400, "causal") if masked else None
    together = attend(q, k, v, visible, impl="fast")
    for rows in (slice(0, 1), slice(7, 9), slice(10, 43)):
        alone = attend(q[rows], k, v, None if visible is None else visible[rows], impl="fast")
        assert torch.equal(alone, together[rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_threads_give_the_same_bits(dtype: torch.dtype, several_threads, monkeypatch) -> None:
    q, k, v = draw((1024, 8, 2, 64, 300), dtype)
    shares: list[int] = []
    count = fast.num_shares
    monkeypatch.setattr(fast, "num_shares", lambda *args: shares.append(count(*args)) or shares[-1])
    with several_threads(1):
        alone = attend(q, k, v, impl="fast")
    with several_threads(3):
        together = attend(q, k, v, impl="fast")
    assert torch.equal(alone, together) and max(shares) > 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_layout_in_memory_does_not_matter(dtype: torch.dtype) -> None:
    q, k, v = draw((9, 4, 2, 32, 70), dtype)
    expected = attend(q, k, v, impl="fast")
    wide_k = torch.cat([k, k + 1], 1)[:, :70]
    slow_q = q.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(attend(slow_q, wide_k, v.transpose(0, 1).contiguous().transpose(0, 1), impl="fast"), expected)


def test_extreme_scores_do_not_overflow() -> None:
    q, k, v = draw((4, 2, 1, 16, 40), torch.float32)
    found = attend(300 * q, 300 * k, v, impl="fast")
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.double(), exact(300 * q, 300 * k, v, None), rtol=1e-4, atol=1e-4)


def test_float64_takes_the_reference_and_unknown_impls_are_refused() -> None:
    q, k, v = draw((2, 2, 1, 8, 4), torch.float64)
    torch.testing.assert_close(attend(q, k, v), exact(q, k, v, None))
    with pytest.raises(ConfigError, match="impl='fast' needs CPU tensors"):
        attend(q, k, v, impl="fast")
    with pytest.raises(ConfigError, match="unknown impl 'flash'"):
        attend(q, k, v, impl="flash")  # type: ignore[arg-type]
