"""What rows may look at: causal rows and canvases of several sequences over their caches.

N rows of the pass, H query heads, n KV heads, h head width, S visible positions, W sliding window.

Causal row at position p (W = 3, p = 4), full layer and sliding layer:

    keys     0 1 2 3 4          0 1 2 3 4
    p = 4    x x x x x          . . x x x       p - W < j <= p

Canvas of 2 after a prefix of 4: every canvas row sees the same keys, with no window inside the canvas.

    keys     0 1 2 3 | c c      0 1 2 3 | c c
    c        x x x x | x x      . . x x | x x   the last W - 1 of the prefix

Invariant: a sequence's rows see nothing of other sequences (tests/models/test_attention.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from presswork.cache.contiguous import KeyView, SequenceCache
from presswork.config import ModelConfig
from presswork.ops.attention import attend


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Rows start .. stop - 1 of a pass, of one sequence, in one mode; causal rows are appended to the cache."""

    start: int
    stop: int
    is_canvas: bool
    cache: SequenceCache


def causal_visibility(
    num_rows: int, first_row: int, num_keys: int, first_key: int, window: int | None, device: torch.device
) -> Bool[Tensor, "N S"] | None:
    """Which keys each causal row sees; None where a single row sees them all."""
    if num_rows == 1 and (window is None or num_keys <= window):
        return None
    rows = torch.arange(first_row, first_row + num_rows, device=device)[:, None]
    keys = torch.arange(first_key, first_key + num_keys, device=device)[None, :]
    visible = keys <= rows
    return visible if window is None else visible & (keys > rows - window)


class CachedAttention:
    """The `Attend` of inference: each segment attends over its own cache and, where causal, extends it."""

    def __init__(self, config: ModelConfig, segments: Sequence[Segment]):
        self._config, self._segments = config, segments

    def __call__(
        self, layer: int, q: Float[Tensor, "N H h"], k: Float[Tensor, "N n h"], v: Float[Tensor, "N n h"]
    ) -> Float[Tensor, "N H h"]:
        outputs = [self._segment(segment, layer, q, k, v) for segment in self._segments]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _segment(self, segment: Segment, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = slice(segment.start, segment.stop)
        if segment.is_canvas:
            view = segment.cache.stage(layer, k[rows], v[rows])
            return attend(q[rows], view.k, view.v)
        first_row = segment.cache.layers[layer].length
        view = segment.cache.append(layer, k[rows], v[rows])
        return attend(q[rows], view.k, view.v, self._visibility(layer, first_row, q[rows].shape[0], view))

    def _visibility(self, layer: int, first_row: int, num_rows: int, view: KeyView) -> Tensor | None:
        window = None if self._config.layers[layer].is_full else self._config.sliding_window
        return causal_visibility(num_rows, first_row, view.k.shape[1], view.first, window, view.k.device)
