"""Muon: momentum, orthogonalised, for the matrices inside the layers. R rows, C columns.

Source: Jordan 2024 (kellerjordan.github.io/posts/muon); scale of an update after Liu et al. 2025 (arXiv:2502.16982), so
that learning rate and weight decay mean what they mean for AdamW.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

# A quintic whose iterates bring singular values from (0, 1] to about 1 within five steps.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
_ADAMW_RMS = 0.2  # usual size of an entry of AdamW's update


def orthogonalise(matrix: Float[Tensor, "*E R C"]) -> Float[Tensor, "*E R C"]:
    """U V^T of the singular value decomposition U S V^T, roughly: singular values end between 0.7 and 1.2; pure.

    Computed in bfloat16 by Newton-Schulz iterations; each matrix of a stack by itself.
    """
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.bfloat16()
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).to(matrix.dtype)


@torch.no_grad()
def muon_step(
    master: Float[Tensor, "*E R C"],
    grad: Float[Tensor, "*E R C"],
    momentum: Float[Tensor, "*E R C"],
    *,
    rate: float,
    decay: float,
    beta: float,
    turn: Callable[[Tensor], Tensor] = orthogonalise,
    longest: int | None = None,
) -> None:
    """One Nesterov step. Mutates master and momentum.

    Args:
        rate, decay: learning rate and decoupled weight decay.
        beta: momentum.
        turn: orthogonalises; where the tensors are parts of a matrix, it does so of the whole and gives a part.
        longest: the larger of the whole matrix's R and C; None is that of the tensors.
    """
    momentum.lerp_(grad, 1 - beta)
    update = turn(grad.lerp(momentum, beta))
    scale = _ADAMW_RMS * math.sqrt(longest or max(master.shape[-2:]))
    master.mul_(1 - rate * decay).add_(update, alpha=-rate * scale)
