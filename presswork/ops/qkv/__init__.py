"""From one fused projection to normalised, rotated heads.

The projection's columns are H query heads, then n key heads, then n value heads. Layers that share keys and
values have no value columns: their values are the keys before the key norm and the rotation, so both must be kept.
Queries and keys get a weighted RMS norm per head and the rotation; values get an unweighted norm and no rotation.
"""

from jaxtyping import Float
from torch import Tensor

from presswork.ops.choice import Impl, takes_fast
from presswork.ops.qkv import fast, reference

__all__ = ["split_norm_rope"]


def split_norm_rope(
    projected: Float[Tensor, "N P"],
    q_norm: Float[Tensor, "h"],
    k_norm: Float[Tensor, "h"],
    cos: Float[Tensor, "N half"],
    sin: Float[Tensor, "N half"],
    num_heads: int,
    num_kv_heads: int,
    eps: float,
    impl: Impl = "auto",
) -> tuple[Float[Tensor, "N H h"], Float[Tensor, "N n h"], Float[Tensor, "N n h"]]:
    """(q, k, v) heads from the projection, normalised per head, q and k rotated; pure.

    Args:
        cos, sin: tables of `rope_table`, one row each row.
        impl: "auto" takes the fused CPU twin where it can, see presswork.ops.choice.

    Raises:
        ConfigError: an unknown impl, or "fast" for tensors it cannot take.
    """
    chosen = fast if takes_fast(impl, projected, q_norm, k_norm, cos, sin) else reference
    return chosen.split_norm_rope(projected, q_norm, k_norm, cos, sin, num_heads, num_kv_heads, eps)
