"""The sum over each row's experts where experts have low-rank factors, for CPUs.

N rows, D model width, E experts, k experts a row, f expert width, r rank. Rows are sorted by expert as in
`presswork/ops/moe/fast.py`; what the factors add goes into an expert's product while that is still in the cache.
"""

import torch
from torch import Tensor

from presswork.ops.gated_gelu.fast import gated_gelu
from presswork.ops.linear import fast as products
from presswork.ops.moe.adapted import Factors
from presswork.ops.moe.fast import combined, gathered_by_expert


def mix_adapted_experts(
    h: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor,
    gate_up_factors: Factors | None, down_factors: Factors | None,
) -> Tensor:  # fmt: skip
    """Sum over each row's experts of weight * mlp(h), the factors added to its two products."""
    gathered, places, spans = gathered_by_expert(h, experts, gate_up.shape[0])
    wide = h.new_empty(gathered.shape[0], gate_up.shape[1])
    # What a span writes behind its expert's rows is the next one's, who writes it again.
    for expert, rows in spans:
        _multiply(gathered[rows], gate_up, gate_up_factors, expert, wide[rows])
    activated, results = gated_gelu(wide), gathered
    for expert, rows in spans:
        _multiply(activated[rows], down, down_factors, expert, results[rows])
    return combined(results, places, weights)


def _multiply(x: Tensor, weight: Tensor, factors: Factors | None, expert: int, out: Tensor) -> None:
    """out = x (W + scale B A)^T of one expert, W and B A apart. Mutates out."""
    _product(x, weight[expert], out)
    if factors is not None:
        a, b, scale = factors
        low = x.new_empty(x.shape[0], a.shape[1])
        _product(x, a[expert], low)
        out.addmm_(low, b[expert].T, alpha=scale)


def _product(x: Tensor, weight: Tensor, out: Tensor) -> None:
    if products.fits_tiles(x.dtype, x.shape[1], weight.shape[0]):
        out.copy_(products.linear(x, weight))
    else:
        torch.mm(x, weight.T, out=out)
