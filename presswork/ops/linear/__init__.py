"""Products with weights as stored, in which a row's result does not depend on its company.

What was measured (torch 2.13, Xeon with AVX-512 and AMX, 1 and 2 threads): torch's float32 products give a row the
same bits for any number of rows from 16 on while the inner width is at most 512, its bfloat16 products for any number
of rows while the inner width is at most 352. Products on AMX tiles give a row the same bits always.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from presswork.ops.choice import Impl, takes_fast
from presswork.ops.linear import fast, reference

__all__ = ["is_row_stable", "linear"]

_STABLE_INNER = {torch.float32: 512, torch.bfloat16: 352}


def linear(x: Float[Tensor, "N K"], weight: Float[Tensor, "M K"], impl: Impl = "auto") -> Float[Tensor, "N M"]:
    """x weight^T; pure.

    Args:
        impl: "auto" takes the CPU twin where it can: AMX tiles for bfloat16, at least 16 rows for float32.

    Raises:
        ConfigError: an unknown impl, or "fast" for tensors it cannot take.
    """
    if takes_fast(impl, x, weight):
        return fast.linear(x, weight)
    return reference.linear(x, weight)


def is_row_stable(dtype: torch.dtype, inner: int) -> bool:
    """Whether `linear` on this machine's CPU gives a row the same bits in any company, for this inner width K."""
    if fast.fits_tiles(dtype, inner, 16):
        return True
    return inner <= _STABLE_INNER.get(dtype, 0)
