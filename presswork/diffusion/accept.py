"""Which sampled tokens of a step stay in the canvas. L canvas; leading dimensions are canvases of their own."""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from presswork.config import require


class AcceptRule(Protocol):
    """A pure function of one step's readings; acceptance starts from nothing in every step."""

    def accept(self, entropy: Float[Tensor, "*C L"], max_logprob: Float[Tensor, "*C L"]) -> Bool[Tensor, "*C L"]:
        """True where the sampled token is kept, False where the position is renoised."""
        ...


@dataclass(frozen=True, slots=True)
class EntropyBoundRule:
    """Accept positions in order of entropy until the budget is crossed; the crossing position is still accepted.

    Position r of the sorted entropies is accepted iff C_r - H_r <= entropy_bound, C the inclusive cumulative sum, so
    at least one position always is. Ties at the boundary go to the lower position.
    Source: the reference sampler; the inclusive sum minus its own term is not bit-equal to an exclusive sum.
    """

    entropy_bound: float = 0.1

    def __post_init__(self) -> None:
        require(self.entropy_bound > 0, f"entropy_bound must be above 0, got {self.entropy_bound}")

    def accept(self, entropy: Float[Tensor, "*C L"], max_logprob: Float[Tensor, "*C L"]) -> Bool[Tensor, "*C L"]:
        ordered, order = torch.sort(entropy, stable=True)
        within = torch.cumsum(ordered, -1) - ordered <= self.entropy_bound
        return torch.zeros_like(within).scatter(-1, order, within)


@dataclass(frozen=True, slots=True)
class ConfidenceRule:
    """Accept positions whose most likely token has at least this probability, and always the most certain one."""

    threshold: float = 0.9

    def __post_init__(self) -> None:
        require(0 < self.threshold <= 1, f"accept_threshold must lie in (0, 1], got {self.threshold}")

    def accept(self, entropy: Float[Tensor, "*C L"], max_logprob: Float[Tensor, "*C L"]) -> Bool[Tensor, "*C L"]:
        confident = max_logprob.exp() >= self.threshold
        return confident.scatter(-1, max_logprob.argmax(-1, keepdim=True), True)
