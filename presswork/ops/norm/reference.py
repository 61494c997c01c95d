"""RMS normalisation, plain. N rows, D width."""

import torch
from jaxtyping import Float
from torch import Tensor


def rms_norm(x: Float[Tensor, "*N D"], weight: Float[Tensor, "D"] | None, eps: float) -> Float[Tensor, "*N D"]:
    """x / sqrt(mean(x^2) + eps), times the weight as stored (not 1 + weight), in float32, cast once at the end."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        wide = wide * weight.float()
    return wide.to(x.dtype)


def residual_norm(
    residual: Float[Tensor, "N D"],
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "D"] | None,
    eps: float,
    scale: Float[Tensor, "N"] | None = None,
) -> Float[Tensor, "N D"]:
    """(residual + rms_norm(x)) * scale per row; each of the three results is rounded to the input dtype."""
    total = residual + rms_norm(x, weight, eps)
    return total if scale is None else total * scale[:, None]


def join_branches(
    residual: Float[Tensor, "N D"],
    dense: Float[Tensor, "N D"],
    dense_weight: Float[Tensor, "D"],
    sparse: Float[Tensor, "N D"],
    sparse_weight: Float[Tensor, "D"],
    weight: Float[Tensor, "D"],
    eps: float,
    scale: Float[Tensor, "N"],
) -> Float[Tensor, "N D"]:
    """residual_norm of the sum of the two branches' norms; every intermediate is rounded to the input dtype."""
    joined = rms_norm(dense, dense_weight, eps) + rms_norm(sparse, sparse_weight, eps)
    return residual_norm(residual, joined, weight, eps, scale)
