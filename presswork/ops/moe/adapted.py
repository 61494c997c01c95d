"""The sum over each row's experts where experts have low-rank factors, an expert at a time.

N rows, D model width, E experts, k experts a row, f expert width, r rank.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from presswork.ops.gated_gelu import gated_gelu
from presswork.ops.linear import linear

Factors = tuple[Float[Tensor, "E r K"], Float[Tensor, "E M r"], float]
"""(A, B, scale) of every expert: scale * B A is added to its weight."""


def mix_adapted_experts(
    h: Float[Tensor, "N D"],
    weights: Float[Tensor, "N k"],
    experts: Int[Tensor, "N k"],
    gate_up: Float[Tensor, "E F2 D"],
    down: Float[Tensor, "E D f"],
    gate_up_factors: Factors | None,
    down_factors: Factors | None,
) -> Float[Tensor, "N D"]:
    """mix_experts with what the factors add to gate_up and down, which is not formed; pure.

    Rows are sorted by expert once. A row's sum runs over its slots in order, so it does not depend on other rows.
    """
    num_rows, top_k = experts.shape
    order = experts.flatten().argsort(stable=True)
    counts = torch.bincount(experts.flatten(), minlength=gate_up.shape[0]).tolist()
    parts = []
    for expert, x in enumerate(h[order // top_k].split(counts)):
        # No rows at all still give every factor its gradient, of zero: processes that add theirs up wait for it.
        if counts[expert] or not num_rows:
            wide = _product(x, gate_up, gate_up_factors, expert)
            parts.append(_product(gated_gelu(wide), down, down_factors, expert))
    results = torch.cat(parts)[order.argsort()].view(num_rows, top_k, h.shape[1])
    return (results.float() * weights[:, :, None]).sum(1).to(h.dtype)


def _product(x: Tensor, weight: Tensor, factors: Factors | None, expert: int) -> Tensor:
    product = linear(x, weight[expert])
    if factors is None:
        return product
    a, b, scale = factors
    return product + linear(linear(x, a[expert]), b[expert]) * scale
