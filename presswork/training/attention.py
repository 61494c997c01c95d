"""Attention of the two training passes.

B examples, C canvases, R of them to an example, T prompt and response, L canvas, W sliding window.

Encoder pass, causal over the clean sequence; decoder pass, one noised canvas that starts at position a:

    keys      0 .. a-1 | a .. T-1 | canvas
    canvas    x x x x  | . . . .  | x x x      full layers
    canvas    . . x x  | . . . .  | x x x      sliding layers: the last W - 1 before a

Invariant: the canvas never sees clean keys at or after its own start (tests/training/test_attention.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from presswork.config import ModelConfig

AttendBatch = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(q [B, T, H, h], k [B, S, n, h], v [B, S, n, h], bias broadcast to [B, H, T, S]) -> [B, T, H, h]."""
AttendCanvases = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(q [C, L, H, h], prefix k, v [B, T, n, h], own k, v [C, L, n, h], bias [B, R, T]) -> [C, L, H, h], C = B R."""


@dataclass(frozen=True, slots=True)
class AttentionFunctions:
    """What the two passes compute attention with; a trainer may put compiled ones in their place."""

    causal: AttendBatch
    canvases: AttendCanvases


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


def attend_canvases(
    q: Float[Tensor, "C L H h"],
    prefix_k: Float[Tensor, "B T n h"],
    prefix_v: Float[Tensor, "B T n h"],
    k: Float[Tensor, "C L n h"],
    v: Float[Tensor, "C L n h"],
    bias: Float[Tensor, "B R T"],
) -> Float[Tensor, "C L H h"]:
    """Attention of B * R canvases, R to an example, over their example's keys under a bias and over their own.

    The softmax runs over both sets of keys; its two parts meet their values in products of their own.
    """
    num, repeats = bias.shape[:2]
    length, heads, kv_heads, width = q.shape[1], q.shape[2], k.shape[2], q.shape[3]
    # [B, n, R, heads that share keys, L, h]
    q = q.view(num, repeats, length, kv_heads, heads // kv_heads, width).permute(0, 3, 1, 4, 2, 5)
    own_k, own_v = (x.view(num, repeats, length, kv_heads, width).permute(0, 3, 1, 2, 4) for x in (k, v))
    prefix_k, prefix_v = prefix_k.transpose(1, 2), prefix_v.transpose(1, 2)
    rows = q.flatten(2, 4)
    before = (rows @ prefix_k.transpose(-1, -2)).unflatten(2, (repeats, -1)).float() + bias[:, None, :, None, :]
    own = (q.flatten(3, 4) @ own_k.transpose(-1, -2)).float()
    top = torch.maximum(before.amax(-1, keepdim=True), own.amax(-1, keepdim=True)).detach()
    before, own = torch.exp(before - top), torch.exp(own - top)
    total = before.sum(-1, keepdim=True) + own.sum(-1, keepdim=True)
    before, own = (before / total).to(q.dtype), (own / total).to(q.dtype)
    mixed = (before.flatten(2, 3) @ prefix_v).unflatten(2, (repeats, -1)) + own @ own_v
    mixed = mixed.unflatten(3, (heads // kv_heads, length))
    return mixed.permute(0, 2, 4, 1, 3, 5).reshape(num * repeats, length, heads, width)


def as_bias(visible: Bool[Tensor, "*X"]) -> Float[Tensor, "*X"]:
    """0 where visible, -inf elsewhere."""
    return torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, float("-inf"))


PLAIN_ATTENTION = AttentionFunctions(attend_batch, attend_canvases)


class EncoderAttention:
    """Causal attention that keeps every layer's keys and values for the decoder pass."""

    def __init__(
        self,
        config: ModelConfig,
        num_examples: int,
        length: int,
        device: torch.device,
        attend: AttendBatch,
        origins: Int[Tensor, "B T"] | None = None,
    ):
        self._config, self._shape, self._attend = config, (num_examples, length), attend
        self.kept: list[tuple[Tensor, Tensor]] = []
        keys = torch.arange(length, device=device)
        causal = keys[None, :] <= keys[:, None]
        if origins is not None:
            causal = (causal & (keys >= origins[:, :, None]))[:, None]
        windowed = causal & (keys[None, :] > keys[:, None] - config.sliding_window)
        self._full, self._sliding = as_bias(causal), as_bias(windowed)

    def __call__(
        self, layer: int, q: Float[Tensor, "N H h"], k: Float[Tensor, "N n h"], v: Float[Tensor, "N n h"]
    ) -> Float[Tensor, "N H h"]:
        q, k, v = (x.unflatten(0, self._shape) for x in (q, k, v))
        if layer == len(self.kept):
            # A layer that is recomputed for its gradient comes by a second time.
            self.kept.append((k, v))
        bias = self._full if self._config.layers[layer].is_full else self._sliding
        return self._attend(q, k, v, bias).flatten(0, 1)


class CanvasAttention:
    """Attention of C noised canvases over their examples' keys before their starts and over themselves.

    Where every example has equally many canvases, in order, its keys are read in place; otherwise each canvas gets a
    copy of its example's keys.
    """

    def __init__(
        self,
        config: ModelConfig,
        kept: list[tuple[Tensor, Tensor]],
        examples: Int[Tensor, "C"],
        starts: Int[Tensor, "C"],
        canvas_length: int,
        attend: AttendCanvases,
        origins: Int[Tensor, "C"] | None = None,
    ):
        self._config, self._kept, self._attend = config, kept, attend
        self._shape = (starts.shape[0], canvas_length)
        num, length = kept[0][0].shape[:2]
        repeats = max(1, examples.shape[0] // num)
        in_order = torch.arange(num, device=examples.device).repeat_interleave(repeats)
        self._copied = None if torch.equal(examples, in_order) else examples
        shape = (num, repeats) if self._copied is None else (examples.shape[0], 1)
        self._full, self._sliding = (
            as_bias(canvas_visibility(starts, length, window, origins)).unflatten(0, shape)
            for window in (None, config.sliding_window)
        )

    def __call__(
        self, layer: int, q: Float[Tensor, "N H h"], k: Float[Tensor, "N n h"], v: Float[Tensor, "N n h"]
    ) -> Float[Tensor, "N H h"]:
        q, k, v = (x.unflatten(0, self._shape) for x in (q, k, v))
        prefix_k, prefix_v = self._kept[layer]
        if self._copied is not None:
            prefix_k, prefix_v = prefix_k[self._copied], prefix_v[self._copied]
        bias = self._full if self._config.layers[layer].is_full else self._sliding
        return self._attend(q, prefix_k, prefix_v, k, v, bias).flatten(0, 1)


def canvas_visibility(
    starts: Int[Tensor, "C"], length: int, window: int | None, origins: Int[Tensor, "C"] | None = None
) -> Bool[Tensor, "C T"]:
    """Which of `length` clean positions every row of a canvas sees; besides them it sees its own canvas."""
    keys = torch.arange(length, device=starts.device)[None, :]
    visible = keys < starts[:, None]
    if origins is not None:
        visible &= keys >= origins[:, None]
    return visible if window is None else visible & (keys >= starts[:, None] - (window - 1))
