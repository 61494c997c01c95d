"""Where top_k and top_p cut a row, from all its logits at once. V vocab.

Nothing here calls into another file of compiled functions, so numba's cache notices every change.
"""

import numpy as np
from numba import njit

_BINS = 4096
_BINS_PER_UNIT = np.float32(64.0)  # 64 units of z below the largest; whatever is lower shares the last bin


@njit(nogil=True, cache=True, error_model="numpy")
def _bin(z, top):
    return int(min((top - z) * _BINS_PER_UNIT, np.float32(_BINS - 1)))


@njit(nogil=True, cache=True, error_model="numpy")
def _cut_at(z, e, counting, target, top):
    """(z, id) of the last token of the shortest prefix, by falling z then rising id, whose weight reaches target."""
    weights, sizes = np.zeros(_BINS), np.zeros(_BINS, np.int64)
    for j in range(len(z)):
        if z[j] > -np.inf:
            k = _bin(z[j], top)
            weights[k] += 1.0 if counting else e[j]
            sizes[k] += 1
    before, chosen = 0.0, 0
    while chosen < _BINS - 1 and before + weights[chosen] < target:
        before += weights[chosen]
        chosen += 1
    members, found = np.empty(sizes[chosen], np.int64), 0
    for j in range(len(z)):
        if z[j] > -np.inf and _bin(z[j], top) == chosen:
            members[found] = j
            found += 1
    for place in np.argsort(-z[members], kind="mergesort"):
        j = members[place]
        before += 1.0 if counting else e[j]
        if before >= target:
            return z[j], j
    return np.float32(-np.inf), len(z)


@njit(nogil=True, cache=True, error_model="numpy")
def find_cut(z, e, top, top_k, top_p):
    """Cut of one row: tokens with a smaller z, or the same z and a larger id, are out; minus infinity keeps all.

    e is exp(z - top). top_k 0 and top_p 1 are off; top_p applies to the mass that top_k leaves.
    """
    cut_z, cut_id = np.float32(-np.inf), len(z)
    if top_k > 0:
        cut_z, cut_id = _cut_at(z, e, True, float(top_k), top)
    if top_p < 1.0:
        mass = 0.0
        for j in range(len(z)):
            if z[j] > cut_z or (z[j] == cut_z and j <= cut_id):
                mass += e[j]
        cut_z, cut_id = _cut_at(z, e, False, top_p * mass, top)
    return cut_z, cut_id
