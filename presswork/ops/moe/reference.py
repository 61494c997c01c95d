"""Mixture of experts, plain. N rows, D model width, E experts, k experts a row, f expert width."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from presswork.ops.gated_gelu.reference import gated_gelu
from presswork.ops.norm.reference import rms_norm


def route(
    x: Float[Tensor, "N D"],
    scale: Float[Tensor, "D"],
    projection: Float[Tensor, "E D"],
    per_expert_scale: Float[Tensor, "E"],
    top_k: int,
    eps: float,
) -> tuple[Float[Tensor, "N k"], Int[Tensor, "N k"]]:
    """(weights, expert ids) of each row; see presswork.ops.moe for the order of operations."""
    probabilities = router_probabilities(x, scale, projection, eps)
    weights, experts = probabilities.topk(top_k, dim=-1)
    weights = weights / weights.sum(-1, keepdim=True)
    return weights * per_expert_scale.float()[experts], experts


def router_probabilities(
    x: Float[Tensor, "N D"], scale: Float[Tensor, "D"], projection: Float[Tensor, "E D"], eps: float
) -> Float[Tensor, "N E"]:
    """The router's softmax over all experts, in float32."""
    routed = rms_norm(x, None, eps) * scale * x.shape[-1] ** -0.5
    return torch.softmax((routed @ projection.T).float(), dim=-1)


def mix_experts(
    h: Float[Tensor, "N D"],
    weights: Float[Tensor, "N k"],
    experts: Int[Tensor, "N k"],
    gate_up: Float[Tensor, "E F2 D"],
    down: Float[Tensor, "E D f"],
) -> Float[Tensor, "N D"]:
    """Sum over each row's experts of weight * down(gated_gelu(gate_up(h))), added in float32, cast once."""
    total = torch.zeros(h.shape, dtype=torch.float32, device=h.device)
    for expert in range(gate_up.shape[0]):
        rows, slots = torch.where(experts == expert)
        if rows.numel():
            out = gated_gelu(h[rows] @ gate_up[expert].T) @ down[expert].T
            total = total.index_add(0, rows, out.float() * weights[rows, slots, None])
    return total.to(h.dtype)
