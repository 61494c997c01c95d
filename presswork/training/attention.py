"""Attention of the two training passes. B examples, C canvases, T prompt and response, L canvas, W sliding window.

Encoder pass, causal over the clean sequence; decoder pass, one noised canvas that starts at position a:

    keys      0 .. a-1 | a .. T-1 | canvas
    canvas    x x x x  | . . . .  | x x x      full layers
    canvas    . . x x  | . . . .  | x x x      sliding layers: the last W - 1 before a

Invariant: the canvas never sees clean keys at or after its own start (tests/training/test_attention.py).
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from presswork.config import ModelConfig

AttendBatch = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(q [B, T, H, h], k [B, S, n, h], v [B, S, n, h], bias broadcast to [B, H, T, S]) -> [B, T, H, h]."""


def attend_batch(
    q: Float[Tensor, "B T H h"], k: Float[Tensor, "B S n h"], v: Float[Tensor, "B S n h"], bias: Float[Tensor, "*X T S"]
) -> Float[Tensor, "B T H h"]:
    """softmax(q k^T + bias) v with scale 1 and grouped heads, as two batched products.

    At training lengths this runs twice as fast on a CPU as the fused kernel, whose backward pass is slow for narrow
    heads; a compiler fuses what lies between the products.
    """
    groups = q.shape[2] // k.shape[2]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    weights = torch.softmax((q @ k.transpose(-1, -2)).float() + bias, dim=-1).to(q.dtype)
    return (weights @ v).transpose(1, 2)


def as_bias(visible: Bool[Tensor, "*X"]) -> Float[Tensor, "*X"]:
    """0 where visible, -inf elsewhere."""
    return torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, float("-inf"))


class EncoderAttention:
    """Causal attention that keeps every layer's keys and values for the decoder pass."""

    def __init__(self, config: ModelConfig, num_examples: int, length: int, device: torch.device, attend: AttendBatch):
        self._config, self._shape, self._attend = config, (num_examples, length), attend
        self.kept: list[tuple[Tensor, Tensor]] = []
        keys = torch.arange(length, device=device)
        causal = keys[None, :] <= keys[:, None]
        windowed = causal & (keys[None, :] > keys[:, None] - config.sliding_window)
        self._full, self._sliding = as_bias(causal), as_bias(windowed)

    def __call__(
        self, layer: int, q: Float[Tensor, "N H h"], k: Float[Tensor, "N n h"], v: Float[Tensor, "N n h"]
    ) -> Float[Tensor, "N H h"]:
        q, k, v = (x.unflatten(0, self._shape) for x in (q, k, v))
        self.kept.append((k, v))
        bias = self._full if self._config.layers[layer].is_full else self._sliding
        return self._attend(q, k, v, bias).flatten(0, 1)


class CanvasAttention:
    """Attention of C noised canvases over their examples' keys before their starts and over themselves."""

    def __init__(
        self,
        config: ModelConfig,
        kept: list[tuple[Tensor, Tensor]],
        examples: Int[Tensor, "C"],
        starts: Int[Tensor, "C"],
        canvas_length: int,
        attend: AttendBatch,
    ):
        self._config, self._kept, self._examples, self._attend = config, kept, examples, attend
        self._shape = (starts.shape[0], canvas_length)
        length = kept[0][0].shape[1]
        self._full = as_bias(canvas_visibility(starts, length, canvas_length, None))
        self._sliding = as_bias(canvas_visibility(starts, length, canvas_length, config.sliding_window))

    def __call__(
        self, layer: int, q: Float[Tensor, "N H h"], k: Float[Tensor, "N n h"], v: Float[Tensor, "N n h"]
    ) -> Float[Tensor, "N H h"]:
        q, k, v = (x.unflatten(0, self._shape) for x in (q, k, v))
        prefix_k, prefix_v = (x[self._examples] for x in self._kept[layer])
        bias = self._full if self._config.layers[layer].is_full else self._sliding
        return self._attend(q, torch.cat([prefix_k, k], 1), torch.cat([prefix_v, v], 1), bias).flatten(0, 1)


def canvas_visibility(
    starts: Int[Tensor, "C"], length: int, canvas_length: int, window: int | None
) -> Bool[Tensor, "C 1 1 S"]:
    """Keys every row of a canvas sees among `length` clean positions followed by the canvas itself."""
    keys = torch.arange(length, device=starts.device)[None, :]
    visible = keys < starts[:, None]
    if window is not None:
        visible &= keys >= starts[:, None] - (window - 1)
    return F.pad(visible, (0, canvas_length), value=True)[:, None, None, :]
