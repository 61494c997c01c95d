"""Compiled loops of the tiled vocabulary head. N rows, T tile width, V vocab, D model, K candidates kept for a row.

Weights and products arrive as integer views of their bits, int16 for bfloat16 and int32 for float32, so that one source
serves both. Arithmetic is float32 within a cell of CELL neighbouring ids and float64 above it. The loops over one row
are kept in small functions of their own because LLVM vectorises those reliably; fastmath flags are chosen per function
so that exact tricks (rounding by a magic constant, minus infinity) survive. Nearly all of it is one file: numba's cache
notices a change only in the file of the compiled function itself, not in one that function calls into; after a change
in `_intrinsics.py` or `_class_weights.py`, delete `__pycache__/_*kernels.*.nb?`.
"""

import math

import numpy as np
from numba import njit

from presswork.ops.vocab_head._class_weights import clear_dead, gather_weights, keep_class, place_of, weigh
from presswork.ops.vocab_head._intrinsics import TURNED, as_bits, as_float, narrow, transpose, wide_bits

CELL = 64  # ids whose mass is kept as one number; a sampled token costs one cell of recomputed products
NEGLIGIBLE = 1e-9  # share of a row's mass below which a tile's part in the soft embedding is dropped
HOPELESS = np.float32(-40.0)  # below the best logit by this much, a whole tile of masses vanishes in float32

_F = np.float32
_I = np.int32
_LOG2E = _F(math.log2(math.e))
_LN2_HIGH = _F(0.693359375)  # exact in 9 bits, so n * _LN2_HIGH is exact
_LN2_LOW = _F(math.log(2) - 0.693359375)
_MAGIC = _F(1.5 * 2**23)  # adding it rounds to an integer that can be read off the low bits
_MAGIC_BITS = _I(_MAGIC.view(np.int32))
_T2, _T3, _T4, _T5, _T6, _T7 = (_F(1 / math.factorial(k)) for k in range(2, 8))
ABS_BITS = _I(0x7FFFFFFF)
INF_BITS = _I(0x7F800000)
EXACT = {"contract", "nsz"}
SUMS = {"contract", "nsz", "reassoc"}


@njit(nogil=True, cache=True, error_model="numpy", fastmath=EXACT)
def exp(x):
    """e^x for x in [-87, 88], to 3e-7 relative; branch-free so that it vectorises."""
    shifted = x * _LOG2E + _MAGIC
    n = shifted - _MAGIC
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    tail = ((((_T6 * r + _T5) * r + _T4) * r + _T3) * r + _T2) * (r * r)
    return as_float(_I(as_bits(_F(tail + r + _F(1))) + ((as_bits(shifted) - _MAGIC_BITS) << _I(23))))


@njit(nogil=True, cache=True, error_model="numpy", fastmath=EXACT)
def tanh(x):
    """tanh from e^2x - 1, to 2e-7 relative; flat beyond 10, where float32 tanh is exactly 1."""
    x = min(max(x, _F(-10)), _F(10)) * _F(2)
    shifted = x * _LOG2E + _MAGIC
    n = shifted - _MAGIC
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    tail = (((((_T7 * r + _T6) * r + _T5) * r + _T4) * r + _T3) * r + _T2) * (r * r)
    power = as_float(_I(_I(0x3F800000) + ((as_bits(shifted) - _MAGIC_BITS) << _I(23))))
    less_one = power * (tail + r) + (power - _F(1))
    return less_one / (less_one + _F(2))


@njit(nogil=True, cache=True)
def _ordered(bits):
    """Integer that sorts as the float with these bits does; its own inverse."""
    return _I(bits ^ ((bits >> _I(31)) & ABS_BITS))


@njit(nogil=True, cache=True)
def _extremes(bits, width):
    """(largest product, whether one is NaN or infinite)."""
    top, magnitude = _I(-0x7FFFFFFF), _I(0)
    for j in range(width):
        wide = wide_bits(bits[j])
        top = _I(max(top, _ordered(wide)))
        magnitude = _I(max(magnitude, wide & ABS_BITS))
    return as_float(_ordered(top)), magnitude >= INF_BITS


@njit(nogil=True, cache=True)
def _largest(z, width):
    top = _I(-0x7FFFFFFF)
    for j in range(width):
        top = _I(max(top, _ordered(as_bits(z[j]))))
    return as_float(_ordered(top))


@njit(nogil=True, cache=True, error_model="numpy", fastmath=EXACT)
def _scaled_logits(bits, width, inverse_cap, scale, z):
    """z = softcapped product over temperature; inverse_cap 0 means no softcap."""
    if inverse_cap == _F(0):
        for j in range(width):
            z[j] = scale * as_float(wide_bits(bits[j]))
    else:
        for j in range(width):
            z[j] = scale * tanh(as_float(wide_bits(bits[j])) * inverse_cap)


@njit(nogil=True, cache=True)
def inverse_temperature(inverse_cap, scale):
    """Of a row whose logits are scale * tanh(x * inverse_cap), or scale * x without a cap."""
    return scale if inverse_cap == _F(0) else scale * inverse_cap


@njit(nogil=True, cache=True)
def _edit(z, first, width, ids, changes, per_temperature):
    """Penalties (factor > 0), biases and bans (factor 0) on ids in [first, first + width); true if there was any."""
    start = np.searchsorted(ids, first)
    stop = start
    while stop < len(ids) and ids[stop] < first + width:
        j, factor = ids[stop] - first, changes[stop, 0]
        if factor == _F(0):
            z[j] = -np.inf
        else:
            z[j] = (z[j] / factor if z[j] > 0 else z[j] * factor) + changes[stop, 1] * per_temperature
        stop += 1
    return stop > start


@njit(nogil=True, cache=True)
def _cut(z, first, width, cut_z, cut_id):
    """Minus infinity for every token after (cut_z, cut_id) in order of falling z, then rising id."""
    for j in range(width):
        if z[j] < cut_z or (z[j] == cut_z and first + j > cut_id):
            z[j] = -np.inf


@njit(nogil=True, cache=True, error_model="numpy", fastmath=SUMS)
def _exponentials(z, width, top):
    """Turn z into e = exp(z - top) in place; returns the sum of (z - top) e."""
    moment = _F(0)
    for j in range(width):
        drop = max(z[j] - top, _F(-88))
        e = exp(drop)
        e = e if drop > _F(-87) else _F(0)
        z[j] = e
        moment += drop * e
    return moment


@njit(nogil=True, cache=True, error_model="numpy", fastmath=SUMS)
def _sum(values):
    total = _F(0)
    for j in range(len(values)):
        total += values[j]
    return total


@njit(nogil=True, cache=True)
def _store(values, width, stored):
    for j in range(width):
        stored[j] = narrow(values[j], stored)


@njit(nogil=True, cache=True)
def _worse(z_a, id_a, z_b, id_b):
    return z_a < z_b or (z_a == z_b and id_a > id_b)


@njit(nogil=True, cache=True)
def _keep_best(heap_z, heap_id, count, limit, z, token):
    """Offer a candidate to a heap whose root is the worst kept; returns the new count."""
    if count < limit:
        hole = count
        while hole > 0:
            parent = (hole - 1) >> 1
            if not _worse(z, token, heap_z[parent], heap_id[parent]):
                break
            heap_z[hole], heap_id[hole] = heap_z[parent], heap_id[parent]
            hole = parent
        heap_z[hole], heap_id[hole] = z, token
        return count + 1
    if not _worse(heap_z[0], heap_id[0], z, token):
        return count
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= limit:
            break
        if child + 1 < limit and _worse(heap_z[child + 1], heap_id[child + 1], heap_z[child], heap_id[child]):
            child += 1
        if not _worse(heap_z[child], heap_id[child], z, token):
            break
        heap_z[hole], heap_id[hole] = heap_z[child], heap_id[child]
        hole = child
    heap_z[hole], heap_id[hole] = z, token
    return count


@njit(nogil=True, cache=True)
def _scan_candidates(z, width, first, floor, heap_z, heap_id, limit):
    """Best `limit` tokens of one row of a tile that beat `floor`; returns how many."""
    count = 0
    for j in range(width):
        if z[j] > floor:
            count = _keep_best(heap_z, heap_id, count, limit, z[j], first + j)
            if count == limit:
                floor = heap_z[0]
    return count


@njit(nogil=True, cache=True)
def _adjust(
    z, first, width, i, row_edits, edit_starts, edit_ids, edit_changes, per_temperature, cut_z, cut_id, weights, places
):  # fmt: skip
    """Edits, class weights (unless empty) and cut of row i, on ids [first, first + width)."""
    group = row_edits[i]
    if group >= 0:
        begin, end = edit_starts[group], edit_starts[group + 1]
        _edit(z, first, width, edit_ids[begin:end], edit_changes[begin:end], per_temperature)
    if len(weights) > 0:
        weigh(z, width, places, weights)
    if cut_z[i] > -np.inf:
        _cut(z, first, width, cut_z[i], cut_id[i])


@njit(nogil=True, cache=True, error_model="numpy", fastmath=EXACT)
def _is_hopeless(product, inverse_cap, scale, weight, best_so_far):
    """Whether even the largest product of a tile leaves nothing that float32 could add to the row's mass.

    weight: the largest that is added to a z of the tile.
    """
    z = scale * product if inverse_cap == _F(0) else scale * tanh(product * inverse_cap)
    return weight == _F(-np.inf) or z + weight < best_so_far + HOPELESS


@njit(nogil=True, cache=True)
def _find(z, width, value):
    j = 0
    while j < width - 1 and z[j] != value:
        j += 1
    return j


@njit(nogil=True, cache=True)
def _choose(z, first, width, token_ids, chosen):
    for c in range(len(token_ids)):
        if first <= token_ids[c] < first + width:
            chosen[c] = z[token_ids[c] - first]


@njit(nogil=True, cache=True)
def _sum_cells(e, width, cells):
    """Fill in the mass of each cell; returns that of the tile."""
    total = 0.0
    for start in range(0, width, CELL):
        mass = _sum(e[start : min(start + CELL, width)])
        cells[start // CELL] = mass
        total += mass
    return total


@njit(nogil=True, cache=True, error_model="numpy")
def _sum_row(z, width, so_far, cells):
    """(top, mass, moment, place of a new top or -1) of one row of a tile; turns z into masses relative to the top."""
    largest = _largest(z, width)
    if largest == -np.inf or largest < so_far + HOPELESS:
        return so_far, 0.0, 0.0, -1
    top, place = so_far, -1
    if largest > so_far:
        top, place = largest, _find(z, width, largest)
    moment = np.float64(_exponentials(z, width, top))
    return top, _sum_cells(z, width, cells), moment, place


@njit(nogil=True, cache=True, error_model="numpy")
def read_tile(
    tall, products, width, first, inverse_cap, scale, best_so_far, kept_so_far, row_edits, edit_starts, edit_ids,
    edit_changes, cut_z, cut_id, token_ids, soft_rows, limits, z, cells, top, mass, moment, best, finite, chosen,
    heap_z, heap_id, heap_count, probs, probs_row, weights, wanted, living, places, drawn_so_far, drawn_top,
    drawn_mass, drawn_best,
):  # fmt: skip
    """Read every row of one tile of products; returns how many rows have weights in `probs`.

    Products come as `tall` [T, N], with `products` as scratch space, or if `tall` is empty as `products` [N, T].
    best_so_far, kept_so_far: per row, the largest z and the worst kept candidate of earlier tiles.
    Writes per row: cells (masses relative to top), top, mass, moment, best (id of a new largest z, or -1), finite (only
    to False), chosen, the candidate heap; and probs_row, the row each line of probs belongs to.

    Under class weights, with `living` the classes of the tile and `places` each token's place among them: drawn_top,
    drawn_mass, drawn_best and the cells are of the tokens that the row's sample may be; drawn_so_far is the largest z
    of those in earlier tiles.
    """
    filled, is_tall, weighted = 0, len(tall) > 0, weights.shape[1] > 0
    weight, table = _F(0), np.empty(len(living) + 1 if weighted else 0, np.float32)
    drawn = np.empty(width, np.float32)
    other_cells = np.empty(-(-width // CELL), np.float32)
    for i in range(len(top)):
        top[i], mass[i], moment[i], best[i], heap_count[i] = best_so_far[i], 0.0, 0.0, -1, 0
        if is_tall and i % TURNED == 0:
            transpose(tall, i, width, products)
        row = products[i % TURNED if is_tall else i]
        largest, broken = _extremes(row, width)
        if broken and weighted:
            clear_dead(row, width, places, len(living))
            largest, broken = _extremes(row, width)
        if broken:
            finite[i] = False
            continue
        drawn_top[i], drawn_mass[i], drawn_best[i] = drawn_so_far[i], 0.0, -1
        drawn_place, drawn_weight = -1, _F(-np.inf)
        if weighted:
            gather_weights(weights[i], living, table)
            weight = _largest(table, len(table))
            drawn_place = place_of(living, wanted[i])
            drawn_weight = table[drawn_place]
        needs_every_z = row_edits[i] >= 0 or limits[i] > 0 or token_ids.shape[1] > 0
        if (
            not needs_every_z
            and _is_hopeless(largest, inverse_cap, scale[i], weight, best_so_far[i])
            and _is_hopeless(largest, inverse_cap, scale[i], drawn_weight, drawn_so_far[i])
        ):
            continue
        _scaled_logits(row, width, inverse_cap, scale[i], z)
        _adjust(
            z, first, width, i, row_edits, edit_starts, edit_ids, edit_changes,
            inverse_temperature(inverse_cap, scale[i]), cut_z, cut_id, table, places,
        )  # fmt: skip
        row_cells = cells[i, first // CELL :]
        if drawn_weight > -np.inf:
            keep_class(z, width, places, drawn_place, drawn)
            drawn_top[i], drawn_mass[i], _, place = _sum_row(drawn, width, drawn_so_far[i], row_cells)
            drawn_best[i] = first + place if place >= 0 else -1
        _choose(z, first, width, token_ids[i], chosen[i])
        if limits[i] > 0:
            heap_count[i] = _scan_candidates(z, width, first, kept_so_far[i], heap_z[i], heap_id[i], limits[i])
        is_drawn = wanted[i] < 0
        top[i], mass[i], moment[i], place = _sum_row(
            z, width, best_so_far[i], row_cells if is_drawn else other_cells
        )  # fmt: skip
        best[i] = first + place if place >= 0 else -1
        if is_drawn:
            drawn_top[i], drawn_mass[i] = top[i], mass[i]
        if soft_rows[i] and mass[i] > NEGLIGIBLE:
            _store(z, width, probs[filled])
            probs_row[filled] = i
            filled += 1
    return filled


@njit(nogil=True, cache=True, error_model="numpy")
def scale_tile(
    tall, products, width, first, inverse_cap, scale, row_edits, edit_starts, edit_ids, edit_changes, z, all_z
):  # fmt: skip
    """Write one tile of z, edits included, into its columns of all_z; the same bits that read_tile would find."""
    is_tall = len(tall) > 0
    for i in range(len(scale)):
        if is_tall and i % TURNED == 0:
            transpose(tall, i, width, products)
        _scaled_logits(products[i % TURNED if is_tall else i], width, inverse_cap, scale[i], z)
        if row_edits[i] >= 0:
            begin, end = edit_starts[row_edits[i]], edit_starts[row_edits[i] + 1]
            per_temperature = inverse_temperature(inverse_cap, scale[i])
            _edit(z, first, width, edit_ids[begin:end], edit_changes[begin:end], per_temperature)
        all_z[i, first : first + width] = z[:width]


@njit(nogil=True, cache=True, error_model="numpy")
def masses(z, e):
    """Largest z of a row; writes exp(z - largest)."""
    top = _largest(z, len(z))
    e[:] = z
    _exponentials(e, len(e), top)
    return top


@njit(nogil=True, cache=True, error_model="numpy", fastmath=EXACT)
def _scale_row(total, decay):
    for d in range(len(total)):
        total[d] *= decay


@njit(nogil=True, cache=True, error_model="numpy", fastmath=EXACT)
def _add_row(total, decay, part, weight):
    for d in range(len(total)):
        total[d] = total[d] * decay + as_float(wide_bits(part[d])) * weight


@njit(nogil=True, cache=True, error_model="numpy")
def merge_tile(
    top, mass, moment, best, heap_z, heap_id, heap_count, probs_row, part, filled,
    all_top, all_mass, all_moment, all_best, limits, kept_z, kept_id, kept_count, kept_worst, soft,
):  # fmt: skip
    """Add one tile's results to the running totals (all_*, kept_*, soft); tiles must come in order."""
    line = 0
    for i in range(len(top)):
        decay = weight = 1.0
        if top[i] > all_top[i]:
            rise = all_top[i] - top[i]
            decay = math.exp(rise)
            if all_mass[i] > 0:
                all_moment[i] = (all_moment[i] + rise * all_mass[i]) * decay
                all_mass[i] *= decay
            all_top[i], all_best[i] = top[i], best[i]
        if mass[i] > 0:
            fall = top[i] - all_top[i]
            weight = math.exp(fall)
            all_moment[i] += (moment[i] + fall * mass[i]) * weight
            all_mass[i] += mass[i] * weight
        if line < filled and probs_row[line] == i:
            _add_row(soft[i], _F(decay), part[line], _F(weight))
            line += 1
        elif decay < 1.0 and soft.shape[0] > i:
            _scale_row(soft[i], _F(decay))
        for c in range(heap_count[i]):
            kept_count[i] = _keep_best(kept_z[i], kept_id[i], kept_count[i], limits[i], heap_z[i, c], heap_id[i, c])
        if limits[i] > 0 and kept_count[i] == limits[i]:
            kept_worst[i] = kept_z[i, 0]


@njit(nogil=True, cache=True, error_model="numpy", fastmath=SUMS)
def _dot(a, b):
    total = _F(0)
    for d in range(len(a)):
        total += a[d] * as_float(wide_bits(b[d]))
    return total


@njit(nogil=True, cache=True)
def _find_mass(masses, target):
    """(index, mass before it) of the first positive mass at which the running sum passes target, else of the last."""
    before, found, before_found = 0.0, -1, 0.0
    for k in range(len(masses)):
        if masses[k] > 0.0:
            found, before_found = k, before
            before += masses[k]
            if before > target:
                break
    return found, before_found


@njit(nogil=True, cache=True, error_model="numpy")
def sample_rows(
    start, stop, hidden, embedding, inverse_cap, scale, row_edits, edit_starts, edit_ids, edit_changes, cut_z, cut_id,
    uniform, tile_cells, tile_tops, tile_masses, cells, all_top, weights, slots, wanted, sample,
):  # fmt: skip
    """Inverse CDF for rows [start, stop): tile, then cell, then token; only the cell's products are computed again.

    Rows whose uniform number is NaN and rows without mass are left as they are. Under class weights the masses are of
    the tokens that may be drawn.
    """
    vocab, width = embedding.shape
    tiles = tile_tops.shape[0]
    masses = np.empty(max(tiles, tile_cells))
    wide_hidden = np.empty(width, np.float32)
    bits, z = np.empty(CELL, hidden.dtype), np.empty(CELL, np.float32)
    for i in range(start, stop):
        if math.isnan(uniform[i]):
            continue
        for k in range(tiles):
            masses[k] = tile_masses[k, i] * math.exp(tile_tops[k, i] - all_top[i]) if tile_masses[k, i] > 0 else 0.0
        total = masses[:tiles].sum()
        if not total > 0:
            continue
        target = uniform[i] * total
        tile, before = _find_mass(masses[:tiles], target)
        target = (target - before) / math.exp(tile_tops[tile, i] - all_top[i])
        row_cells = cells[i, tile * tile_cells : (tile + 1) * tile_cells]
        cell, before = _find_mass(row_cells, target)
        # The cell's own sum may differ in the last bits from its recorded mass, so compare shares.
        share = (target - before) / row_cells[cell]
        first = (tile * tile_cells + cell) * CELL
        count = min(CELL, vocab - first)
        for d in range(width):
            wide_hidden[d] = as_float(wide_bits(hidden[i, d]))
        for j in range(count):
            bits[j] = narrow(_dot(wide_hidden, embedding[first + j]), bits)
        _scaled_logits(bits, count, inverse_cap, scale[i], z)
        _adjust(
            z, first, count, i, row_edits, edit_starts, edit_ids, edit_changes,
            inverse_temperature(inverse_cap, scale[i]), cut_z, cut_id, weights[i], slots[first:],
        )  # fmt: skip
        if wanted[i] >= 0:
            keep_class(z, count, slots[first:], wanted[i], z)
        _exponentials(z, count, tile_tops[tile, i])
        token, _ = _find_mass(z[:count], share * _sum(z[:count]))
        if token >= 0:
            sample[i] = first + token
