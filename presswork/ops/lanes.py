"""Numba helpers for fused CPU kernels: rows of float32 or bfloat16 memory by address, and functions that vectorise.

Kernels take addresses and sizes as plain integers: passing an array to a compiled function costs about a microsecond,
a number nothing, and a small model runs a hundred kernels a step. A row is widened to a float32 buffer, worked on
there and rounded back, so one compiled kernel serves both dtypes.
"""

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

_log = logging.getLogger(__name__)

# No "nnan"/"ninf": NaN must stay in its row and come out as NaN. "reassoc" is what lets sums vectorise.
SUMS = ("contract", "nsz", "reassoc", "arcp")
EXACT = ("contract", "nsz")


def kernel(*, fastmath: Iterable[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Compile with numba, without the interpreter lock, cached on disk where numba finds a place to write.

    The cache of a kernel notices edits of its own file only: after an edit of a file whose functions it calls,
    remove the *.nbi files below __pycache__.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError as problem:  # neither the package's folder nor the user's cache folder can be written
            _log.info("kernel %s is compiled anew in every process: %s", function.__name__, problem)
            return njit(**options)(function)

    return compiled


_F = np.float32
_LOG2E = _F(math.log2(math.e))
_LN2_HIGH = _F(0.693359375)  # exact in 9 bits, so n * _LN2_HIGH is exact
_LN2_LOW = _F(math.log(2) - 0.693359375)
_MAGIC = _F(1.5 * 2**23)  # adding it rounds to an integer that can be read off the low bits
_ZERO_BITS = np.uint32(_MAGIC.view(np.uint32) - np.uint32(127))  # bits of a shifted number whose power is 2^-127
_LOWEST = _F(-87.3)
_T2, _T3, _T4, _T5, _T6 = (_F(1 / math.factorial(k)) for k in range(2, 7))


@intrinsic
def as_float(typing_context, bits):
    """float32 with these 32 bits."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def as_bits(typing_context, value):
    """The 32 bits of a float32."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), generate


def _pointer(item):
    @intrinsic
    def at(typing_context, address):
        def generate(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(item)(types.int64), generate

    return at


float32_at, uint8_at, uint16_at, uint32_at, int64_at = (
    _pointer(item) for item in (types.float32, types.uint8, types.uint16, types.uint32, types.int64)
)


@intrinsic
def claim(typing_context, counter):
    """The next number of a shared counter by address: threads take turns at pieces of work by it."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(types.int64), generate


@kernel()
def keep(array):
    """Hold an array's memory until here: numba frees an array after its last use, and an address is no use."""


@kernel()
def widen(bits):
    """float32 of bfloat16 bits."""
    return as_float(np.uint32(bits) << np.uint32(16))


@kernel()
def narrow(value):
    """bfloat16 bits of a float32, rounded to nearest even; NaN stays NaN."""
    bits = as_bits(value)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded if value == value else np.uint32(0x7FC0)


@kernel()
def read_row(address, width, is_bf16, row):
    """Widen `width` stored numbers into a float32 buffer."""
    if is_bf16:
        stored = carray(uint16_at(address), width)
        for i in range(width):
            row[i] = widen(stored[i])
    else:
        plain = carray(float32_at(address), width)
        for i in range(width):
            row[i] = plain[i]


@kernel()
def write_row(row, width, is_bf16, address):
    """Store a float32 buffer, rounded where the memory is bfloat16."""
    if is_bf16:
        stored = carray(uint16_at(address), width)
        for i in range(width):
            stored[i] = np.uint16(narrow(row[i]))
    else:
        plain = carray(float32_at(address), width)
        for i in range(width):
            plain[i] = row[i]


@kernel()
def round_row(row, width, is_bf16):
    """Round a buffer as if it had been stored and read back."""
    if is_bf16:
        for i in range(width):
            row[i] = widen(narrow(row[i]))


@kernel(fastmath=SUMS)
def mean_square(row, width):
    """Mean of squares."""
    total = _F(0)
    for i in range(width):
        total += row[i] * row[i]
    return total / _F(width)


@kernel(fastmath=EXACT)
def exp(x):
    """e^x for x up to 88, to 3e-7 relative; 0 below -87.3; NaN stays NaN. Branch-free, so that it vectorises."""
    y = _LOWEST if x < _LOWEST else x  # in this form NaN passes
    shifted = y * _LOG2E + _MAGIC
    n = shifted - _MAGIC
    r = (y - n * _LN2_HIGH) - n * _LN2_LOW
    series = (((((_T6 * r + _T5) * r + _T4) * r + _T3) * r + _T2) * r + _F(1)) * r + _F(1)
    power = as_float((as_bits(shifted) - _ZERO_BITS) << np.uint32(23))
    return _F(0) if x < _LOWEST else series * power


@kernel(fastmath=EXACT)
def gelu(x):
    """x / (1 + e^(-2 u)), u = sqrt(2/pi) (x + 0.044715 x^3): the tanh approximation without its cancellation."""
    u = _F(-2 * math.sqrt(2 / math.pi)) * (x + _F(0.044715) * (x * x * x))
    return x / (_F(1) + exp(_F(88) if u > _F(88) else u))


@kernel()
def largest(row, width):
    """The largest of a row by the order of its bits, which vectorises; NaN may or may not count."""
    top = np.int32(-0x7FFFFFFF)
    for i in range(width):
        bits = np.int32(as_bits(row[i]))
        # numba widens integers at every operation; without the inner cast the loop stays scalar
        top = np.int32(max(top, np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))))
    return as_float(np.uint32(top ^ ((top >> np.int32(31)) & np.int32(0x7FFFFFFF))))


@kernel(fastmath=SUMS)
def exp_sum(row, width, top):
    """row = e^(row - top) in place; returns the sum."""
    total = _F(0)
    for i in range(width):
        row[i] = exp(row[i] - top)
        total += row[i]
    return total
