"""Uniform-state corruption of clean tokens. B examples, L canvas."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MIN_TIME = 1e-4


def draw_times(num: int, generator: torch.Generator, parts: int = 1) -> Float[Tensor, "B"]:
    """t ~ U(1e-4, 1) for each example; t = 1 is pure noise.

    Args:
        parts: with R, every R examples in a row get one time from each of R equal parts, for less variance.
    """
    part = torch.arange(num) % parts
    return MIN_TIME + (1.0 - MIN_TIME) * (part + torch.rand(num, generator=generator)) / parts


def corrupt(
    x0: Int[Tensor, "B L"], t: Float[Tensor, "B"], vocab_size: int, generator: torch.Generator
) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Replace each token, independently with probability t, by one drawn uniformly from the whole vocabulary.

    Returns:
        (xt, replaced): a replacement may be the token it replaces.
    Source: the linear schedule of DiffusionGemma's fine-tuning code.
    """
    replaced = torch.rand(x0.shape, generator=generator) < t[:, None]
    noise = torch.randint(0, vocab_size, x0.shape, generator=generator)
    return torch.where(replaced, noise, x0), replaced
