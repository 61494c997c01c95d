"""Splitting, normalising and rotating heads: the fused twin against the reference."""

import pytest
import torch
from torch import Tensor

from presswork.config import RopeConfig
from presswork.ops.norm import rms_norm
from presswork.ops.qkv import split_norm_rope
from presswork.ops.rope import rope_frequencies, rope_table
from tests.ops.closeness import DTYPES, assert_close, random, strided, transposed

EPS = 1e-6
# rows, query heads, KV heads, head width
SIZES = [(1, 1, 1, 2), (1, 4, 4, 32), (7, 4, 2, 16), (90, 4, 4, 32), (5, 8, 2, 30), (0, 2, 1, 8)]


def arguments(size: tuple[int, int, int, int], has_values: bool, dtype: torch.dtype) -> list[Tensor]:
    """Projection, q and k norm weights, cos and sin."""
    rows, heads, kv_heads, width = size
    projected = random(rows, (heads + kv_heads * (2 if has_values else 1)) * width, dtype=dtype)
    table = rope_table(rope_frequencies(RopeConfig(theta=1e4), width), 5 + 3 * torch.arange(rows), dtype)
    return [projected, random(width, seed=1, dtype=dtype), random(width, seed=2, dtype=dtype), *table]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("has_values", [True, False], ids=["own values", "shared values"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_fused_op_equals_the_reference(size, has_values: bool, dtype: torch.dtype) -> None:
    tensors, shape = arguments(size, has_values, dtype), (*size[1:3], EPS)
    found = split_norm_rope(*tensors, *shape, impl="fast")
    expected = split_norm_rope(*tensors, *shape, impl="reference")
    for a, b, heads in zip(found, expected, (size[1], size[2], size[2]), strict=True):
        assert a.shape == (size[0], heads, size[3]) and a.is_contiguous()
        assert_close(a, b)


@pytest.mark.parametrize("impl", ["fast", "reference"])
def test_shared_values_are_the_keys_before_their_norm_and_rotation(impl) -> None:
    projected, q_norm, k_norm, cos, sin = arguments((3, 2, 1, 8), False, torch.float32)
    k, v = split_norm_rope(projected, q_norm, k_norm, cos, sin, 2, 1, EPS, impl)[1:]
    raw = projected[:, 16:].unflatten(1, (1, 8))
    assert_close(v, rms_norm(raw, None, EPS))
    # At position 0 the rotation stands still.
    still = split_norm_rope(projected, q_norm, k_norm, torch.ones(3, 4), torch.zeros(3, 4), 2, 1, EPS, impl)[1]
    assert_close(still, rms_norm(raw, k_norm, EPS))
    assert not torch.allclose(k, still, atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [strided, transposed])
def test_the_layout_in_memory_does_not_matter(layout, dtype: torch.dtype) -> None:
    tensors = arguments((6, 4, 2, 16), True, dtype)
    laid = [layout(tensors[0]), *tensors[1:3], *(layout(table) for table in tensors[3:])]
    expected = split_norm_rope(*tensors, 4, 2, EPS, "fast")
    for a, b in zip(split_norm_rope(*laid, 4, 2, EPS, "fast"), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_in_its_head(dtype: torch.dtype) -> None:
    tensors = arguments((4, 4, 2, 16), True, dtype)
    expected = split_norm_rope(*tensors, 4, 2, EPS, "fast")
    tensors[0][1, 16 * 2 + 3] = float("nan")  # query head 2 of row 1
    found = split_norm_rope(*tensors, 4, 2, EPS, "fast")
    assert found[0][1, 2].isnan().all()
    found[0][1, 2] = expected[0][1, 2]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
