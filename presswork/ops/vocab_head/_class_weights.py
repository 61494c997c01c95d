"""Compiled loops over one row of a tile that apply class weights. T tile width.

`_kernels.py` calls these, and numba's cache notices a change here no more than one in `_intrinsics.py`. Places are
those of TokenClasses: of each token's class among the classes of its tile.
"""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz"})
def weigh(z, width, places, weights):
    """Add weights[place] of each token; unsigned places, because others are checked for counting from the end."""
    for j in range(width):
        z[j] += weights[np.uint64(places[j])]


@njit(nogil=True, cache=True)
def keep_class(z, width, places, wanted, kept):
    """Copy z, with minus infinity for every token outside the class."""
    for j in range(width):
        kept[j] = z[j] if places[j] == wanted else np.float32(-np.inf)


@njit(nogil=True, cache=True)
def gather_weights(weights, living, table):
    """Fill in a row's weights of the classes of a tile, then minus infinity for tokens of none."""
    for k in range(len(living)):
        table[k] = weights[np.uint64(living[k])]
    table[len(living)] = -np.inf


@njit(nogil=True, cache=True)
def clear_dead(bits, width, places, dead):
    """Zero the products of tokens in no class, which may be NaN or infinite."""
    for j in range(width):
        if places[j] == dead:
            bits[j] = 0


@njit(nogil=True, cache=True)
def place_of(living, wanted):
    """Place of a class among those of a tile, or one past the last."""
    place = np.searchsorted(living, wanted)
    return place if place < len(living) and living[place] == wanted else len(living)
