"""Product with a weight as stored, plain. N rows, K inner width, M output columns."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def linear(x: Float[Tensor, "N K"], weight: Float[Tensor, "M K"]) -> Float[Tensor, "N M"]:
    """x weight^T."""
    return F.linear(x, weight)
