"""Product with a weight as stored, for CPUs. N rows, K inner width, M output columns."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from presswork.ops.lanes import keep, kernel
from presswork.ops.threads import num_shares, run_shared
from presswork.ops.tiles import TILE_BYTES, aligned, has_tiles, multiply_packed, pack_matrix, start_tiles, stop_tiles

MIN_ROWS = 16  # below it torch's float32 products take other kernels, with other last bits
_BLOCK = 256


def fits_tiles(dtype: torch.dtype, inner: int, outer: int) -> bool:
    """Whether a product of these widths runs on AMX tiles."""
    return dtype is torch.bfloat16 and inner % 32 == 0 and outer >= 16 and has_tiles()


def packed_bytes(num_rows: int, width: int) -> int:
    """Memory of packed activations, with room to align them."""
    return (num_rows + 15) // 16 * (width // 32) * TILE_BYTES + 64


@kernel()
def pack(x, x_bytes, num_rows, width, memory):
    """Pack evenly spaced rows, from Python."""
    pack_matrix(x, x_bytes, num_rows, width, memory)


@kernel()
def _multiply_share(x, x_bytes, packed, num_rows, width, weight, num_columns, out, counter):
    """Columns of out = x weight^T as `counter` hands them out; x comes packed, or is packed here where that is 0."""
    groups = 0 if packed else (num_rows + 15) // 16
    memory, own = np.empty((groups * (width // 32) + 5) * TILE_BYTES + 64, np.uint8), np.zeros(1, np.int64)
    tiles = aligned(memory)
    start_tiles()
    if not packed:
        packed = tiles + 5 * TILE_BYTES
        pack_matrix(x, x_bytes, num_rows, width, packed)
    counter = counter if counter else np.int64(own.ctypes.data)
    multiply_packed(weight, num_columns, width, packed, num_rows, out, 2 * num_columns, counter, tiles)
    stop_tiles()
    keep(memory)
    keep(own)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x weight^T on tiles where they fit, else by torch: float32 with at least MIN_ROWS rows, bfloat16 in blocks."""
    num_rows, inner = x.shape
    outer = weight.shape[0]
    if not fits_tiles(x.dtype, inner, outer) or not weight.is_contiguous():
        return _by_torch(x, weight)
    if x.stride(1) != 1:
        x = x.contiguous()
    out = x.new_empty(num_rows, outer)
    place, packed = (x.data_ptr(), 2 * x.stride(0)), None
    shares = num_shares(num_rows * inner * outer, outer // 32)
    if shares > 1:
        packed = torch.empty(packed_bytes(num_rows, inner), dtype=torch.uint8)  # torch aligns to 64 bytes
        pack(*place, num_rows, inner, packed.data_ptr())
    multiply_shared(shares, place, packed, weight, num_rows, out)
    return out


def multiply_shared(
    shares: int, place: tuple[int, int], packed: Tensor | None, weight: Tensor, num_rows: int, out: Tensor
) -> None:
    """out = x weight^T, x given as packed rows or else as (address, bytes a row). Mutates out."""
    outer, inner = weight.shape
    source = 0 if packed is None else packed.data_ptr()
    run_shared(
        shares, _multiply_share, *place, source, num_rows, inner, weight.data_ptr(), outer, out.data_ptr()
    )  # fmt: skip


def row_blocks(num_rows: int) -> list[slice]:
    """Slices that cover so many rows, 16 at least, in multiples of 16 and at most 256; the last two may overlap.

    Without AMX torch's bfloat16 products are compiled for every new number of rows, at half a millisecond and half a
    megabyte each; passes of changing size would never have enough of them.
    """
    whole = num_rows // MIN_ROWS * MIN_ROWS
    blocks = [slice(start, min(start + _BLOCK, whole)) for start in range(0, whole, _BLOCK)]
    return blocks if whole == num_rows else [*blocks, slice(num_rows - MIN_ROWS, num_rows)]


def _by_torch(x: Tensor, weight: Tensor) -> Tensor:
    num_rows = x.shape[0]
    if x.dtype is torch.bfloat16 and num_rows > MIN_ROWS:
        out = x.new_empty(num_rows, weight.shape[0])
        for rows in row_blocks(num_rows):
            torch.mm(x[rows], weight.T, out=out[rows])
        return out
    if num_rows >= MIN_ROWS or num_rows == 0 or x.dtype is not torch.float32:
        return F.linear(x, weight)
    padded = x.new_zeros(MIN_ROWS, x.shape[1])
    padded[:num_rows] = x
    return F.linear(padded, weight)[:num_rows]
