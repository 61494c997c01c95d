"""RMS normalisation, fused for CPUs. N rows, D width."""

import numpy as np
from torch import Tensor

from presswork.ops.lanes import kernel, mean_square, read_row, round_row, write_row


@kernel()
def normalise(row, width, weight, eps):
    """row / rms(row) * weight, in place and unrounded."""
    inverse = np.float32(1) / np.sqrt(mean_square(row, width) + np.float32(eps))
    for i in range(width):
        row[i] = (row[i] * inverse) * weight[i]


@kernel()
def read_weight(address, width, is_bf16):
    """A norm's weight; ones for the address 0."""
    weight = np.ones(width, np.float32)
    if address:
        read_row(address, width, is_bf16, weight)
    return weight


@kernel()
def _norm(x, x_bytes, weight_address, out, num_rows, width, eps, is_bf16):
    weight, row = read_weight(weight_address, width, is_bf16), np.empty(width, np.float32)
    out_bytes = width * (2 if is_bf16 else 4)
    for n in range(num_rows):
        read_row(x + n * x_bytes, width, is_bf16, row)
        normalise(row, width, weight, eps)
        write_row(row, width, is_bf16, out + n * out_bytes)


@kernel()
def _add_and_store(row, residual, width, scale, has_scale, is_bf16, base, out):
    """(residual + row) * scale to `out`; row is a norm that is not yet rounded, base a buffer."""
    round_row(row, width, is_bf16)
    read_row(residual, width, is_bf16, base)
    for i in range(width):
        row[i] += base[i]
    if has_scale:
        round_row(row, width, is_bf16)
        for i in range(width):
            row[i] *= scale
    write_row(row, width, is_bf16, out)


@kernel()
def _residual_norm(
    residual, residual_bytes, x, x_bytes, weight_address, scale_address, out, num_rows, width, eps, is_bf16
):  # fmt: skip
    weight = read_weight(weight_address, width, is_bf16)
    row, base, scale = np.empty(width, np.float32), np.empty(width, np.float32), np.ones(num_rows, np.float32)
    has_scale = scale_address != 0
    if has_scale:
        read_row(scale_address, num_rows, is_bf16, scale)
    out_bytes = width * (2 if is_bf16 else 4)
    for n in range(num_rows):
        read_row(x + n * x_bytes, width, is_bf16, row)
        normalise(row, width, weight, eps)
        _add_and_store(
            row, residual + n * residual_bytes, width, scale[n], has_scale, is_bf16, base, out + n * out_bytes
        )  # fmt: skip


@kernel()
def _join_branches(
    residual, residual_bytes, dense, dense_bytes, dense_weight_address, sparse, sparse_bytes, sparse_weight_address,
    weight_address, scale_address, out, num_rows, width, eps, is_bf16,
):  # fmt: skip
    weight = read_weight(weight_address, width, is_bf16)
    dense_weight = read_weight(dense_weight_address, width, is_bf16)
    sparse_weight = read_weight(sparse_weight_address, width, is_bf16)
    row, base, scale = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(num_rows, np.float32)
    read_row(scale_address, num_rows, is_bf16, scale)
    out_bytes = width * (2 if is_bf16 else 4)
    for n in range(num_rows):
        read_row(dense + n * dense_bytes, width, is_bf16, row)
        normalise(row, width, dense_weight, eps)
        round_row(row, width, is_bf16)
        read_row(sparse + n * sparse_bytes, width, is_bf16, base)
        normalise(base, width, sparse_weight, eps)
        round_row(base, width, is_bf16)
        for i in range(width):
            row[i] += base[i]
        round_row(row, width, is_bf16)
        normalise(row, width, weight, eps)
        _add_and_store(row, residual + n * residual_bytes, width, scale[n], True, is_bf16, base, out + n * out_bytes)


def _rows(x: Tensor) -> Tensor:
    """x as a matrix whose rows are contiguous, spaced as they are."""
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _address(vector: Tensor | None) -> int:
    return 0 if vector is None else vector.data_ptr()


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The norm of every row in one pass."""
    rows, size = _rows(x), x.element_size()
    num_rows, width = rows.shape
    out = x.new_empty(x.shape)
    weight = None if weight is None else weight.contiguous()
    _norm(
        rows.data_ptr(), size * rows.stride(0), _address(weight), out.data_ptr(), num_rows, width, eps, size == 2
    )  # fmt: skip
    return out


def residual_norm(residual: Tensor, x: Tensor, weight: Tensor | None, eps: float, scale: Tensor | None) -> Tensor:
    """Norm, sum and scale in one pass."""
    residual, x, size = _rows(residual), _rows(x), x.element_size()
    num_rows, width = x.shape
    out = x.new_empty(num_rows, width)
    weight = None if weight is None else weight.contiguous()
    scale = None if scale is None else scale.contiguous()
    _residual_norm(
        residual.data_ptr(), size * residual.stride(0), x.data_ptr(), size * x.stride(0), _address(weight),
        _address(scale), out.data_ptr(), num_rows, width, eps, size == 2,
    )  # fmt: skip
    return out


def join_branches(
    residual: Tensor, dense: Tensor, dense_weight: Tensor, sparse: Tensor, sparse_weight: Tensor, weight: Tensor,
    eps: float, scale: Tensor,
) -> Tensor:  # fmt: skip
    """Three norms, two sums and the scale in one pass."""
    residual, dense, sparse, size = _rows(residual), _rows(dense), _rows(sparse), dense.element_size()
    num_rows, width = dense.shape
    out = dense.new_empty(num_rows, width)
    dense_weight, sparse_weight = dense_weight.contiguous(), sparse_weight.contiguous()
    weight, scale = weight.contiguous(), scale.contiguous()
    _join_branches(
        residual.data_ptr(), size * residual.stride(0), dense.data_ptr(), size * dense.stride(0),
        dense_weight.data_ptr(), sparse.data_ptr(), size * sparse.stride(0), sparse_weight.data_ptr(),
        weight.data_ptr(), scale.data_ptr(), out.data_ptr(), num_rows, width, eps, size == 2,
    )  # fmt: skip
    return out
