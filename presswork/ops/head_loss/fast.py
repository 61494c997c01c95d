"""Loss and gradient of a row of products in one visit, compiled for CPUs. n rows, V vocabulary."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import carray
from torch import Tensor

from presswork.ops.lanes import (
    EXACT,
    SUMS,
    claim,
    exp,
    exp_sum,
    float32_at,
    int64_at,
    kernel,
    largest,
    read_row,
    write_row,
)
from presswork.ops.threads import num_shares, run_shared

_F = np.float32
_ROWS = 8  # rows a thread takes at a time


@kernel(fastmath=EXACT)
def _squash(row, width, cap):
    """row = cap tanh(row / cap), by 1 - 2 / (e^2x + 1): float32 rounding of tanh itself, not relative to small x."""
    if cap > _F(0):
        double = _F(2) / cap
        for i in range(width):
            x = min(max(row[i] * double, _F(-20)), _F(20))
            row[i] = cap - _F(2) * cap / (exp(x) + _F(1)) if row[i] == row[i] else row[i]


@kernel(fastmath=SUMS)
def _gradient(mass, z, width, factor, inverse_cap, scale):
    """mass = mass * factor, times the slope of the softcap and scale."""
    for i in range(width):
        squashed = z[i] * inverse_cap
        mass[i] = mass[i] * factor * (_F(1) - squashed * squashed) * scale


@kernel()
def _rows(products, num_rows, width, targets, losses, right, cap, scale, is_bf16, counter):
    z, mass = np.empty(width, np.float32), np.empty(width, np.float32)
    row_bytes = width * (2 if is_bf16 else 4)
    inverse_cap = _F(1) / cap if cap > _F(0) else _F(0)
    target_ids, loss_of, is_right = (
        carray(int64_at(targets), num_rows),
        carray(float32_at(losses), num_rows),
        carray(int64_at(right), num_rows),
    )
    first = 0
    while True:
        if counter:
            first = _ROWS * claim(counter)
        if first >= num_rows:
            break
        for n in range(first, min(first + _ROWS, num_rows)):
            address, target = products + n * row_bytes, target_ids[n]
            read_row(address, width, is_bf16, z)
            _squash(z, width, cap)
            top = largest(z, width)
            mass[:] = z
            total = exp_sum(mass, width, top)
            loss_of[n] = _F(math.log(total)) + top - z[target]
            is_right[n] = 1 if z[target] == top else 0
            _gradient(mass, z, width, _F(1) / total, inverse_cap, scale)
            squashed = z[target] * inverse_cap
            mass[target] -= (_F(1) - squashed * squashed) * scale
            write_row(mass, width, is_bf16, address)
        first += _ROWS


@kernel()
def _softmax_rows(products, num_rows, width, cap, is_bf16, counter):
    z = np.empty(width, np.float32)
    row_bytes = width * (2 if is_bf16 else 4)
    first = 0
    while True:
        if counter:
            first = _ROWS * claim(counter)
        if first >= num_rows:
            break
        for n in range(first, min(first + _ROWS, num_rows)):
            address = products + n * row_bytes
            read_row(address, width, is_bf16, z)
            _squash(z, width, cap)
            total = exp_sum(z, width, largest(z, width))
            for i in range(width):
                z[i] /= total
            write_row(z, width, is_bf16, address)
        first += _ROWS


def softmax_in_place(products: Float[Tensor, "n V"], softcap: float | None) -> None:
    """As the reference."""
    num, width = products.shape
    shares = num_shares(64 * num * width, max(1, num // _ROWS))
    is_bf16 = products.dtype is torch.bfloat16
    run_shared(shares, _softmax_rows, products.data_ptr(), num, width, _F(softcap or 0), is_bf16)


def logit_gradients(
    products: Float[Tensor, "n V"], targets: Int[Tensor, "n"], softcap: float | None, scale: float
) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
    """As the reference; a row stays in the processor's cache from its products to its gradients."""
    num, width = products.shape
    losses, right = torch.empty(num), torch.empty(num, dtype=torch.int64)
    targets = targets.contiguous()
    shares = num_shares(64 * num * width, max(1, num // _ROWS))
    run_shared(
        shares, _rows, products.data_ptr(), num, width, targets.data_ptr(), losses.data_ptr(), right.data_ptr(),
        _F(softcap or 0), _F(scale), products.dtype is torch.bfloat16,
    )  # fmt: skip
    return losses, right
