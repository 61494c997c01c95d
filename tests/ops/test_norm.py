"""RMS norms: the definition on numbers worked out by hand, then the fused twin against the reference."""

import pytest
import torch
from torch import Tensor

from presswork.errors import ConfigError
from presswork.ops.norm import join_branches, residual_norm, rms_norm
from tests.ops.closeness import DTYPES, assert_close, random, strided, transposed

EPS = 1e-6
SIZES = [(1, 1), (1, 128), (3, 7), (90, 128), (5, 48), (33, 1023), (0, 16)]


def test_a_row_worked_by_hand() -> None:
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 0.5])
    root = (12.5 + 1.0) ** 0.5
    for impl in ("fast", "reference"):
        found = rms_norm(x, weight, 1.0, impl=impl)
        torch.testing.assert_close(found, torch.tensor([[3 / root, 2 / root]]))
        scaled = residual_norm(x, x, weight, 1.0, torch.tensor([2.0]), impl=impl)
        torch.testing.assert_close(scaled, 2 * (x + found))


def branches(rows: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Arguments of join_branches but eps and scale."""
    sizes = [(rows, width), (rows, width), (width,), (rows, width), (width,), (width,)]
    return [random(*size, seed=i, dtype=dtype) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_fused_norms_equal_the_reference(size: tuple[int, int], dtype: torch.dtype) -> None:
    x, residual = random(*size, dtype=dtype), random(*size, seed=1, dtype=dtype)
    scale = random(size[0], seed=2, dtype=dtype)
    for weight in (random(size[1], seed=3, dtype=dtype), None):
        assert_close(rms_norm(x, weight, EPS, impl="fast"), rms_norm(x, weight, EPS, impl="reference"))
        for factor in (scale, None):
            arguments = (residual, x, weight, EPS, factor)
            assert_close(residual_norm(*arguments, impl="fast"), residual_norm(*arguments, impl="reference"))
    arguments = (*branches(*size, dtype), EPS, scale)
    assert_close(join_branches(*arguments, impl="fast"), join_branches(*arguments, impl="reference"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [strided, transposed])
def test_the_layout_in_memory_does_not_matter(layout, dtype: torch.dtype) -> None:
    tensors, scale = branches(6, 40, dtype), random(6, dtype=dtype)
    weights = {2, 4, 5}
    laid = [x if i in weights else layout(x) for i, x in enumerate(tensors)]
    assert torch.equal(rms_norm(laid[0], laid[2], EPS, "fast"), rms_norm(tensors[0], tensors[2], EPS, "fast"))
    spread = scale.repeat_interleave(3)[::3]
    found = residual_norm(laid[0], laid[1], tensors[2].repeat_interleave(2)[::2], EPS, spread, "fast")
    assert torch.equal(found, residual_norm(tensors[0], tensors[1], tensors[2], EPS, scale, "fast"))
    assert torch.equal(join_branches(*laid, EPS, spread, "fast"), join_branches(*tensors, EPS, scale, "fast"))


def test_leading_dimensions_are_rows() -> None:
    x, weight = random(3, 4, 16), random(16)
    expected = rms_norm(x.flatten(0, 1), weight, EPS, "fast").unflatten(0, (3, 4))
    assert torch.equal(rms_norm(x, weight, EPS, "fast"), expected)
    assert torch.equal(rms_norm(x.transpose(0, 1), weight, EPS, "fast"), expected.transpose(0, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(value: float, dtype: torch.dtype) -> None:
    tensors, scale = branches(5, 24, dtype), random(5, dtype=dtype)
    expected = [
        rms_norm(tensors[1], tensors[2], EPS, "fast"), residual_norm(*tensors[:3], EPS, scale, "fast"),
        join_branches(*tensors, EPS, scale, "fast"),
    ]  # fmt: skip
    tensors[1][2, 7] = value
    found = [
        rms_norm(tensors[1], tensors[2], EPS, "fast"), residual_norm(*tensors[:3], EPS, scale, "fast"),
        join_branches(*tensors, EPS, scale, "fast"),
    ]  # fmt: skip
    others = [0, 1, 3, 4]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a[others], b[others]) and a[2].isnan().any()


def test_gradients_flow_where_they_are_recorded() -> None:
    x, weight = random(4, 8).requires_grad_(), random(8).requires_grad_()
    rms_norm(x, weight, EPS).sum().backward()
    assert x.grad is not None and weight.grad is not None and weight.grad.abs().min() > 0


def test_float64_takes_the_reference() -> None:
    x = random(4, 8).double()
    assert torch.equal(rms_norm(x, None, EPS), rms_norm(x, None, EPS, impl="reference"))


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (random(2, 4).double(), None),
        (random(2, 4), random(4, dtype=torch.bfloat16)),
        (random(2, 4).requires_grad_(), None),
    ],
    ids=["float64", "two dtypes", "gradient"],
)
def test_fast_is_refused_where_it_cannot_be_had(x: Tensor, weight: Tensor | None) -> None:
    with pytest.raises(ConfigError, match="impl='fast' needs CPU tensors of one dtype"):
        rms_norm(x, weight, EPS, impl="fast")


def test_an_unknown_impl_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown impl 'quick', accepted: 'auto', 'reference', 'fast'"):
        rms_norm(random(2, 4), None, EPS, impl="quick")  # type: ignore[arg-type]
