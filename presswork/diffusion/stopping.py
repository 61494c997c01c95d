"""When a canvas has converged. L canvas."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from presswork.config import require


@dataclass(frozen=True, slots=True, kw_only=True)
class StableAndConfidentRule:
    """Stop once the arg-max canvas equals each of the previous K ones and the mean entropy is tiny.

    Args:
        stability_threshold: K >= 0; the earliest stop is step K + 1; 0 means always stable.
        confidence_threshold: mean entropy in nats must be strictly below it; above 0.
    """

    stability_threshold: int = 1
    confidence_threshold: float = 0.005

    def __post_init__(self) -> None:
        require(
            isinstance(self.stability_threshold, int) and self.stability_threshold >= 0,
            f"stability_threshold must be an integer of at least 0, got {self.stability_threshold!r}",
        )
        require(self.confidence_threshold > 0, f"confidence_threshold must be above 0, got {self.confidence_threshold}")

    def converged(
        self, argmax: Int[Tensor, "L"], previous: Sequence[Int[Tensor, "L"]], entropy: Float[Tensor, "L"]
    ) -> bool:
        """Args: previous: arg-max canvases of this canvas's earlier steps, oldest first."""
        wanted = self.stability_threshold
        if len(previous) < wanted:
            return False
        stable = all(torch.equal(argmax, old) for old in previous[len(previous) - wanted :])
        return stable and float(entropy.mean()) < self.confidence_threshold
