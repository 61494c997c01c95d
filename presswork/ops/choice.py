"""Which implementation of an op runs: the plain reference or the fused CPU twin."""

from typing import Literal

import torch
from torch import Tensor

from presswork.errors import ConfigError

Impl = Literal["auto", "reference", "fast"]

FAST_DTYPES = frozenset((torch.float32, torch.bfloat16))


def takes_fast(impl: Impl, x: Tensor, *others: Tensor | None) -> bool:
    """Whether the fused CPU twin runs for these floating tensors; pure.

    "auto" takes it on a CPU, in float32 or bfloat16, all tensors of one dtype, when no gradient is being recorded.
    Code under torch.compile, which fuses by itself, gets the reference.

    Raises:
        ConfigError: an unknown impl, or "fast" for tensors the fused twin cannot take.
    """
    if impl == "reference" or torch.compiler.is_compiling():
        return False
    can = x.is_cpu and x.dtype in FAST_DTYPES
    for other in others:
        if other is not None and other.dtype is not x.dtype:
            can = False
    if can and torch.is_grad_enabled():
        can = not (x.requires_grad or any(other is not None and other.requires_grad for other in others))
    if impl == "auto" or (impl == "fast" and can):
        return can
    if impl == "fast":
        raise ConfigError(
            f"impl='fast' needs CPU tensors of one dtype, float32 or bfloat16, without gradients, "
            f"got {[(t.device.type, t.dtype, t.requires_grad) for t in (x, *others) if t is not None]}; use impl='auto'"
        )
    raise ConfigError(f"unknown impl {impl!r}, accepted: 'auto', 'reference', 'fast'")
