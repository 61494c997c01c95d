"""What compiled loops cannot say for themselves: bit casts, number formats, and a fast transposition of 16-bit numbers.

numba's cache of a compiled function notices changes in that function's own file only. After a change here, delete
`__pycache__/_*kernels.*.nb?`, or the kernels keep the code they were compiled with.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

TURNED = 32  # rows turned at a time from a [T, N] matrix of products: one cache line of bfloat16
_SIDE = 16

_intrinsic: Any = intrinsic  # its type hints describe the generator, not the function it becomes


@_intrinsic
def as_float(typing_context, bits):
    """float32 with these bits."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@_intrinsic
def as_bits(typing_context, value):
    """int32 with the bits of a float32."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), generate


def wide_bits(bits) -> Any:
    """float32 bits of a stored number."""
    raise NotImplementedError("compiled code only")


@overload(wide_bits, inline="always")
def _wide_bits_compiled(bits):
    if bits.bitwidth == 16:
        return lambda bits: np.int32(np.int32(bits) << np.int32(16))
    return lambda bits: bits


def narrow(value, stored) -> Any:
    """float32 in the number format of the array `stored`, as bits, rounded to nearest even."""
    raise NotImplementedError("compiled code only")


@overload(narrow, inline="always")
def _narrow_compiled(value, stored):
    if stored.dtype.bitwidth == 16:

        def narrow(value, stored):
            bits = as_bits(value)
            return np.int16((bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16))

        return narrow
    return lambda value, stored: as_bits(value)


@_intrinsic
def _turn_square(typing_context, source, target):
    """target[i, j] = source[j, i] for 16 by 16 numbers of 16 bits; compiled loops take three times as long."""

    def generate(context, builder, signature, args):
        vector = ir.VectorType(ir.IntType(16), _SIDE)
        arrays = [
            context.make_array(kind)(context, builder, arg) for kind, arg in zip(signature.args, args, strict=True)
        ]

        def line(array, k):
            stride = cgutils.unpack_tuple(builder, array.strides)[0]
            start = builder.bitcast(array.data, ir.IntType(8).as_pointer())
            return builder.bitcast(builder.gep(start, [builder.mul(stride, stride.type(k))]), vector.as_pointer())

        lines = [builder.load(line(arrays[0], k), align=2) for k in range(_SIDE)]
        mixes = [[lane for k in range(low, low + 8) for lane in (k, k + _SIDE)] for low in (0, 8)]
        masks = [ir.Constant(ir.VectorType(ir.IntType(32), _SIDE), mix) for mix in mixes]
        # Four perfect shuffles of sixteen lines are a transposition.
        for _ in range(4):
            lines = [builder.shuffle_vector(lines[k], lines[k + 8], mask) for k in range(8) for mask in masks]
        for k in range(_SIDE):
            builder.store(lines[k], line(arrays[1], k), align=2)
        return context.get_dummy_value()

    return types.void(source, target), generate


def transpose(source, first_column, width, target):
    """target[i, j] = source[j, first_column + i] for TURNED rows and width, rounded up to 16, columns."""
    raise NotImplementedError("compiled code only")


@overload(transpose)
def _transpose_compiled(source, first_column, width, target):
    if source.dtype.bitwidth != 16:
        return lambda source, first_column, width, target: None

    def compiled(source, first_column, width, target):
        for j in range(0, width, _SIDE):
            for i in range(0, TURNED, _SIDE):
                _turn_square(source[j:, first_column + i :], target[i:, j:])

    return compiled
