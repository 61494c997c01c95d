"""RMS normalisation and its fusions with the residual stream."""

from jaxtyping import Float
from torch import Tensor

from presswork.ops.choice import Impl, takes_fast
from presswork.ops.norm import fast, reference

__all__ = ["join_branches", "residual_norm", "rms_norm"]


def rms_norm(
    x: Float[Tensor, "*N D"], weight: Float[Tensor, "D"] | None, eps: float, impl: Impl = "auto"
) -> Float[Tensor, "*N D"]:
    """x / sqrt(mean(x^2) + eps), times the weight as stored (not 1 + weight), in float32, cast once at the end; pure.

    Args:
        weight: None leaves it out.
        impl: "auto" takes the fused CPU twin where it can, see presswork.ops.choice.

    Raises:
        ConfigError: an unknown impl, or "fast" for tensors it cannot take.
    """
    if takes_fast(impl, x, weight):
        return fast.rms_norm(x, weight, eps)
    return reference.rms_norm(x, weight, eps)


def residual_norm(
    residual: Float[Tensor, "N D"],
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "D"] | None,
    eps: float,
    scale: Float[Tensor, "N"] | None = None,
    impl: Impl = "auto",
) -> Float[Tensor, "N D"]:
    """(residual + rms_norm(x)) * scale per row; each of the three results is rounded to the input dtype; pure.

    Args:
        scale: one factor a row; None leaves it out.
        impl: "auto" takes the fused CPU twin where it can, see presswork.ops.choice.

    Raises:
        ConfigError: an unknown impl, or "fast" for tensors it cannot take.
    """
    if takes_fast(impl, x, residual, weight, scale):
        return fast.residual_norm(residual, x, weight, eps, scale)
    return reference.residual_norm(residual, x, weight, eps, scale)


def join_branches(
    residual: Float[Tensor, "N D"],
    dense: Float[Tensor, "N D"],
    dense_weight: Float[Tensor, "D"],
    sparse: Float[Tensor, "N D"],
    sparse_weight: Float[Tensor, "D"],
    weight: Float[Tensor, "D"],
    eps: float,
    scale: Float[Tensor, "N"],
    impl: Impl = "auto",
) -> Float[Tensor, "N D"]:
    """The end of a layer: residual_norm of rms_norm(dense) + rms_norm(sparse); pure.

    Args:
        scale: one factor a row.
        impl: "auto" takes the fused CPU twin where it can, see presswork.ops.choice.

    Raises:
        ConfigError: an unknown impl, or "fast" for tensors it cannot take.
    """
    tensors = (residual, dense, dense_weight, sparse, sparse_weight, weight)
    if takes_fast(impl, *tensors, scale):
        return fast.join_branches(*tensors, eps, scale)
    return reference.join_branches(*tensors, eps, scale)
