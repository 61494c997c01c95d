"""The gated activation of dense and expert MLPs, and the dense MLP itself."""

from jaxtyping import Float
from torch import Tensor

from presswork.ops.choice import Impl, takes_fast
from presswork.ops.gated_gelu import fast, reference

__all__ = ["gated_gelu", "gated_mlp"]


def gated_gelu(gate_up: Float[Tensor, "*N F2"], impl: Impl = "auto") -> Float[Tensor, "*N f"]:
    """gelu(gate) * up with the tanh approximation; the first half of the columns is the gate; pure.

    Args:
        impl: "auto" takes the fused CPU twin where it can, see presswork.ops.choice.

    Raises:
        ConfigError: an unknown impl, or "fast" for tensors it cannot take.
    """
    if takes_fast(impl, gate_up):
        return fast.gated_gelu(gate_up)
    return reference.gated_gelu(gate_up)


def gated_mlp(
    x: Float[Tensor, "N D"], gate_up: Float[Tensor, "F2 D"], down: Float[Tensor, "D f"], impl: Impl = "auto"
) -> Float[Tensor, "N D"]:
    """Project to gate and up, activate, project back; gate and up are stored one above the other; pure.

    Args:
        impl: "auto" takes the fused CPU twin where it can, see presswork.ops.choice.

    Raises:
        ConfigError: an unknown impl, or "fast" for tensors it cannot take.
    """
    if takes_fast(impl, x, gate_up, down):
        return fast.gated_mlp(x, gate_up, down)
    return reference.gated_mlp(x, gate_up, down)
