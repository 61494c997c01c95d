"""Mixture of experts: the router and the sum over each row's experts.

Router: unweighted norm of the raw residual, times `scale`, times D^-1/2 (in this order); softmax over all experts
in float32; the k largest renormalised to sum 1; then times `per_expert_scale`, so the weights do not sum to 1.
Experts: rows 0..f-1 of gate_up are the gate, f..2f-1 the up projection.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from presswork.ops.choice import Impl, takes_fast
from presswork.ops.moe import adapted, fast, reference, router
from presswork.ops.moe.adapted import Factors
from presswork.ops.moe.dense import mix_experts_dense
from presswork.ops.moe.reference import router_probabilities

__all__ = ["Factors", "mix_adapted_experts", "mix_experts", "mix_experts_dense", "route", "router_probabilities"]


def route(
    x: Float[Tensor, "N D"],
    scale: Float[Tensor, "D"],
    projection: Float[Tensor, "E D"],
    per_expert_scale: Float[Tensor, "E"],
    top_k: int,
    eps: float,
    impl: Impl = "auto",
) -> tuple[Float[Tensor, "N k"], Int[Tensor, "N k"]]:
    """(weights in float32, expert ids) of each row, the largest first; pure.

    Args:
        x: the raw residual, before any norm.
        top_k: experts a row, 1 to E. Of equal probabilities the fused twin takes the lower ids.
        impl: "auto" takes the fused CPU twin where it can, see presswork.ops.choice.

    Raises:
        ConfigError: an unknown impl, or "fast" for tensors it cannot take.
    """
    chosen = router if takes_fast(impl, x, scale, projection, per_expert_scale) else reference
    return chosen.route(x, scale, projection, per_expert_scale, top_k, eps)


def mix_experts(
    h: Float[Tensor, "N D"],
    weights: Float[Tensor, "N k"],
    experts: Int[Tensor, "N k"],
    gate_up: Float[Tensor, "E F2 D"],
    down: Float[Tensor, "E D f"],
    impl: Impl = "auto",
) -> Float[Tensor, "N D"]:
    """Sum over each row's experts of weight * down(gated_gelu(gate_up(h))), added in float32, cast once; pure.

    Args:
        h: the normed residual.
        weights, experts: what `route` returns; the sum is taken in this order of experts.
        impl: "auto" takes the CPU twin where it can, see presswork.ops.choice.

    Raises:
        ConfigError: an unknown impl, or "fast" for tensors it cannot take.
        RequestError: an expert id that does not exist.
    """
    records_weights = torch.is_grad_enabled() and weights.requires_grad
    if not records_weights and takes_fast(impl, h, gate_up, down):
        return fast.mix_experts(h, weights, experts, gate_up, down)
    return reference.mix_experts(h, weights, experts, gate_up, down)


def mix_adapted_experts(
    h: Float[Tensor, "N D"],
    weights: Float[Tensor, "N k"],
    experts: Int[Tensor, "N k"],
    gate_up: Float[Tensor, "E F2 D"],
    down: Float[Tensor, "E D f"],
    gate_up_factors: Factors | None,
    down_factors: Factors | None,
    impl: Impl = "auto",
) -> Float[Tensor, "N D"]:
    """`mix_experts` with what low-rank factors add to gate_up and down, which is not formed; pure.

    Args:
        impl: "auto" takes the CPU twin where it can, see presswork.ops.choice.

    Raises:
        ConfigError: an unknown impl, or "fast" for tensors it cannot take.
    """
    factors = [part for own in (gate_up_factors, down_factors) if own is not None for part in own[:2]]
    records_weights = torch.is_grad_enabled() and weights.requires_grad
    chosen = fast if not records_weights and takes_fast(impl, h, gate_up, down, *factors) else adapted
    return chosen.mix_adapted_experts(h, weights, experts, gate_up, down, gate_up_factors, down_factors)
