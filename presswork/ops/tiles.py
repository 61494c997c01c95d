"""bfloat16 products on AMX tiles, from numba. M rows, K inner width, N output columns, T = 16 rows of a tile.

A tile is 16 rows of 64 bytes. `dot` adds to a float32 tile C[16 x 16] the product of A[16 x 32] and B, where B holds
32 x 16 numbers as 16 rows of 16 pairs. Weights [N, K] are A as they lie in memory, so they are never repacked; the
activations, far smaller, are packed to B; C then comes out as [n, m] and is turned while it is rounded.

    packed activations   [M / 16][K / 32][16 pairs of k][16 rows m][2]
    C                    [16 columns n][16 rows m]

Invariant: a row's result depends on that row and the weights alone, whatever M is and wherever the row stands, since
every C element is one chain of additions over K in the same order (tests/ops/test_linear.py).
"""

import ctypes
import functools
import platform

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from presswork.ops.lanes import claim, keep, kernel, uint32_at

TILE_BYTES = 1024
_SYS_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18

_VOID, _I8, _I32, _I64 = ir.VoidType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)
_POINTER = _I8.as_pointer()
_LANES = ir.VectorType(_I32, 16)


@functools.cache
def has_tiles() -> bool:
    """Whether this process may use AMX bfloat16 tiles; the first call asks the Linux kernel for permission."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    features = llvmlite.binding.get_host_cpu_features()
    if not (features.get("amx-tile") and features.get("amx-bf16") and features.get("avx512f")):
        return False
    return ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0


def _emit(name: str, parameters: list[ir.Type], constants: tuple[int, ...]):
    """Code generator that calls the LLVM intrinsic `name`; tile numbers are constants, the rest arguments."""

    def generate(context, builder, signature, args):
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(_VOID, parameters), name
        )
        given, fixed = iter(args), iter(constants)
        values = []
        for kind in parameters:
            if kind == _I8:
                values.append(ir.Constant(_I8, next(fixed)))
            else:
                value = next(given)
                values.append(value if kind == _I64 else builder.inttoptr(value, kind))
        builder.call(function, values)
        return context.get_dummy_value()

    return generate


def _plain(name, *constants):
    generate = _emit(name, [_I8] * len(constants), constants)

    @intrinsic
    def instruction(typing_context):
        return types.void(), generate

    return instruction


def _with_address(name):
    generate = _emit(name, [_POINTER], ())

    @intrinsic
    def instruction(typing_context, address):
        return types.void(types.int64), generate

    return instruction


def _with_rows(name, tile):
    generate = _emit(name, [_I8, _POINTER, _I64], (tile,))

    @intrinsic
    def instruction(typing_context, address, row_bytes):
        return types.void(types.int64, types.int64), generate

    return instruction


_configure, _release = _with_address("llvm.x86.ldtilecfg"), _plain("llvm.x86.tilerelease")
_zero0, _zero1, _zero2, _zero3 = (_plain("llvm.x86.tilezero", i) for i in range(4))
_load4, _load5, _load6, _load7 = (_with_rows("llvm.x86.tileloadd64", i) for i in range(4, 8))
_store0, _store1, _store2, _store3 = (_with_rows("llvm.x86.tilestored64", i) for i in range(4))
_dot_0_4_6 = _plain("llvm.x86.tdpbf16ps", 0, 4, 6)
_dot_1_4_7 = _plain("llvm.x86.tdpbf16ps", 1, 4, 7)
_dot_2_5_6 = _plain("llvm.x86.tdpbf16ps", 2, 5, 6)
_dot_3_5_7 = _plain("llvm.x86.tdpbf16ps", 3, 5, 7)


def _interleave(builder, vectors):
    """One perfect shuffle of a list of 16-lane vectors; log2(len) of them turn a [len, 16] matrix."""
    low = ir.Constant(_LANES, [i // 2 + 16 * (i % 2) for i in range(16)])
    high = ir.Constant(_LANES, [8 + i // 2 + 16 * (i % 2) for i in range(16)])
    half = len(vectors) // 2
    shuffled = []
    for first, second in zip(vectors[:half], vectors[half:], strict=True):
        shuffled += [builder.shuffle_vector(first, second, lanes) for lanes in (low, high)]
    return shuffled


def _vector_pointer(builder, address, offset):
    return builder.inttoptr(builder.add(address, ir.Constant(_I64, offset)), _LANES.as_pointer())


@intrinsic
def _turn_pairs(typing_context, addresses, offset, target):
    """Write the [16 rows, 16 pairs] at 16 row addresses plus an offset as [16 pairs, 16 rows], a B tile."""

    def generate(context, builder, signature, args):
        rows = builder.inttoptr(args[0], _I64.as_pointer())
        vectors = []
        for i in range(16):
            row = builder.load(builder.gep(rows, [ir.Constant(_I32, i)]))
            vectors.append(builder.load(_vector_pointer(builder, builder.add(row, args[1]), 0), align=4))
        for _ in range(4):
            vectors = _interleave(builder, vectors)
        for i, vector in enumerate(vectors):
            builder.store(vector, _vector_pointer(builder, args[2], 64 * i), align=64)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def pair_rows(typing_context, even, odd, target):
    """Write 16 bfloat16 of two rows as 16 pairs, one row of a B tile."""

    def generate(context, builder, signature, args):
        halves = ir.VectorType(ir.IntType(16), 16)
        low, high = (
            builder.zext(builder.load(builder.inttoptr(row, halves.as_pointer()), align=2), _LANES) for row in args[:2]
        )
        pairs = builder.or_(low, builder.shl(high, ir.Constant(_LANES, [16] * 16)))
        builder.store(pairs, _vector_pointer(builder, args[2], 0), align=64)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def _round_turned(typing_context, tile, target):
    """Write a float32 tile [16 n, 16 m] as bfloat16 [16 m, 16 n]. NaN survives: a product's has no low bits set."""

    def generate(context, builder, signature, args):
        def splat(value):
            return ir.Constant(_LANES, [value] * 16)

        halves = []
        for i in range(16):
            bits = builder.load(_vector_pointer(builder, args[0], 64 * i), align=64)
            odd = builder.and_(builder.lshr(bits, splat(16)), splat(1))
            halves.append(builder.add(builder.add(bits, splat(0x7FFF)), odd))
        pairs = [
            builder.or_(builder.lshr(halves[i], splat(16)), builder.and_(halves[i + 1], splat(0xFFFF0000)))
            for i in range(0, 16, 2)
        ]
        for _ in range(3):
            pairs = _interleave(builder, pairs)
        for i, vector in enumerate(pairs):
            builder.store(vector, _vector_pointer(builder, args[1], 64 * i), align=64)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _prefetch(typing_context, address):
    """Ask for a cache line of weights that is about to be read, into the second level."""

    def generate(context, builder, signature, args):
        name = "llvm.prefetch.p0"
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(_VOID, [_POINTER, _I32, _I32, _I32]), name
        )
        hints = [ir.Constant(_I32, hint) for hint in (0, 2, 1)]
        builder.call(function, [builder.inttoptr(args[0], _POINTER), *hints])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@kernel()
def aligned(buffer):
    """First address in a byte buffer that tiles may use without crossing cache lines."""
    return (np.int64(buffer.ctypes.data) + 63) & ~np.int64(63)


@kernel()
def start_tiles():
    """Configure eight tiles of 16 rows of 64 bytes in this thread; call `stop_tiles` after the work."""
    memory = np.zeros(128, np.uint8)
    address = aligned(memory)
    config = memory[address - np.int64(memory.ctypes.data) :]
    config[0] = 1
    for i in range(8):
        config[16 + 2 * i] = 64
        config[48 + i] = 16
    _configure(address)
    keep(memory)


@kernel()
def pack_rows(addresses, num_rows, width, target):
    """Pack rows given by address to B tiles; the missing rows of the last tile are zero."""
    zeros = np.zeros(width, np.uint16)
    group = np.empty(16, np.int64)
    for first in range(0, num_rows, 16):
        for i in range(16):
            group[i] = addresses[first + i] if first + i < num_rows else zeros.ctypes.data
        for k in range(0, width, 32):
            _turn_pairs(group.ctypes.data, 2 * k, target)
            target += TILE_BYTES
    keep(zeros)


@kernel()
def pack_matrix(x, x_bytes, num_rows, width, target):
    """Pack evenly spaced rows to B tiles."""
    addresses = np.empty(num_rows, np.int64)
    for m in range(num_rows):
        addresses[m] = x + m * x_bytes
    pack_rows(addresses, num_rows, width, target)


@kernel()
def multiply(low, high, row_bytes, packed, is_pair, steps, target, target_bytes, second_offset, high_offset, ahead):
    """Two tiles of plain rows times one or two packed tiles, into four float32 tiles.

    The results are low x first, low x second, high x first, high x second, each with rows of `target_bytes`; `ahead`
    bytes further on lie the plain rows that the next call reads, 0 where they need no prefetch.
    """
    _zero0()
    _zero1()
    _zero2()
    _zero3()
    second = packed + steps * TILE_BYTES
    for k in range(steps):
        _load4(low + 64 * k, row_bytes)
        _load6(packed + TILE_BYTES * k, 64)
        _dot_0_4_6()
        _load5(high + 64 * k, row_bytes)
        _dot_2_5_6()
        if is_pair:
            _load7(second + TILE_BYTES * k, 64)
            _dot_1_4_7()
            _dot_3_5_7()
        if ahead:
            for i in range(0, TILE_BYTES, 64):
                _prefetch(low + ahead + TILE_BYTES * k + i)
                _prefetch(high + ahead + TILE_BYTES * k + i)
    _store0(target, target_bytes)
    _store2(target + high_offset, target_bytes)
    if is_pair:
        _store1(target + second_offset, target_bytes)
        _store3(target + high_offset + second_offset, target_bytes)


@kernel()
def multiply_apart(low, high, row_bytes, packed, is_pair, steps, tiles, ahead):
    """As `multiply`, into four tiles that lie one after the other."""
    multiply(low, high, row_bytes, packed, is_pair, steps, tiles, 64, TILE_BYTES, 2 * TILE_BYTES, ahead)


@kernel()
def store_tile(tile, scratch, num_rows, target, row_bytes):
    """Round one result tile to bfloat16 and store the rows it has."""
    _round_turned(tile, scratch)
    for m in range(num_rows):
        source, row = carray(uint32_at(scratch + 32 * m), 8), carray(uint32_at(target + row_bytes * m), 8)
        for i in range(8):
            row[i] = source[i]


@kernel()
def multiply_packed(weight, num_columns, width, packed, num_rows, out, out_bytes, counter, tiles):
    """out = x weight^T for packed x, two tiles of columns at a time as `counter` hands them out.

    The last tile overlaps its neighbour where N is no multiple of 16. `tiles` is scratch of five tiles.
    """
    steps = width // 32
    while True:
        column = 32 * claim(counter)
        if column >= num_columns:
            break
        n0, n1 = min(column, num_columns - 16), min(column + 16, num_columns - 16)
        low, high = weight + n0 * width * 2, weight + n1 * width * 2
        for m in range(0, num_rows, 32):
            is_pair = num_rows - m > 16
            ahead = 0 if m else 2 * steps * TILE_BYTES
            multiply_apart(low, high, 2 * width, packed + (m // 16) * steps * TILE_BYTES, is_pair, steps, tiles, ahead)
            target = out + m * out_bytes
            for i in range(2 if is_pair else 1):
                rows = min(num_rows - m - 16 * i, 16)
                tile, place = tiles + i * TILE_BYTES, target + 16 * i * out_bytes
                store_tile(tile, tiles + 4 * TILE_BYTES, rows, place + 2 * n0, out_bytes)
                store_tile(tile + 2 * TILE_BYTES, tiles + 4 * TILE_BYTES, rows, place + 2 * n1, out_bytes)


stop_tiles = _release
