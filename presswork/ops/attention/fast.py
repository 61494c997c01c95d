"""Grouped-query attention for CPUs. N query rows, S keys, H query heads, n KV heads, g = H / n, h head width.

bfloat16 runs on AMX tiles, or by torch's fused attention where there are none. float32 is two products with the
softmax in between, a chunk of query rows at a time: torch's fused attention is off by more than 1e-5 there.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from presswork.ops.attention import tiles
from presswork.ops.attention.softmax import softmax_alone, softmax_share
from presswork.ops.threads import num_shares, run_shared

MAX_SCORES = 1 << 24  # scores, or entries of a mask, in memory at once: 64 MB of float32
_EXP_PRODUCTS = 64  # multiply-adds that take about as long as one exponential


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """softmax(q k^T) v, by the means that the dtype and the machine call for."""
    if q.shape[0] == 0 or k.shape[1] == 0:
        return torch.zeros_like(q)
    visible = None if visible is None else visible.contiguous()
    if q.dtype is torch.float32:
        return _attend_plain(q, k, v, visible)
    return tiles.attend(q, k, v, visible) if tiles.fits_tiles(q) else _attend_fused(q, k, v, visible)


def _attend_plain(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    num_rows, num_heads, head_dim = q.shape
    num_kv, num_keys = k.shape[0], k.shape[1]
    groups = num_heads // num_kv
    # The rows of one KV head are (query row, head of the group), so that a single query row still makes g rows.
    rows = q.unflatten(1, (num_kv, groups)).transpose(0, 1).reshape(num_kv, num_rows * groups, head_dim)
    out = torch.empty(num_rows, num_kv, groups, head_dim)
    chunk = max(1, MAX_SCORES // (num_heads * num_keys))
    k = k.transpose(1, 2)
    for start in range(0, num_rows, chunk):
        stop = min(start + chunk, num_rows)
        scores = torch.bmm(rows[:, start * groups : stop * groups], k)
        _softmax(scores, groups, None if visible is None else visible[start:stop])
        mixed = torch.bmm(scores, v)
        out[start:stop] = mixed.unflatten(1, (stop - start, groups)).transpose(0, 1)
    return out.flatten(1, 2)


def _softmax(scores: Tensor, groups: int, visible: Tensor | None) -> None:
    """In place."""
    num_kv, num_rows, num_keys = scores.shape
    mask = 0 if visible is None else visible.data_ptr()
    shares = num_shares(scores.numel() * _EXP_PRODUCTS, num_kv * num_rows)
    arguments = (scores.data_ptr(), num_kv, num_rows, groups, num_keys, mask, num_keys)
    if shares == 1:
        softmax_alone(*arguments)
    else:
        run_shared(shares, softmax_share, *arguments)


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    num_rows, is_grouped = q.shape[0], q.shape[1] != k.shape[0]
    chunk = num_rows if visible is None else max(1, MAX_SCORES // k.shape[1])
    parts = []
    for start in range(0, num_rows, chunk):
        mask = None if visible is None else visible[start : start + chunk]
        mixed = F.scaled_dot_product_attention(
            q[start : start + chunk].transpose(0, 1)[None], k[None], v[None], mask, scale=1.0, enable_gqa=is_grouped
        )[0].transpose(0, 1)
        parts.append(mixed if mask is None else mixed.masked_fill(~mask.any(1)[:, None, None], 0.0))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
