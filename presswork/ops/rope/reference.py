"""Rotary position embedding, plain. N rows, H heads, h head width."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from presswork.config import RopeConfig


def rope_frequencies(config: RopeConfig, head_dim: int) -> Float[Tensor, "half"]:
    """Angular frequency of each of the head_dim / 2 component pairs, float32.

    Proportional: the exponent divides by the full head width and pairs past the rotated share stand still.
    Source: spec of the released model (3.1); transformers' `proportional` rope type.
    """
    half = head_dim // 2
    if config.proportional:
        rotated = int(config.rotary_fraction * head_dim // 2)
        exponent = torch.arange(rotated, dtype=torch.float32) * 2 / head_dim
        moving = 1.0 / config.theta**exponent / config.factor
        return torch.cat([moving, torch.zeros(half - rotated)])
    width = int(head_dim * config.rotary_fraction)
    exponent = torch.arange(0, width, 2, dtype=torch.float32) / width
    return 1.0 / config.theta**exponent / config.factor


def rope_table(
    frequencies: Float[Tensor, "half"], positions: Int[Tensor, "N"], dtype: torch.dtype
) -> tuple[Float[Tensor, "N half"], Float[Tensor, "N half"]]:
    """(cos, sin) of position times frequency: angles in float32, results cast to dtype."""
    angles = positions.to(torch.float32)[:, None] * frequencies.to(positions.device)[None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rope(
    x: Float[Tensor, "N H h"], cos: Float[Tensor, "N half"], sin: Float[Tensor, "N half"]
) -> Float[Tensor, "N H h"]:
    """Rotate component j against component j + h/2 by each row's angles."""
    low, high = x.chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)
