"""The sum over each row's experts, for CPUs. N rows, D model width, E experts, k experts a row, f expert width.

Rows are sorted by expert once; each expert's rows lie together, in order of (row, slot):

    experts of rows 0, 1     [[2, 0], [0, 3]]
    places of the pairs      [[2, 0], [1, 3]]     expert 0: rows 0 and 1, expert 2: row 0, expert 3: row 1

Invariant: the sum over a row's experts is taken in order of its slots, so it does not depend on other rows.
"""

import numpy as np
import torch
from numba import carray
from torch import Tensor

from presswork.errors import RequestError
from presswork.ops.gated_gelu.fast import activate_packed, gated_gelu
from presswork.ops.lanes import claim, float32_at, int64_at, keep, kernel, read_row, write_row
from presswork.ops.linear import fast as products
from presswork.ops.moe.adapted import Factors
from presswork.ops.threads import num_shares, run_shared
from presswork.ops.tiles import TILE_BYTES, aligned, multiply_packed, pack_rows, start_tiles, stop_tiles


@kernel()
def _sort_pairs(experts_address, num_pairs, num_experts, min_rows, starts_address, counts_address, places_address):
    """Where each pair goes; experts with rows get at least `min_rows` places. Returns the number of places, or -1.

    -1 stands for an expert id that does not exist.
    """
    experts, places = carray(int64_at(experts_address), num_pairs), carray(int64_at(places_address), num_pairs)
    starts, counts = carray(int64_at(starts_address), num_experts), carray(int64_at(counts_address), num_experts)
    counts[:] = 0
    for i in range(num_pairs):
        if experts[i] < 0 or experts[i] >= num_experts:
            return -1
        places[i] = counts[experts[i]]
        counts[experts[i]] += 1
    total = 0
    for e in range(num_experts):
        starts[e] = total
        total += max(counts[e], min_rows) if counts[e] else 0
    for i in range(num_pairs):
        places[i] += starts[experts[i]]
    return total


@kernel()
def _gather(h, h_bytes, places_address, num_pairs, top_k, width, is_bf16, out):
    places, row = carray(int64_at(places_address), num_pairs), np.empty(width, np.float32)
    size = 2 if is_bf16 else 4
    for i in range(num_pairs):
        read_row(h + i // top_k * h_bytes, width, is_bf16, row)
        write_row(row, width, is_bf16, out + places[i] * width * size)


@kernel()
def _combine(results, places_address, weights_address, num_rows, top_k, width, is_bf16, out):
    places = carray(int64_at(places_address), (num_rows, top_k))
    weights = carray(float32_at(weights_address), (num_rows, top_k))
    row, total = np.empty(width, np.float32), np.empty(width, np.float32)
    row_bytes = width * (2 if is_bf16 else 4)
    for n in range(num_rows):
        total[:] = 0
        for slot in range(top_k):
            read_row(results + places[n, slot] * row_bytes, width, is_bf16, row)
            for i in range(width):
                total[i] += row[i] * weights[n, slot]
        write_row(total, width, is_bf16, out + n * row_bytes)


@kernel()
def _run_experts(
    h, h_bytes, num_pairs, top_k, inner, gate_up, down, width, num_experts, starts_address, counts_address,
    places_address, results, counter,
):  # fmt: skip
    """Every expert's MLP of its rows, into results[place]; experts are taken in turns by `counter`."""
    starts, counts = carray(int64_at(starts_address), num_experts), carray(int64_at(counts_address), num_experts)
    places = carray(int64_at(places_address), num_pairs)
    addresses, most = np.empty(num_pairs, np.int64), 0
    for i in range(num_pairs):
        addresses[places[i]] = h + i // top_k * h_bytes
    for e in range(num_experts):
        most = max(most, (counts[e] + 15) // 16)
    memory = np.empty((most * (inner // 32 + width // 32) + 5) * TILE_BYTES + 64, np.uint8)
    turns = np.zeros(2, np.int64)
    tiles = aligned(memory)
    packed = tiles + 5 * TILE_BYTES
    activated = packed + most * (inner // 32) * TILE_BYTES
    start_tiles()
    while True:
        e = claim(counter)
        if e >= num_experts:
            break
        if counts[e] == 0:
            continue
        turns[:] = 0
        pack_rows(addresses[starts[e] :], counts[e], inner, packed)
        weight = gate_up + e * 4 * width * inner
        activate_packed(weight, width, inner, packed, counts[e], activated, turns.ctypes.data, tiles)
        out = results + starts[e] * 2 * inner
        weight = down + e * 2 * width * inner
        multiply_packed(weight, inner, width, activated, counts[e], out, 2 * inner, turns.ctypes.data + 8, tiles)
    stop_tiles()
    keep(memory)
    keep(turns)


@kernel()
def _mix_alone(
    h, h_bytes, num_rows, top_k, inner, gate_up, down, width, num_experts, experts_address, weights_address, out
):  # fmt: skip
    num_pairs = num_rows * top_k
    index, counter = np.empty(2 * num_experts + num_pairs, np.int64), np.zeros(1, np.int64)
    starts = np.int64(index.ctypes.data)
    counts, places = starts + 8 * num_experts, starts + 16 * num_experts
    total = _sort_pairs(experts_address, num_pairs, num_experts, 0, starts, counts, places)
    if total >= 0:
        results = np.empty(total * inner, np.uint16)
        _run_experts(
            h, h_bytes, num_pairs, top_k, inner, gate_up, down, width, num_experts, starts, counts, places,
            np.int64(results.ctypes.data), np.int64(counter.ctypes.data),
        )  # fmt: skip
        _combine(np.int64(results.ctypes.data), places, weights_address, num_rows, top_k, inner, True, out)
        keep(results)
    keep(index)
    keep(counter)
    return total >= 0


def _mix_tiles(h: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    num_rows, inner = h.shape
    num_experts, width, top_k = gate_up.shape[0], down.shape[2], experts.shape[1]
    out = h.new_empty(num_rows, inner)
    place = (h.data_ptr(), 2 * h.stride(0))
    sizes = (inner, gate_up.data_ptr(), down.data_ptr(), width, num_experts)
    shares = num_shares(3 * num_rows * top_k * inner * width, num_experts)
    if shares == 1:
        addresses = (experts.data_ptr(), weights.data_ptr(), out.data_ptr())
        if not _mix_alone(*place, num_rows, top_k, *sizes, *addresses):
            raise _unknown_expert(num_experts)
        return out
    starts, counts, places = _sorted_pairs(experts, num_experts, 0)[:3]
    results = h.new_empty(num_rows * top_k, inner)
    indices = (starts.data_ptr(), counts.data_ptr(), places.data_ptr())
    run_shared(shares, _run_experts, *place, num_rows * top_k, top_k, *sizes, *indices, results.data_ptr())
    _combine(results.data_ptr(), places.data_ptr(), weights.data_ptr(), num_rows, top_k, inner, True, out.data_ptr())
    return out


def _sorted_pairs(experts: Tensor, num_experts: int, min_rows: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """(first place and number of rows of each expert, place of each pair, number of places)."""
    index = torch.empty(2 * num_experts + experts.numel(), dtype=torch.int64)
    starts, counts, places = index[:num_experts], index[num_experts : 2 * num_experts], index[2 * num_experts :]
    total = _sort_pairs(
        experts.data_ptr(), experts.numel(), num_experts, min_rows, starts.data_ptr(), counts.data_ptr(),
        places.data_ptr(),
    )  # fmt: skip
    if total < 0:
        raise _unknown_expert(num_experts)
    return starts, counts, places, total


def _unknown_expert(num_experts: int) -> RequestError:
    return RequestError(f"expert ids must lie in 0..{num_experts - 1}, got others; route() gives such ids")


def _gathered_by_expert(h: Tensor, experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor, list[tuple[int, slice]]]:
    """(rows sorted by expert, each pair's place among them, spans of at most 256 rows that have an expert in common).

    A span may reach into the rows of the next expert's, which follow it.
    """
    num_rows, inner = h.shape
    top_k, is_bf16 = experts.shape[1], h.element_size() == 2
    starts, counts, places, total = _sorted_pairs(experts, num_experts, products.MIN_ROWS)
    spans = [
        (expert, slice(start + rows.start, start + rows.stop))
        for expert, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True))
        if count
        for rows in _blocks(count, is_bf16)
    ]
    total = max(total, spans[-1][1].stop) if spans else total
    gathered = h.new_zeros(total, inner)
    _gather(
        h.data_ptr(), h.element_size() * h.stride(0), places.data_ptr(), num_rows * top_k, top_k, inner, is_bf16,
        gathered.data_ptr(),
    )  # fmt: skip
    return gathered, places, spans


def _combined(results: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Each row's weighted sum of its pairs' results, weights in float32."""
    (num_rows, top_k), inner = weights.shape, results.shape[1]
    out = results.new_empty(num_rows, inner)
    _combine(
        results.data_ptr(), places.data_ptr(), weights.data_ptr(), num_rows, top_k, inner, results.element_size() == 2,
        out.data_ptr(),
    )  # fmt: skip
    return out


def mix_adapted_experts(
    h: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor,
    gate_up_factors: Factors | None, down_factors: Factors | None,
) -> Tensor:  # fmt: skip
    """Sum over each row's experts of weight * mlp(h), what low-rank factors add to its two products included."""
    h, weights, experts = h.contiguous(), weights.float().contiguous(), experts.contiguous()
    gathered, places, spans = _gathered_by_expert(h, experts, gate_up.shape[0])
    wide = h.new_empty(gathered.shape[0], gate_up.shape[1])
    # What a span writes behind its expert's rows is the next one's, who writes it again.
    for expert, rows in spans:
        _multiply(gathered[rows], gate_up, gate_up_factors, expert, wide[rows])
    activated, results = gated_gelu(wide), gathered
    for expert, rows in spans:
        _multiply(activated[rows], down, down_factors, expert, results[rows])
    return _combined(results, places, weights)


def _multiply(x: Tensor, weight: Tensor, factors: Factors | None, expert: int, out: Tensor) -> None:
    """out = x (W + scale B A)^T of one expert, W and B A apart. Mutates out."""
    _product(x, weight[expert], out)
    if factors is not None:
        a, b, scale = factors
        low = x.new_empty(x.shape[0], a.shape[1])
        _product(x, a[expert], low)
        out.addmm_(low, b[expert].T, alpha=scale)


def _product(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """out = x weight^T, of 16 rows or more. Mutates out."""
    if products.fits_tiles(x.dtype, x.shape[1], weight.shape[0]):
        out.copy_(products.linear(x, weight))
    else:
        torch.mm(x, weight.T, out=out)


def _blocks(count: int, is_bf16: bool) -> list[slice]:
    """What to multiply at once of an expert's rows: as many as there are or some more (`products.row_blocks`)."""
    count = max(count, products.MIN_ROWS)
    return products.row_blocks(-(-count // products.MIN_ROWS) * products.MIN_ROWS) if is_bf16 else [slice(0, count)]


def mix_experts(h: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Sum over each row's experts of weight * mlp(h)."""
    if h.stride(1) != 1:
        h = h.contiguous()
    weights, experts = weights.float().contiguous(), experts.contiguous()
    gate_up, down = gate_up.contiguous(), down.contiguous()
    width, inner = down.shape[2], h.shape[1]
    fits = products.fits_tiles(h.dtype, inner, width) and width % 32 == 0
    if fits:
        return _mix_tiles(h, weights, experts, gate_up, down)
    return mix_adapted_experts(h, weights, experts, gate_up, down, None, None)
