"""Product with a weight as stored, for CPUs. N rows, K inner width, M output columns."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from presswork.ops.lanes import keep, kernel
from presswork.ops.threads import num_shares, run_shared
from presswork.ops.tiles import TILE_BYTES, aligned, has_tiles, multiply_packed, pack_matrix, start_tiles, stop_tiles

MIN_ROWS = 16  # below it torch's float32 products take other kernels, with other last bits


def fits_tiles(dtype: torch.dtype, inner: int, outer: int) -> bool:
    """Whether a product of these widths runs on AMX tiles."""
    return dtype is torch.bfloat16 and inner % 32 == 0 and outer >= 16 and has_tiles()


def packed_bytes(num_rows: int, width: int) -> int:
    """Memory of packed activations, with room to align them."""
    return (num_rows + 15) // 16 * (width // 32) * TILE_BYTES + 64


@kernel()
def _multiply_alone(x, x_bytes, num_rows, width, weight, num_columns, out):
    memory = np.empty(((num_rows + 15) // 16 * (width // 32) + 5) * TILE_BYTES + 64, np.uint8)
    counter = np.zeros(1, np.int64)
    tiles = aligned(memory)
    packed = tiles + 5 * TILE_BYTES
    start_tiles()
    pack_matrix(x, x_bytes, num_rows, width, packed)
    multiply_packed(weight, num_columns, width, packed, num_rows, out, 2 * num_columns, counter.ctypes.data, tiles)
    stop_tiles()
    keep(memory)
    keep(counter)


@kernel()
def pack(x, x_bytes, num_rows, width, memory):
    """Pack evenly spaced rows, from Python."""
    pack_matrix(x, x_bytes, num_rows, width, memory)


@kernel()
def _multiply_share(weight, num_columns, width, packed, num_rows, out, counter):
    memory = np.empty(5 * TILE_BYTES + 64, np.uint8)
    start_tiles()
    multiply_packed(weight, num_columns, width, packed, num_rows, out, 2 * num_columns, counter, aligned(memory))
    stop_tiles()
    keep(memory)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x weight^T on tiles where they fit, else by torch, float32 with at least MIN_ROWS rows."""
    num_rows, inner = x.shape
    outer = weight.shape[0]
    if not fits_tiles(x.dtype, inner, outer) or not weight.is_contiguous():
        return _pad_rows(x, weight)
    if x.stride(1) != 1:
        x = x.contiguous()
    out = x.new_empty(num_rows, outer)
    place = (x.data_ptr(), 2 * x.stride(0), num_rows, inner)
    shares = num_shares(num_rows * inner * outer, outer // 32)
    if shares == 1:
        _multiply_alone(*place, weight.data_ptr(), outer, out.data_ptr())
        return out
    packed = torch.empty(packed_bytes(num_rows, inner), dtype=torch.uint8)  # torch aligns to 64 bytes
    pack(*place, packed.data_ptr())
    multiply_shared(shares, weight, packed, num_rows, out)
    return out


def multiply_shared(shares: int, weight: Tensor, packed: Tensor, num_rows: int, out: Tensor) -> None:
    """Product of packed rows with a weight on several threads. Mutates out."""
    outer, inner = weight.shape
    run_shared(
        shares, _multiply_share, weight.data_ptr(), outer, inner, packed.data_ptr(), num_rows, out.data_ptr()
    )  # fmt: skip


def _pad_rows(x: Tensor, weight: Tensor) -> Tensor:
    num_rows = x.shape[0]
    if num_rows >= MIN_ROWS or num_rows == 0 or x.dtype is not torch.float32:
        return F.linear(x, weight)
    padded = x.new_zeros(MIN_ROWS, x.shape[1])
    padded[:num_rows] = x
    return F.linear(padded, weight)[:num_rows]
