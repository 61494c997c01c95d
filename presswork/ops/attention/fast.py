"""Grouped-query attention for CPUs. N query rows, S keys, H query heads, n KV heads, g = H / n, h head width.

bfloat16 runs on AMX tiles. float32, and bfloat16 where there are no tiles, is two float32 products a span of keys with
the softmax in between: torch's fused attention is off by more than 1e-5, and rounds by how many keys there are.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from presswork.ops.attention import tiles
from presswork.ops.attention.softmax import SPAN, span_share
from presswork.ops.linear.fast import MIN_ROWS
from presswork.ops.threads import num_shares, run_shared

MAX_SCORES = 1 << 24  # scores in memory at once: 64 MB of float32
_EXP_PRODUCTS = 64  # multiply-adds that take about as long as one exponential


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """softmax(q k^T) v, by the means that the dtype and the machine call for."""
    if q.shape[0] == 0 or k.shape[1] == 0:
        return torch.zeros_like(q)
    visible = None if visible is None else visible.contiguous()
    if q.dtype is torch.bfloat16 and tiles.fits_tiles(q):
        return tiles.attend(q, k, v, visible)
    return _attend_plain(q.float(), k, v, visible).to(q.dtype)


def _attend_plain(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    num_rows, num_heads, head_dim = q.shape
    num_kv = k.shape[0]
    groups = num_heads // num_kv
    # The rows of one KV head are (query row, head of the group), so that a single query row still makes g rows.
    rows = q.unflatten(1, (num_kv, groups)).transpose(0, 1).reshape(num_kv, num_rows * groups, head_dim)
    out = torch.empty(num_rows, num_kv, groups, head_dim)
    chunk = max(1, MAX_SCORES // (num_heads * SPAN))
    for start in range(0, num_rows, chunk):
        stop = min(start + chunk, num_rows)
        part = rows[:, start * groups : stop * groups]
        mixed = _attend_spans(part, k, v, groups, None if visible is None else visible[start:stop])
        out[start:stop] = mixed.unflatten(1, (stop - start, groups)).transpose(0, 1)
    return out.flatten(1, 2)


def _attend_spans(rows: Tensor, k: Tensor, v: Tensor, groups: int, visible: Tensor | None) -> Tensor:
    """Attention of the rows [n, R, h] of each KV head, keys in spans of one size with running maxima and sums."""
    num_kv, num_rows, _ = rows.shape
    # Products of fewer rows take other kernels, which round otherwise.
    rows = F.pad(rows, (0, 0, 0, max(0, MIN_ROWS - num_rows)))
    mixed = torch.zeros(rows.shape)
    running = torch.zeros(num_kv, rows.shape[1], 3)
    running[..., 0] = float("-inf")
    num_keys = k.shape[1]
    # Padding rows see nothing.
    visible = None if visible is None else F.pad(visible, (0, 0, 0, rows.shape[1])).contiguous()
    for start in range(0, num_keys, SPAN):
        count = min(SPAN, num_keys - start)
        keys, values = (F.pad(x[:, start : start + count].float(), (0, 0, 0, SPAN - count)) for x in (k, v))
        scores = torch.bmm(rows, keys.transpose(1, 2))
        mask = 0 if visible is None else visible.data_ptr() + start
        _advance(scores, running, groups, count, mask, num_keys)
        mixed = mixed * running[..., 2:] + torch.bmm(scores, values)
    total = running[:, :num_rows, 1:2]
    return torch.where(total == 0, 0.0, mixed[:, :num_rows] / total)


def _advance(scores: Tensor, running: Tensor, groups: int, num_keys: int, mask: int, mask_bytes: int) -> None:
    """Turn a span's scores into weights and move the running numbers. Mutates both."""
    num_kv, num_rows = scores.shape[:2]
    arguments = (scores.data_ptr(), num_kv, num_rows, groups, num_keys, mask, mask_bytes, running.data_ptr())
    shares = num_shares(scores.numel() * _EXP_PRODUCTS, num_kv * num_rows)
    run_shared(shares, span_share, *arguments)
