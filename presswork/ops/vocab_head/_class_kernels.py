"""Compiled loops that read the classes of a chunk of products. N rows, T tokens, P pieces, C classes.

Products come as [T, N], so that every loop runs over the rows of one token: they vectorise whatever the classes are,
and products need no transposition. A piece (at most PIECE tokens of one class) is summed in float32, and pieces are
merged in float64. The small functions come from `_kernels.py`; numba's cache notices a change there no more than one
in `_intrinsics.py`.
"""

import numpy as np
from numba import njit

from presswork.ops.vocab_head._intrinsics import as_float, wide_bits
from presswork.ops.vocab_head._kernels import ABS_BITS, EXACT, INF_BITS, exp, inverse_temperature, tanh
from presswork.ops.vocab_head.classes import PIECE

LOWEST = np.float32(-1e38)  # the top of a piece without tokens: differences of tops stay finite

_F = np.float32
_I = np.int32


@njit(nogil=True, cache=True, error_model="numpy", fastmath=EXACT)
def _scale_column(bits, inverse_cap, scale, z, magnitude):
    """z of one token in every row; keeps the largest magnitude of a product as bits."""
    if inverse_cap == _F(0):
        for i in range(len(z)):
            wide = wide_bits(bits[i])
            magnitude[i] = _I(max(magnitude[i], wide & ABS_BITS))
            z[i] = scale[i] * as_float(wide)
    else:
        for i in range(len(z)):
            wide = wide_bits(bits[i])
            magnitude[i] = _I(max(magnitude[i], wide & ABS_BITS))
            z[i] = scale[i] * tanh(as_float(wide) * inverse_cap)


@njit(nogil=True, cache=True)
def _edit_column(z, token, inverse_cap, scale, row_edits, edit_starts, edit_ids, edit_changes):
    """The edits of one token in every row: a penalty (factor > 0) and a bias, or a ban (factor 0)."""
    for group in range(len(edit_starts) - 1):
        begin, end = edit_starts[group], edit_starts[group + 1]
        place = begin + np.searchsorted(edit_ids[begin:end], token)
        if place == end or edit_ids[place] != token:
            continue
        factor, bias = edit_changes[place]
        for i in range(len(row_edits)):
            if row_edits[i] == group:
                if factor == _F(0):
                    z[i] = -np.inf
                else:
                    z[i] = z[i] / factor if z[i] > 0 else z[i] * factor
                    z[i] += bias * inverse_temperature(inverse_cap, scale[i])


@njit(nogil=True, cache=True)
def _raise_top(z, token, top, best):
    for i in range(len(z)):
        above = z[i] > top[i]
        top[i] = z[i] if above else top[i]
        best[i] = token if above else best[i]


@njit(nogil=True, cache=True, error_model="numpy", fastmath=EXACT)
def _add_exponentials(z, top, mass, moment):
    """Add e = exp(z - top) and (z - top) e of one token in every row."""
    for i in range(len(z)):
        drop = max(z[i] - top[i], _F(-88))
        e = exp(drop)
        e = e if drop > _F(-87) else _F(0)
        mass[i] += e
        moment[i] += drop * e


@njit(nogil=True, cache=True)
def _lone_mass(top, mass):
    for i in range(len(top)):
        mass[i] = _F(1) if top[i] > LOWEST else _F(0)


@njit(nogil=True, cache=True)
def _store(top, mass, moment, best, p, sums, bests):
    rows = bests.shape[2]
    for group in range(len(sums)):
        for i in range(rows):
            sums[group, p, 0, i] = top[group * rows + i]
            sums[group, p, 1, i] = mass[group * rows + i]
            sums[group, p, 2, i] = moment[group * rows + i]
            bests[group, p, i] = best[group * rows + i]


@njit(nogil=True, cache=True, error_model="numpy")
def read_chunk(
    products, ids, columns, piece_starts, inverse_cap, scale, row_edits, edit_starts, edit_ids, edit_changes,
    finite, sums, bests,
):  # fmt: skip
    """Sum every piece of a chunk in every row: its top, the best id, and mass and moment relative to the top.

    Writes sums [G, P, 3, R] (top, mass, moment) and bests [G, P, R] of G groups of R rows, in the order in which
    merge_pieces reads them; and finite (only to False).
    """
    rows = len(scale)
    z = np.empty((PIECE, rows), np.float32)
    top, mass, moment = np.empty(rows, np.float32), np.empty(rows, np.float32), np.empty(rows, np.float32)
    best, magnitude = np.empty(rows, np.int32), np.zeros(rows, np.int32)
    for p in range(len(piece_starts) - 1):
        start, stop = piece_starts[p], piece_starts[p + 1]
        top[:], mass[:], moment[:], best[:] = LOWEST, 0, 0, -1
        for t in range(start, stop):
            _scale_column(products[columns[t]], inverse_cap, scale, z[t - start], magnitude)
            if len(edit_ids) > 0:
                _edit_column(
                    z[t - start], ids[t], inverse_cap, scale, row_edits, edit_starts, edit_ids, edit_changes
                )  # fmt: skip
            _raise_top(z[t - start], ids[t], top, best)
        if stop == start + 1:
            _lone_mass(top, mass)
        else:
            for t in range(start, stop):
                _add_exponentials(z[t - start], top, mass, moment)
        _store(top, mass, moment, best, p, sums, bests)
    for i in range(len(finite)):
        if magnitude[i] >= INF_BITS:
            finite[i] = False


@njit(nogil=True, cache=True, error_model="numpy", fastmath=EXACT)
def _merge_tops(top, best, all_top, all_best, rise, decay):
    """Raise the tops, by `rise` where that is positive; decay is exp(-|rise|)."""
    for i in range(len(rise)):
        gap = top[i] - all_top[i]
        rise[i] = gap
        fall = max(-abs(gap), _F(-88))
        e = exp(fall)
        decay[i] = e if fall > _F(-87) else _F(0)
        tied = best[i] if best[i] < all_best[i] else all_best[i]
        kept = tied if gap == _F(0) else all_best[i]
        all_best[i] = best[i] if gap > _F(0) else kept
        all_top[i] = top[i] if gap > _F(0) else all_top[i]


@njit(nogil=True, cache=True, error_model="numpy", fastmath=EXACT)
def _merge_sums(mass, moment, rise, decay, all_mass, all_moment):
    for i in range(len(rise)):
        gap, e = np.float64(rise[i]), np.float64(decay[i])
        new, old = np.float64(mass[i]), all_mass[i]
        from_new = np.float64(moment[i]) + min(gap, 0.0) * new
        from_old = all_moment[i] - max(gap, 0.0) * old
        kept = e if gap > 0.0 else 1.0
        added = 1.0 if gap > 0.0 else e
        all_moment[i] = from_old * kept + from_new * added
        all_mass[i] = old * kept + new * added


@njit(nogil=True, cache=True, error_model="numpy")
def merge_pieces(piece_class, sums, bests, all_top, all_mass, all_moment, all_best):
    """Add the pieces of a chunk to the running sums [C, R] of one group of rows; chunks must come in order."""
    rows = all_top.shape[1]
    rise, decay = np.empty(rows, np.float32), np.empty(rows, np.float32)
    for p in range(len(piece_class)):
        c = piece_class[p]
        _merge_tops(sums[p, 0], bests[p], all_top[c], all_best[c], rise, decay)
        _merge_sums(sums[p, 1], sums[p, 2], rise, decay, all_mass[c], all_moment[c])
