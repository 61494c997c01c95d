"""Gated activation and the MLP around it, plain. N rows, D model width, f width."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def gated_gelu(gate_up: Float[Tensor, "N F2"]) -> Float[Tensor, "N f"]:
    """gelu(gate) * up with the tanh approximation; the first half of the columns is the gate."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


def gated_mlp(
    x: Float[Tensor, "N D"], gate_up: Float[Tensor, "F2 D"], down: Float[Tensor, "D f"]
) -> Float[Tensor, "N D"]:
    """down gated_gelu(gate_up x)."""
    return F.linear(gated_gelu(F.linear(x, gate_up)), down)
