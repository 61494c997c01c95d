"""Temperature of each denoise step."""

from dataclasses import dataclass

import numpy as np

from presswork.config import require

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 100.0  # logits over much less than that overflow float32


@dataclass(frozen=True, slots=True, kw_only=True)
class TemperatureSchedule:
    """Falls linearly from t_max in the first step towards t_min, which the last step stays one increment above.

    Args:
        t_min, t_max: 0 <= t_min <= t_max, t_max at least 1e-6; equal ones are a constant temperature.
        num_steps: the step budget N.
    Source: tau(s) = t_min + (t_max - t_min) * s / N with s = N, N - 1, ..., 1, in float32.
    """

    num_steps: int
    t_min: float = 0.4
    t_max: float = 0.8

    def __post_init__(self) -> None:
        require(
            isinstance(self.num_steps, int) and self.num_steps >= 1,
            f"max_denoising_steps must be a positive integer, got {self.num_steps!r}",
        )
        require(self.t_max >= MIN_TEMPERATURE, f"t_max must be at least {MIN_TEMPERATURE:g}, got {self.t_max}")
        require(0 <= self.t_min <= self.t_max, f"t_min must lie in [0, t_max={self.t_max}], got {self.t_min}")
        require(self.t_max <= MAX_TEMPERATURE, f"t_max must be at most {MAX_TEMPERATURE:g}, got {self.t_max}")

    def temperature(self, step: int) -> float:
        """Temperature of step 0, 1, ..., num_steps - 1."""
        share = np.float32(self.num_steps - step) / np.float32(self.num_steps)
        return float(np.float32(self.t_min) + np.float32(self.t_max - self.t_min) * share)
