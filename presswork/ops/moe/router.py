"""The router in one or two passes, for CPUs. N rows, D model width, E experts, k experts a row."""

import numpy as np
import torch
from numba import carray
from torch import Tensor

from presswork.ops.lanes import (
    SUMS,
    as_bits,
    as_float,
    exp_sum,
    float32_at,
    int64_at,
    kernel,
    largest,
    read_row,
    round_row,
    write_row,
)
from presswork.ops.linear import fast as products
from presswork.ops.norm.fast import normalise

_MIN_PRODUCT = 16  # experts; fewer than a tile holds, and the logits are plain sums in the same pass


@kernel()
def _route_input(x, width, scale, factor, eps, is_bf16, ones, row):
    """A row's router input, rounded after each of its three steps."""
    read_row(x, width, is_bf16, row)
    normalise(row, width, ones, eps)
    round_row(row, width, is_bf16)
    for i in range(width):
        row[i] *= scale[i]
    round_row(row, width, is_bf16)
    for i in range(width):
        row[i] *= factor
    round_row(row, width, is_bf16)


@kernel(fastmath=SUMS)
def _dot(left, right, width):
    total = np.float32(0)
    for i in range(width):
        total += left[i] * right[i]
    return total


@kernel()
def _choose(logits, num_experts, per_expert_scale, top_k, keys, weights, experts):
    """Softmax, the k largest (of equals the lower id first), renormalised and scaled.

    A key is a probability's bits, which order as the numbers do, above the id's complement. NaN orders highest.
    """
    total, kept = exp_sum(logits, num_experts, largest(logits, num_experts)), np.float32(0)
    for i in range(num_experts):
        bits = np.int64(as_bits(np.float32(logits[i] / total)) & np.uint32(0x7FFFFFFF))
        keys[i] = (bits << 32) | (num_experts - 1 - i)
    for slot in range(top_k):
        best = np.int64(-1)
        for i in range(num_experts):
            best = max(best, keys[i])
        chosen = num_experts - 1 - (best & 0xFFFFFFFF)
        keys[chosen] = -1
        experts[slot] = chosen
        weights[slot] = as_float(np.uint32(best >> 32))
        kept += weights[slot]
    for slot in range(top_k):
        weights[slot] = weights[slot] / kept * per_expert_scale[experts[slot]]


@kernel()
def _route_alone(
    x, x_bytes, num_rows, width, scale_address, projection_address, num_experts, per_expert_address, top_k, factor, eps,
    is_bf16, weights_address, experts_address,
):  # fmt: skip
    scale, per_expert = np.empty(width, np.float32), np.empty(num_experts, np.float32)
    projection = np.empty((num_experts, width), np.float32)
    size = 2 if is_bf16 else 4
    read_row(scale_address, width, is_bf16, scale)
    read_row(per_expert_address, num_experts, is_bf16, per_expert)
    for e in range(num_experts):
        read_row(projection_address + e * width * size, width, is_bf16, projection[e])
    ones, row = np.ones(width, np.float32), np.empty(width, np.float32)
    logits, keys = np.empty(num_experts, np.float32), np.empty(num_experts, np.int64)
    weights = carray(float32_at(weights_address), (num_rows, top_k))
    experts = carray(int64_at(experts_address), (num_rows, top_k))
    for n in range(num_rows):
        _route_input(x + n * x_bytes, width, scale, factor, eps, is_bf16, ones, row)
        for e in range(num_experts):
            logits[e] = _dot(row, projection[e], width)
        round_row(logits, num_experts, is_bf16)
        _choose(logits, num_experts, per_expert, top_k, keys, weights[n], experts[n])


@kernel()
def _route_inputs(x, x_bytes, num_rows, width, scale_address, factor, eps, is_bf16, out):
    scale, ones, row = np.empty(width, np.float32), np.ones(width, np.float32), np.empty(width, np.float32)
    read_row(scale_address, width, is_bf16, scale)
    for n in range(num_rows):
        _route_input(x + n * x_bytes, width, scale, factor, eps, is_bf16, ones, row)
        write_row(row, width, is_bf16, out + n * width * (2 if is_bf16 else 4))


@kernel()
def _choose_all(
    logits_address, num_rows, num_experts, per_expert_address, top_k, is_bf16, weights_address, experts_address
):
    per_expert, logits = np.empty(num_experts, np.float32), np.empty(num_experts, np.float32)
    keys = np.empty(num_experts, np.int64)
    read_row(per_expert_address, num_experts, is_bf16, per_expert)
    weights = carray(float32_at(weights_address), (num_rows, top_k))
    experts = carray(int64_at(experts_address), (num_rows, top_k))
    for n in range(num_rows):
        read_row(logits_address + n * num_experts * (2 if is_bf16 else 4), num_experts, is_bf16, logits)
        _choose(logits, num_experts, per_expert, top_k, keys, weights[n], experts[n])


def route(
    x: Tensor, scale: Tensor, projection: Tensor, per_expert_scale: Tensor, top_k: int, eps: float
) -> tuple[Tensor, Tensor]:
    """(weights, expert ids) of each row."""
    if x.stride(1) != 1:
        x = x.contiguous()
    scale, projection, per_expert_scale = scale.contiguous(), projection.contiguous(), per_expert_scale.contiguous()
    num_rows, width = x.shape
    num_experts, size = projection.shape[0], x.element_size()
    weights = x.new_empty(num_rows, top_k, dtype=torch.float32)
    experts = x.new_empty(num_rows, top_k, dtype=torch.int64)
    place, factor = (x.data_ptr(), size * x.stride(0), num_rows, width), np.float32(width**-0.5)
    if num_experts < _MIN_PRODUCT:
        _route_alone(
            *place, scale.data_ptr(), projection.data_ptr(), num_experts, per_expert_scale.data_ptr(), top_k, factor,
            eps, size == 2, weights.data_ptr(), experts.data_ptr(),
        )  # fmt: skip
        return weights, experts
    inputs = x.new_empty(num_rows, width)
    _route_inputs(*place, scale.data_ptr(), factor, eps, size == 2, inputs.data_ptr())
    logits = products.linear(inputs, projection)
    _choose_all(
        logits.data_ptr(), num_rows, num_experts, per_expert_scale.data_ptr(), top_k, size == 2, weights.data_ptr(),
        experts.data_ptr(),
    )  # fmt: skip
    return weights, experts
