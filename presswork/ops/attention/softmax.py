"""Softmax of attention scores in place, on the CPU. S keys, n KV heads, R rows a KV head: (query row, head) pairs."""

import numpy as np
from numba import carray

from presswork.ops.lanes import claim, exp_sum, float32_at, keep, kernel, largest, uint8_at

_TURN = 16  # rows a thread takes at a time


@kernel()
def hide(scores, visible, num_keys):
    """-inf where a key is not visible; returns whether one is."""
    mask, seen = carray(uint8_at(visible), num_keys), np.uint8(0)
    for i in range(num_keys):
        scores[i] = scores[i] if mask[i] else np.float32(-np.inf)
        seen |= mask[i]
    return seen != 0


@kernel()
def softmax_share(scores_at, num_heads, num_rows, groups, num_keys, visible, visible_bytes, counter):
    """Rows of scores [n, R, S], in turns by `counter`; a row that sees no key becomes zero."""
    total_rows = num_heads * num_rows
    while True:
        first = _TURN * claim(counter)
        if first >= total_rows:
            break
        for r in range(first, min(first + _TURN, total_rows)):
            row = carray(float32_at(scores_at + 4 * num_keys * r), num_keys)
            if visible and not hide(row, visible + r % num_rows // groups * visible_bytes, num_keys):
                row[:] = 0
                continue
            factor = np.float32(1) / exp_sum(row, num_keys, largest(row, num_keys))
            for i in range(num_keys):
                row[i] *= factor


@kernel()
def softmax_alone(scores_at, num_heads, num_rows, groups, num_keys, visible, visible_bytes):
    """All rows of scores [n, R, S] on this thread."""
    counter = np.zeros(1, np.int64)
    softmax_share(
        scores_at, num_heads, num_rows, groups, num_keys, visible, visible_bytes, np.int64(counter.ctypes.data)
    )  # fmt: skip
    keep(counter)
