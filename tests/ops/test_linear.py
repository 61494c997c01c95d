"""Products: equal to the definition, and a row's bits do not depend on its company where we say so."""

import pytest
import torch

from presswork.ops.linear import is_row_stable, linear
from presswork.ops.linear.fast import row_blocks
from tests.ops.closeness import DTYPES, random, strided

SIZES = [
    (1, 1, 1), (3, 7, 5), (16, 32, 16), (17, 48, 33), (90, 128, 384), (0, 32, 8), (256, 352, 96), (5, 1056, 64),
    (300, 64, 40), (513, 32, 8),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_equal_the_definition(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, inner, outer = size
    x, weight = random(rows, inner, dtype=dtype), (random(outer, inner, seed=1) / inner**0.5).to(dtype)
    expected = x.double() @ weight.double().T
    for impl in ("fast", "reference"):
        found = linear(x, weight, impl=impl)
        assert found.shape == expected.shape and found.dtype is dtype
        tolerance = 2**-8 if dtype is torch.bfloat16 else 4e-6
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inner", [32, 48, 128, 256, 512, 1024])
def test_a_row_does_not_depend_on_its_company_where_it_is_said(inner: int, dtype: torch.dtype) -> None:
    if not is_row_stable(dtype, inner):
        pytest.skip(f"not promised for {dtype} and an inner width of {inner} on this machine")
    x, weight = random(70, inner, dtype=dtype), random(96, inner, seed=1, dtype=dtype)
    together = linear(x, weight)
    for rows in (slice(0, 1), slice(3, 5), slice(8, 25), slice(20, 52)):
        assert torch.equal(linear(x[rows], weight), together[rows])


def test_blocks_cover_every_row_in_few_sizes() -> None:
    sizes = set()
    for num_rows in range(16, 1200):
        blocks = row_blocks(num_rows)
        assert sorted({row for rows in blocks for row in range(num_rows)[rows]}) == list(range(num_rows))
        assert sum(rows.stop - rows.start for rows in blocks) < num_rows + 16 and blocks[-1].stop == num_rows
        sizes |= {rows.stop - rows.start for rows in blocks}
    assert sizes == set(range(16, 257, 16))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_threads_give_the_same_bits(dtype: torch.dtype, several_threads) -> None:
    x, weight = random(300, 256, dtype=dtype), random(2048, 256, seed=1, dtype=dtype)
    with several_threads(1):
        alone = linear(x, weight, impl="fast")
    with several_threads(3):
        together = linear(x, weight, impl="fast")
    assert torch.equal(alone, together)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_layout_in_memory_does_not_matter(dtype: torch.dtype) -> None:
    x, weight = random(20, 64, dtype=dtype), random(48, 64, seed=1, dtype=dtype)
    expected = linear(x, weight, impl="fast")
    assert torch.equal(linear(strided(x), strided(weight), impl="fast"), expected)
    assert torch.equal(linear(x.T.contiguous().T, weight, impl="fast"), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_in_its_row(dtype: torch.dtype) -> None:
    x, weight = random(20, 64, dtype=dtype), random(48, 64, seed=1, dtype=dtype)
    before = linear(x, weight, impl="fast")
    x[7, 3] = float("nan")
    after = linear(x, weight, impl="fast")
    others = torch.arange(20) != 7
    assert torch.equal(after[others], before[others]) and after[7].isnan().all()


def test_gradients_flow_where_they_are_recorded() -> None:
    x, weight = random(4, 8).requires_grad_(), random(3, 8, seed=1).requires_grad_()
    linear(x, weight).square().sum().backward()
    expected = 2 * (x @ weight.T).detach()
    assert x.grad is not None and weight.grad is not None
    torch.testing.assert_close(x.grad, expected @ weight.detach())
    torch.testing.assert_close(weight.grad, expected.T @ x.detach())
