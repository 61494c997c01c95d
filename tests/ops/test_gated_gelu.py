"""The gated activation and the MLP around it: the fused twins against the reference."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from presswork.ops.gated_gelu import gated_gelu, gated_mlp
from tests.ops.closeness import DTYPES, assert_close, random, strided, transposed

# rows, model width, inner width: the last three fit AMX tiles, with one tile, two, and a ragged last one
SIZES = [(1, 1, 1), (5, 7, 9), (90, 48, 40), (0, 32, 32), (1, 32, 32), (33, 64, 96), (50, 128, 256)]


def mlp(size: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """Rows and the two weights, scaled so that every stage is of order one."""
    rows, width, inner = size
    gate_up = random(2 * inner, width, seed=1) / width**0.5
    return [random(rows, width, dtype=dtype), gate_up.to(dtype), (random(width, inner, seed=2) / inner**0.5).to(dtype)]


SHAPES = [(1, 2), (1, 256), (90, 96), (7, 26), (0, 8), (2, 3, 12)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_fused_activation_equals_the_reference(shape: tuple[int, ...]) -> None:
    gate_up = 3 * random(*shape)
    assert_close(gated_gelu(gate_up, impl="fast"), gated_gelu(gate_up, impl="reference"))


@pytest.mark.parametrize("shape", [*SHAPES, (50, 4096)], ids=str)
def test_the_fused_activation_rounds_better_than_the_reference_in_bfloat16(shape: tuple[int, ...]) -> None:
    """The library's tanh form loses what cancels in gates far below zero."""
    gate_up = 3 * random(*shape, dtype=torch.bfloat16)
    gate, up = gate_up.chunk(2, dim=-1)
    exact = F.gelu(gate.double(), approximate="tanh").bfloat16() * up
    wrong = {impl: (gated_gelu(gate_up, impl=impl) != exact).sum() for impl in ("fast", "reference")}
    assert wrong["fast"] <= 0.02 * exact.numel() + 2 and wrong["fast"] <= wrong["reference"] + 1


@pytest.mark.parametrize("impl", ["fast", "reference"])
def test_the_first_half_is_the_gate(impl) -> None:
    found = gated_gelu(torch.tensor([[1.0, -2.0, 5.0, 7.0]]), impl)
    torch.testing.assert_close(found, torch.tensor([[5 * 0.8411920, 7 * -0.0454023]]), rtol=1e-5, atol=0)


def test_extreme_gates_saturate() -> None:
    gate = torch.tensor([[-1e30, -40.0, -9.0, 0.0, 9.0, 40.0, 1e30]])
    found = gated_gelu(torch.cat([gate, torch.ones(1, 7)], 1), impl="fast")
    torch.testing.assert_close(found, gate.clamp(min=0), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_fused_mlp_equals_the_reference(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    tensors = mlp(size, dtype)
    assert_close(gated_mlp(*tensors, impl="fast"), gated_mlp(*tensors, impl="reference"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_threads_give_the_same_bits(dtype: torch.dtype, several_threads) -> None:
    tensors = mlp((300, 128, 1024), dtype)
    with several_threads(1):
        alone = gated_mlp(*tensors, impl="fast")
    with several_threads(3):
        together = gated_mlp(*tensors, impl="fast")
    assert torch.equal(alone, together) if dtype is torch.bfloat16 else torch.allclose(alone, together, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [strided, transposed])
@pytest.mark.parametrize("size", [(20, 64, 96), (20, 40, 24)], ids=str)
def test_the_layout_in_memory_does_not_matter(size, layout, dtype: torch.dtype) -> None:
    x, gate_up, down = mlp(size, dtype)
    expected = gated_mlp(x, gate_up, down, "fast")
    assert_close(gated_mlp(layout(x), layout(gate_up), layout(down), "fast"), expected)
    wide = random(6, 40, dtype=dtype)
    assert torch.equal(gated_gelu(layout(wide), "fast"), gated_gelu(wide, "fast"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(20, 64, 96), (20, 40, 24)], ids=str)
def test_nan_stays_in_its_row(size, dtype: torch.dtype) -> None:
    x, gate_up, down = mlp(size, dtype)
    expected = gated_mlp(x, gate_up, down, "fast")
    x[7, 3] = float("nan")
    found = gated_mlp(x, gate_up, down, "fast")
    others = torch.arange(20) != 7
    assert torch.equal(found[others], expected[others]) and found[7].isnan().all()
