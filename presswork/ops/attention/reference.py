"""Grouped-query attention with scale 1, plain. N query rows, S keys, H query heads, n KV heads, h head width."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def attend(
    q: Float[Tensor, "N H h"],
    k: Float[Tensor, "n S h"],
    v: Float[Tensor, "n S h"],
    visible: Bool[Tensor, "N S"] | None = None,
) -> Float[Tensor, "N H h"]:
    """softmax(q k^T) v without 1/sqrt(h); query head a reads KV head a // (H / n); see presswork.ops.attention."""
    num_rows, num_heads, head_dim = q.shape
    num_kv = k.shape[0]
    grouped = q.unflatten(1, (num_kv, -1)).permute(1, 2, 0, 3)
    scores = grouped @ k[:, None].transpose(-1, -2)
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    weights = torch.softmax(scores.float(), dim=-1).to(q.dtype)
    if visible is not None:
        weights = weights.masked_fill(~visible.any(-1)[:, None], 0.0)
    return (weights @ v[:, None]).permute(2, 0, 1, 3).reshape(num_rows, num_heads, head_dim)
