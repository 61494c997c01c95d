"""Compiled loops that read the classes of a chunk of products. N rows, T tokens, P pieces, C classes.

Products come as [T, N], so that every loop runs over the rows of one token: they vectorise whatever the classes are,
and products need no transposition. A piece (at most PIECE tokens of one class) is summed in float32, and pieces are
merged in float64. The small functions come from `_kernels.py`; numba's cache notices a change there no more than one
in `_intrinsics.py`.
"""

import numpy as np
from numba import njit

from presswork.ops.vocab_head._intrinsics import as_float, wide_bits
from presswork.ops.vocab_head._kernels import ABS_BITS, EXACT, INF_BITS, exp, tanh

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
def _edit_column(z, token, row_edits, edit_starts, edit_ids, edit_factors):
    """The edits of one token in every row: a penalty (factor > 0) or a ban (factor 0)."""
    for group in range(len(edit_starts) - 1):
        begin, end = edit_starts[group], edit_starts[group + 1]
        place = begin + np.searchsorted(edit_ids[begin:end], token)
        if place == end or edit_ids[place] != token:
            continue
        factor = edit_factors[place]
        for i in range(len(row_edits)):
            if row_edits[i] == group:
                if factor == _F(0):
                    z[i] = -np.inf
                else:
                    z[i] = z[i] / factor if z[i] > 0 else z[i] * factor


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


@njit(nogil=True, cache=True, error_model="numpy")
def read_chunk(
    products, ids, columns, piece_starts, inverse_cap, scale, row_edits, edit_starts, edit_ids, edit_factors, z,
    magnitude, finite, tops, masses, moments, bests,
):  # fmt: skip
    """Sum every piece of a chunk in every row: its top, the best id, and mass and moment relative to the top.

    Writes tops, masses, moments, bests [P, N], and finite (only to False). z and magnitude are scratch space.
    """
    magnitude[:] = 0
    for p in range(len(piece_starts) - 1):
        start, stop = piece_starts[p], piece_starts[p + 1]
        tops[p], masses[p], moments[p], bests[p] = LOWEST, 0, 0, -1
        for t in range(start, stop):
            _scale_column(products[columns[t]], inverse_cap, scale, z[t - start], magnitude)
            if len(edit_ids) > 0:
                _edit_column(z[t - start], ids[t], row_edits, edit_starts, edit_ids, edit_factors)
            _raise_top(z[t - start], ids[t], tops[p], bests[p])
        if stop == start + 1:
            _lone_mass(tops[p], masses[p])
            continue
        for t in range(start, stop):
            _add_exponentials(z[t - start], tops[p], masses[p], moments[p])
    for i in range(len(finite)):
        if magnitude[i] >= INF_BITS:
            finite[i] = False


@njit(nogil=True, cache=True, error_model="numpy", fastmath=EXACT)
def _merge_piece(top, mass, moment, best, all_top, all_mass, all_moment, all_best):
    for i in range(len(top)):
        rise = top[i] - all_top[i]
        above = rise > _F(0)
        fall = max(-abs(rise), _F(-88))
        decay = exp(fall)
        decay = np.float64(decay if fall > _F(-87) else _F(0))
        kept = decay if above else 1.0
        added = 1.0 if above else decay
        gap = np.float64(rise)
        from_old = all_moment[i] - (gap if above else 0.0) * all_mass[i]
        from_new = moment[i] + (0.0 if above else gap) * mass[i]
        all_moment[i] = from_old * kept + from_new * added
        all_mass[i] = all_mass[i] * kept + mass[i] * added
        better = above or (rise == _F(0) and best[i] < all_best[i])
        all_best[i] = best[i] if better else all_best[i]
        all_top[i] = top[i] if above else all_top[i]


@njit(nogil=True, cache=True, error_model="numpy")
def merge_pieces(piece_class, tops, masses, moments, bests, all_top, all_mass, all_moment, all_best):
    """Add the pieces of a chunk to the running sums [C, N] of their classes; chunks must come in order."""
    for p in range(len(piece_class)):
        c = piece_class[p]
        _merge_piece(
            tops[p], masses[p], moments[p], bests[p], all_top[c], all_mass[c], all_moment[c], all_best[c]
        )  # fmt: skip
