"""Grouped-query attention over a slice of keys, scale 1, softmax in float32.

A query row that sees no key at all gives zeros, never NaN: its keys and values may enter a cache.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from presswork.ops.attention import fast, reference
from presswork.ops.choice import Impl, takes_fast

__all__ = ["attend"]


def attend(
    q: Float[Tensor, "N H h"],
    k: Float[Tensor, "n S h"],
    v: Float[Tensor, "n S h"],
    visible: Bool[Tensor, "N S"] | None = None,
    impl: Impl = "auto",
) -> Float[Tensor, "N H h"]:
    """softmax(q k^T) v without 1/sqrt(h); query head a reads KV head a // (H / n); pure.

    Memory for scores is bounded, whatever N and S are, on the CPU.

    Args:
        visible: which keys each query row sees; None means all.
        impl: "auto" takes the CPU twin where it can, see presswork.ops.choice.

    Raises:
        ConfigError: an unknown impl, or "fast" for tensors it cannot take.
    """
    chosen = fast if takes_fast(impl, q, k, v) else reference
    return chosen.attend(q, k, v, visible)
