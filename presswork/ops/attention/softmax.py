"""Softmax of attention scores on the CPU, a span of keys at a time. n KV heads, R rows a KV head: (query row, head).

A row's sums always run over whole spans, hidden and missing keys weighing zero, so they come out the same bit for bit
wherever the keys that a row does not see begin and end.
"""

import numpy as np
from numba import carray

from presswork.ops.lanes import claim, exp, exp_sum, float32_at, keep, kernel, largest, uint8_at

SPAN = 256
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
def span_share(scores_at, num_heads, num_rows, groups, num_keys, visible, visible_bytes, running_at, counter):
    """Scores of one span [n, R, SPAN] become weights in place, rows in turns by `counter`; 0: all of them here.

    Args: num_keys: keys of the span that exist. running_at: (m, l, shrink) of each row, float32 [n R, 3]; the weighted
    values so far have to be multiplied by shrink = e^(m - m').
    """
    total_rows, own = num_heads * num_rows, np.zeros(1, np.int64)
    counter = counter if counter else np.int64(own.ctypes.data)
    while True:
        first = _TURN * claim(counter)
        if first >= total_rows:
            break
        for r in range(first, min(first + _TURN, total_rows)):
            row = carray(float32_at(scores_at + 4 * SPAN * r), SPAN)
            running = carray(float32_at(running_at + 12 * r), 3)
            row[num_keys:] = np.float32(-np.inf)
            if visible and not hide(row, visible + r % num_rows // groups * visible_bytes, num_keys):
                row[:] = 0
                running[2] = 1
                continue
            top = max(running[0], largest(row, SPAN))
            running[2] = exp(running[0] - top)
            running[1] = running[1] * running[2] + exp_sum(row, SPAN, top)
            running[0] = top
    keep(own)
