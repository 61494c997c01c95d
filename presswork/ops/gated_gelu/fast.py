"""Gated activation and the MLP around it, fused for CPUs. N rows, D model width, f width.

On tiles the activation takes the product's float32 tiles and writes the packed form that the second product reads:

    gate [16 f, 16 m], up [16 f, 16 m]  ->  8 pairs of f x 16 m
"""

import numpy as np
import torch
from numba import carray
from torch import Tensor

from presswork.ops.lanes import (
    EXACT,
    claim,
    float32_at,
    gelu,
    keep,
    kernel,
    narrow,
    read_row,
    round_row,
    uint32_at,
    widen,
    write_row,
)
from presswork.ops.linear import fast as products
from presswork.ops.threads import num_shares, run_shared
from presswork.ops.tiles import (
    TILE_BYTES,
    aligned,
    multiply_apart,
    multiply_packed,
    pack_matrix,
    start_tiles,
    stop_tiles,
)


@kernel(fastmath=EXACT)
def _activate_row(gate, up, width, is_bf16):
    for i in range(width):
        gate[i] = gelu(gate[i])
    round_row(gate, width, is_bf16)
    for i in range(width):
        gate[i] *= up[i]


@kernel()
def _activate(gate_up, row_bytes, out, num_rows, width, is_bf16):
    gate, up = np.empty(width, np.float32), np.empty(width, np.float32)
    size = 2 if is_bf16 else 4
    for n in range(num_rows):
        read_row(gate_up + n * row_bytes, width, is_bf16, gate)
        read_row(gate_up + n * row_bytes + size * width, width, is_bf16, up)
        _activate_row(gate, up, width, is_bf16)
        write_row(gate, width, is_bf16, out + n * size * width)


@kernel(fastmath=EXACT)
def _activate_tile(gate_address, up_address, target_address):
    gate, up = carray(float32_at(gate_address), (16, 16)), carray(float32_at(up_address), (16, 16))
    target = carray(uint32_at(target_address), (8, 16))
    for pair in range(8):
        for m in range(16):
            low = widen(narrow(gelu(widen(narrow(gate[2 * pair, m]))))) * widen(narrow(up[2 * pair, m]))
            high = widen(narrow(gelu(widen(narrow(gate[2 * pair + 1, m]))))) * widen(narrow(up[2 * pair + 1, m]))
            target[pair, m] = narrow(low) | (narrow(high) << np.uint32(16))


@kernel()
def activate_packed(gate_up, width, inner, packed, num_rows, activated, counter, tiles):
    """Packed gated_gelu(gate_up x) of packed rows, 16 columns at a time as `counter` hands them out."""
    steps, out_steps = inner // 32, width // 32
    while True:
        column = 16 * claim(counter)
        if column >= width:
            break
        gate = gate_up + column * inner * 2
        up = gate + width * inner * 2
        target = activated + column // 32 * TILE_BYTES + column % 32 // 16 * (TILE_BYTES // 2)
        for m in range(0, num_rows, 32):
            is_pair = num_rows - m > 16
            ahead = 0 if m else steps * TILE_BYTES
            multiply_apart(gate, up, 2 * inner, packed + m // 16 * steps * TILE_BYTES, is_pair, steps, tiles, ahead)
            for i in range(2 if is_pair else 1):
                tile = tiles + i * TILE_BYTES
                _activate_tile(tile, tile + 2 * TILE_BYTES, target + (m // 16 + i) * out_steps * TILE_BYTES)


@kernel()
def _mlp(x, x_bytes, num_rows, inner, gate_up, width, down, out):
    groups = (num_rows + 15) // 16
    memory = np.empty((groups * (inner // 32 + width // 32) + 5) * TILE_BYTES + 64, np.uint8)
    counters = np.zeros(2, np.int64)
    tiles = aligned(memory)
    packed = tiles + 5 * TILE_BYTES
    activated = packed + groups * (inner // 32) * TILE_BYTES
    start_tiles()
    pack_matrix(x, x_bytes, num_rows, inner, packed)
    activate_packed(gate_up, width, inner, packed, num_rows, activated, counters.ctypes.data, tiles)
    multiply_packed(down, inner, width, activated, num_rows, out, 2 * inner, counters.ctypes.data + 8, tiles)
    stop_tiles()
    keep(memory)
    keep(counters)


@kernel()
def _activate_share(gate_up, width, inner, packed, num_rows, activated, counter):
    memory = np.empty(5 * TILE_BYTES + 64, np.uint8)
    start_tiles()
    activate_packed(gate_up, width, inner, packed, num_rows, activated, counter, aligned(memory))
    stop_tiles()
    keep(memory)


def gated_gelu(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up in one pass."""
    width = gate_up.shape[-1] // 2
    rows = gate_up.reshape(-1, 2 * width)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    out = gate_up.new_empty(*gate_up.shape[:-1], width)
    size = gate_up.element_size()
    _activate(rows.data_ptr(), size * rows.stride(0), out.data_ptr(), rows.shape[0], width, size == 2)
    return out


def gated_mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """down gated_gelu(gate_up x); on tiles without leaving packed memory in between."""
    num_rows, inner = x.shape
    width = down.shape[1]
    fits = products.fits_tiles(x.dtype, inner, width) and width % 32 == 0
    if not (fits and gate_up.is_contiguous() and down.is_contiguous()):
        return products.linear(gated_gelu(products.linear(x, gate_up)), down)
    if x.stride(1) != 1:
        x = x.contiguous()
    out = x.new_empty(num_rows, inner)
    place = (x.data_ptr(), 2 * x.stride(0), num_rows, inner)
    shares = num_shares(2 * num_rows * inner * width, width // 32)
    if shares == 1:
        _mlp(*place, gate_up.data_ptr(), width, down.data_ptr(), out.data_ptr())
        return out
    packed = torch.empty(products.packed_bytes(num_rows, inner), dtype=torch.uint8)
    activated = torch.empty(products.packed_bytes(num_rows, width), dtype=torch.uint8)
    products.pack(*place, packed.data_ptr())
    run_shared(
        shares, _activate_share, gate_up.data_ptr(), width, inner, packed.data_ptr(), num_rows, activated.data_ptr()
    )
    products.multiply_shared(shares, (0, 0), activated, down, num_rows, out)
    return out
