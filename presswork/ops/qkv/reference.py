"""From one fused projection to queries, keys and values, plain. N rows, H query heads, n KV heads, h head width."""

from jaxtyping import Float
from torch import Tensor

from presswork.ops.norm.reference import rms_norm
from presswork.ops.rope.reference import apply_rope


def split_norm_rope(
    projected: Float[Tensor, "N P"],
    q_norm: Float[Tensor, "h"],
    k_norm: Float[Tensor, "h"],
    cos: Float[Tensor, "N half"],
    sin: Float[Tensor, "N half"],
    num_heads: int,
    num_kv_heads: int,
    eps: float,
) -> tuple[Float[Tensor, "N H h"], Float[Tensor, "N n h"], Float[Tensor, "N n h"]]:
    """Heads from the projection, normalised per head, q and k rotated; see presswork.ops.qkv for the rules."""
    heads = projected.unflatten(-1, (-1, q_norm.shape[0]))
    q, k0 = heads[:, :num_heads], heads[:, num_heads : num_heads + num_kv_heads]
    v0 = heads[:, num_heads + num_kv_heads :] if heads.shape[1] > num_heads + num_kv_heads else k0
    q = apply_rope(rms_norm(q, q_norm, eps), cos, sin)
    k = apply_rope(rms_norm(k0, k_norm, eps), cos, sin)
    return q, k, rms_norm(v0, None, eps)
