"""Grouped-query attention in bfloat16 on AMX tiles, in one pass over the keys.

N query rows, S keys, H query heads, n KV heads, g = H / n heads a group, h head width. The N g query rows that share
a KV head are treated as one matrix. Keys go by in spans of SPAN; for each span a query row keeps its running maximum m,
the sum l of its weights relative to m, and its weighted values o:

    m' = max(m, max s)    l' = l e^(m - m') + sum e^(s - m')    o' = o e^(m - m') + e^(s - m') V

Source: online softmax, Milakov and Gimelshein 2018 (arXiv:1805.02867).
"""

import numpy as np
import torch
from numba import carray
from torch import Tensor

from presswork.ops.attention.softmax import SPAN, hide
from presswork.ops.lanes import (
    claim,
    exp,
    exp_sum,
    float32_at,
    keep,
    kernel,
    largest,
    uint8_at,
    uint16_at,
    write_row,
)
from presswork.ops.threads import num_shares, run_shared
from presswork.ops.tiles import (
    TILE_BYTES,
    aligned,
    has_tiles,
    multiply,
    pack_matrix,
    pair_rows,
    start_tiles,
    stop_tiles,
)

_ROWS = 32  # query rows worked on together
_WHOLE = 64  # scores that a compiled sum takes in one round; SPAN is a multiple


@kernel()
def _pack_values(v, v_bytes, num_keys, steps, width, target):
    """V of a span as B tiles [h / 16][steps][16 pairs of keys][16]; missing keys are zero."""
    zeros = np.zeros(width, np.uint16)
    for pair in range(16 * steps):
        even = v + 2 * pair * v_bytes if 2 * pair < num_keys else np.int64(zeros.ctypes.data)
        odd = v + (2 * pair + 1) * v_bytes if 2 * pair + 1 < num_keys else np.int64(zeros.ctypes.data)
        place = target + pair // 16 * TILE_BYTES + pair % 16 * 64
        for first in range(0, width, 16):
            pair_rows(even + 2 * first, odd + 2 * first, place + first // 16 * steps * TILE_BYTES)
    keep(zeros)


@kernel()
def _sees_any(visible, visible_bytes, first, count, groups, num_keys):
    """Whether one of the rows sees a key of the span."""
    seen = np.uint8(0)
    for i in range(first // groups, (first + count - 1) // groups + 1):
        mask = carray(uint8_at(visible + i * visible_bytes), num_keys)
        for j in range(num_keys):
            seen |= mask[j]
    return seen != 0


@kernel()
def _soften(scores, width, top, total, weights):
    """Weights of a span's scores as bfloat16; returns (m', l', e^(m - m'))."""
    new_top = max(top, largest(scores, width))
    shrink = exp(top - new_top)
    new_total = total * shrink + exp_sum(scores, width, new_top)
    write_row(scores, width, True, weights)
    return new_top, new_total, shrink


@kernel()
def _weigh(scores_at, count, num_keys, visible, visible_bytes, first, groups, top, total, shrink, weights):
    """Turn a span's scores of `count` rows into bfloat16 weights and advance the rows' running numbers.

    A row is summed over whole vectors, missing and hidden keys weighing zero, so that its sum comes out the same bit
    for bit however many of them follow.
    """
    width = (num_keys + _WHOLE - 1) // _WHOLE * _WHOLE
    for i in range(count):
        scores, place = carray(float32_at(scores_at + 4 * SPAN * i), width), weights + 2 * SPAN * i
        for j in range(num_keys, width):
            scores[j] = np.float32(-np.inf)
        if visible and not hide(scores, visible + (first + i) // groups * visible_bytes, num_keys):
            blank = carray(uint16_at(place), width)
            blank[:] = 0
            shrink[i] = 1
        else:
            top[first + i], total[first + i], shrink[i] = _soften(
                scores, width, top[first + i], total[first + i], place
            )


@kernel()
def _attend_head(
    q, q_bytes, k, k_bytes, v, v_bytes, visible, visible_bytes, out, num_rows, groups, num_keys, head_dim
):  # fmt: skip
    """One KV head with its group of query heads; rows are (query row, head of the group) pairs."""
    rows = num_rows * groups
    padded = (rows + _ROWS - 1) // _ROWS * _ROWS
    top, total = np.full(padded, np.float32(-np.inf)), np.zeros(padded, np.float32)
    mixed, shrink = np.zeros((padded, head_dim), np.float32), np.ones(_ROWS, np.float32)
    spans = 2 * head_dim * (padded + 2 * SPAN)
    memory = np.empty(spans + _ROWS * (4 * SPAN + 2 * SPAN + 4 * head_dim) + 64, np.uint8)
    keys = aligned(memory)
    values = keys + 2 * head_dim * SPAN
    queries = values + 2 * head_dim * SPAN
    scores = queries + 2 * head_dim * padded
    weights = scores + 4 * SPAN * _ROWS
    product = weights + 2 * SPAN * _ROWS
    _gather_queries(q, q_bytes, rows, padded, groups, head_dim, queries)
    for start in range(0, num_keys, SPAN):
        span = min(SPAN, num_keys - start)
        steps = (span + 31) // 32
        pack_matrix(k + start * k_bytes, k_bytes, span, head_dim, keys)
        _pack_values(v + start * v_bytes, v_bytes, span, steps, head_dim, values)
        for first in range(0, rows, _ROWS):
            count = min(_ROWS, rows - first)
            if visible and not _sees_any(visible + start, visible_bytes, first, count, groups, span):
                continue
            source = queries + 2 * head_dim * first
            for tile in range(0, span, 32):
                multiply(
                    source, source + 32 * head_dim, 2 * head_dim, keys + tile * 2 * head_dim, span - tile > 16,
                    head_dim // 32, scores + 4 * tile, 4 * SPAN, 64, 64 * SPAN, 0,
                )  # fmt: skip
            shown = visible + start if visible else 0
            _weigh(
                scores, count, span, shown, visible_bytes, first, groups, top, total, shrink, weights
            )  # fmt: skip
            for column in range(0, head_dim, 32):
                multiply(
                    weights, weights + 32 * SPAN, 2 * SPAN, values + column // 16 * steps * TILE_BYTES, True, steps,
                    product + 4 * column, 4 * head_dim, 64, 64 * head_dim, 0,
                )  # fmt: skip
            _accumulate(mixed, first, count, head_dim, shrink, product)
    _store_mixed(mixed, total, rows, groups, head_dim, q_bytes, out)
    keep(memory)


@kernel()
def _gather_queries(q, q_bytes, rows, padded, groups, head_dim, target):
    for r in range(padded):
        row = carray(uint16_at(target + 2 * head_dim * r), head_dim)
        source = carray(
            uint16_at(q + r // groups * q_bytes + r % groups * 2 * head_dim if r < rows else target), head_dim
        )
        for i in range(head_dim):
            row[i] = source[i] if r < rows else np.uint16(0)


@kernel()
def _accumulate(mixed, first, count, head_dim, shrink, product):
    for i in range(count):
        fresh, row, factor = carray(float32_at(product + 4 * head_dim * i), head_dim), mixed[first + i], shrink[i]
        for d in range(head_dim):
            row[d] = row[d] * factor + fresh[d]


@kernel()
def _store_mixed(mixed, total, rows, groups, head_dim, out_bytes, out):
    for r in range(rows):
        factor = np.float32(0) if total[r] == 0 else np.float32(1) / total[r]
        row = mixed[r]
        for d in range(head_dim):
            row[d] *= factor
        write_row(row, head_dim, True, out + r // groups * out_bytes + r % groups * 2 * head_dim)


@kernel()
def _attend_share(
    q, q_bytes, k, k_head_bytes, k_bytes, v, v_head_bytes, v_bytes, visible, visible_bytes, out, num_rows, num_kv_heads,
    groups, num_keys, head_dim, parts, counter,
):  # fmt: skip
    """Pieces of work are (KV head, part of the query rows), as `counter` hands them out; 0: all of them here."""
    part_rows, own = (num_rows + parts - 1) // parts, np.zeros(1, np.int64)
    counter = counter if counter else np.int64(own.ctypes.data)
    start_tiles()
    while True:
        piece = claim(counter)
        if piece >= num_kv_heads * parts:
            break
        first = piece % parts * part_rows
        count, columns = min(part_rows, num_rows - first), piece // parts * groups * 2 * head_dim
        if count > 0:
            _attend_head(
                q + first * q_bytes + columns, q_bytes, k + piece // parts * k_head_bytes, k_bytes,
                v + piece // parts * v_head_bytes, v_bytes, visible + first * visible_bytes if visible else 0,
                visible_bytes, out + first * q_bytes + columns, count, groups, num_keys, head_dim,
            )  # fmt: skip
    stop_tiles()
    keep(own)


def fits_tiles(q: Tensor) -> bool:
    """Whether attention of these heads runs on tiles."""
    return q.dtype is torch.bfloat16 and q.shape[2] % 32 == 0 and has_tiles()


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """softmax(q k^T) v; scores and sums in float32, weights rounded to bfloat16."""
    q = q.contiguous()
    k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (k, v))
    visible = None if visible is None else visible.contiguous()
    num_rows, num_heads, head_dim = q.shape
    num_kv_heads, num_keys = k.shape[0], k.shape[1]
    out = q.new_empty(q.shape)
    arguments = (
        q.data_ptr(), 2 * num_heads * head_dim, k.data_ptr(), 2 * k.stride(0), 2 * k.stride(1), v.data_ptr(),
        2 * v.stride(0), 2 * v.stride(1), 0 if visible is None else visible.data_ptr(), num_keys, out.data_ptr(),
        num_rows, num_kv_heads, num_heads // num_kv_heads, num_keys, head_dim,
    )  # fmt: skip
    # Each exponential costs about as much as 64 multiply-adds on tiles.
    num_products = num_rows * num_heads * num_keys * (2 * head_dim + 64)
    shares = num_shares(num_products, num_rows * num_heads // _ROWS)
    run_shared(shares, _attend_share, *arguments, (shares + num_kv_heads - 1) // num_kv_heads)
    return out
