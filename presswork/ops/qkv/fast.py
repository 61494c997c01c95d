"""From one fused projection to queries, keys and values, in one pass for CPUs.

N rows, H query heads, n KV heads, h head width, P columns of the projection.
"""

import numpy as np
from torch import Tensor

from presswork.ops.lanes import EXACT, kernel, read_row, round_row, write_row
from presswork.ops.norm.fast import normalise, read_weight


@kernel(fastmath=EXACT)
def _rotate(head, width, cos, sin, is_bf16, other):
    """Rotate a head in place, each product rounded as torch stores it; `other` is a buffer."""
    half = width // 2
    for i in range(half):
        other[i] = head[half + i] * -sin[i]
        other[half + i] = head[i] * sin[i]
    for i in range(half):
        head[i] *= cos[i]
        head[half + i] *= cos[i]
    round_row(head, width, is_bf16)
    round_row(other, width, is_bf16)
    for i in range(width):
        head[i] += other[i]


@kernel()
def _split_norm_rope(
    projected, row_bytes, q_norm_address, k_norm_address, cos_address, sin_address, q, k, v, num_rows, num_heads,
    num_kv_heads, width, has_values, eps, is_bf16,
):  # fmt: skip
    size = 2 if is_bf16 else 4
    head_bytes, half = size * width, width // 2
    q_norm, k_norm = read_weight(q_norm_address, width, is_bf16), read_weight(k_norm_address, width, is_bf16)
    ones = np.ones(width, np.float32)
    head, other = np.empty(width, np.float32), np.empty(width, np.float32)
    cos, sin = np.empty(half, np.float32), np.empty(half, np.float32)
    values = num_heads + (num_kv_heads if has_values else 0)
    for n in range(num_rows):
        row = projected + n * row_bytes
        read_row(cos_address + n * half * size, half, is_bf16, cos)
        read_row(sin_address + n * half * size, half, is_bf16, sin)
        for i in range(num_heads + num_kv_heads):
            is_query = i < num_heads
            read_row(row + i * head_bytes, width, is_bf16, head)
            normalise(head, width, q_norm if is_query else k_norm, eps)
            round_row(head, width, is_bf16)
            _rotate(head, width, cos, sin, is_bf16, other)
            place = q + i * head_bytes if is_query else k + (i - num_heads) * head_bytes
            write_row(head, width, is_bf16, place)
        for i in range(num_kv_heads):
            read_row(row + (values + i) * head_bytes, width, is_bf16, head)
            normalise(head, width, ones, eps)
            write_row(head, width, is_bf16, v + i * head_bytes)
        q += num_heads * head_bytes
        k += num_kv_heads * head_bytes
        v += num_kv_heads * head_bytes


def split_norm_rope(
    projected: Tensor, q_norm: Tensor, k_norm: Tensor, cos: Tensor, sin: Tensor, num_heads: int, num_kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Split, normalise and rotate in one pass."""
    if projected.stride(1) != 1:
        projected = projected.contiguous()
    q_norm, k_norm, cos, sin = q_norm.contiguous(), k_norm.contiguous(), cos.contiguous(), sin.contiguous()
    num_rows, num_columns = projected.shape
    width, size = q_norm.shape[0], projected.element_size()
    q = projected.new_empty(num_rows, num_heads, width)
    k = projected.new_empty(num_rows, num_kv_heads, width)
    v = projected.new_empty(num_rows, num_kv_heads, width)
    has_values = num_columns > (num_heads + num_kv_heads) * width
    _split_norm_rope(
        projected.data_ptr(), size * projected.stride(0), q_norm.data_ptr(), k_norm.data_ptr(), cos.data_ptr(),
        sin.data_ptr(), q.data_ptr(), k.data_ptr(), v.data_ptr(), num_rows, num_heads, num_kv_heads, width, has_values,
        eps, size == 2,
    )  # fmt: skip
    return q, k, v
