"""How close a fused op must be to its reference, and tensors to try it on."""

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers that follow from the seed and the shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 7919 * sum(shape))).to(dtype)


def assert_close(found: Tensor, expected: Tensor) -> None:
    """float32: a few roundings of the largest value. bfloat16: almost all equal, the rest one rounding away.

    The rest is where float32 sums of another order fall on the other side of a rounding boundary.
    """
    assert found.shape == expected.shape and found.dtype is expected.dtype
    if not expected.numel():
        return
    a, b = found.double(), expected.double()
    scale = b.abs().max()
    if found.dtype is torch.bfloat16:
        assert ((a - b).abs() <= 2**-7 * b.abs() + 2**-9 * scale).all()
        assert (a != b).sum() <= max(1, 0.01 * a.numel())
    else:
        assert ((a - b).abs() <= 1e-6 * b.abs() + 1e-6 * scale).all()


def strided(x: Tensor) -> Tensor:
    """The same numbers with gaps between the rows."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 5), 99.0, dtype=x.dtype)
    wide[..., 2 : 2 + x.shape[-1]] = x
    return wide[..., 2 : 2 + x.shape[-1]]


def transposed(x: Tensor) -> Tensor:
    """The same matrix with its columns contiguous."""
    return x.T.contiguous().T
