"""Mixture of experts: routing worked by hand, every way of computing the sum against a loop in float64."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from presswork.errors import RequestError
from presswork.ops.moe import Factors, mix_adapted_experts, mix_experts, mix_experts_dense, route
from tests.ops.closeness import DTYPES, random

EPS = 1e-6
# rows, model width, experts, experts a row, expert width
SIZES = [
    (1, 8, 1, 1, 4),
    (5, 7, 3, 2, 9),
    (90, 128, 4, 2, 64),
    (40, 64, 16, 8, 32),
    (3, 32, 64, 8, 32),
    (0, 16, 4, 2, 8),
]


def draw(size: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows, weights, expert ids and the experts' matrices."""
    rows, width, num, top_k, inner = size
    scores = random(rows, num, seed=5).softmax(-1)
    weights, experts = scores.topk(top_k, dim=-1)
    gate_up = (random(num, 2 * inner, width, seed=1) / width**0.5).to(dtype)
    down = (random(num, width, inner, seed=2) / inner**0.5).to(dtype)
    return random(rows, width, dtype=dtype), weights, experts, gate_up, down


def exact(h: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The definition in float64, a row and an expert at a time."""
    out = torch.zeros(h.shape, dtype=torch.float64)
    for n in range(h.shape[0]):
        for weight, expert in zip(weights[n].double(), experts[n], strict=True):
            gate, up = (gate_up[expert].double() @ h[n].double()).chunk(2)
            out[n] += weight * (down[expert].double() @ (F.gelu(gate, approximate="tanh") * up))
    return out


@pytest.mark.parametrize("impl", ["fast", "reference"])
def test_a_route_worked_by_hand(impl) -> None:
    x, scale = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0])
    projection = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    per_expert = torch.tensor([10.0, 100.0, 1000.0])
    root = math.sqrt(12.5)
    scores = [3 / root / math.sqrt(2), 2 * 4 / root / math.sqrt(2), -3 / root / math.sqrt(2)]
    powers = [math.exp(s) for s in scores]
    kept = powers[0] + powers[1]
    weights, experts = route(x, scale, projection, per_expert, 2, 0.0, impl=impl)
    assert experts.tolist() == [[1, 0]]
    torch.testing.assert_close(weights, torch.tensor([[100 * powers[1] / kept, 10 * powers[0] / kept]]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 8, 1, 1), (33, 48, 6, 2), (90, 128, 64, 8), (5, 31, 17, 17)], ids=str)
def test_the_fused_router_equals_the_reference(size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    rows, width, num, top_k = size
    x, scale = random(rows, width, dtype=dtype), 1 + random(width, seed=1, dtype=dtype) / 4
    projection, per_expert = random(num, width, seed=2, dtype=dtype), 1 + random(num, seed=3, dtype=dtype) / 4
    found, expected = (route(x, scale, projection, per_expert, top_k, EPS, impl=i) for i in ("fast", "reference"))
    exact_weights, exact_experts = route(
        x.double(), scale.double(), projection.double(), per_expert.double(), top_k, EPS, impl="reference"
    )
    assert found[0].dtype is torch.float32 and found[1].dtype is torch.int64
    if dtype is torch.float32:
        assert torch.equal(found[1], expected[1])
        torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
        return
    # In bfloat16 near-equal experts may change places; the router must not do that more often than the reference.
    moved = [(experts.sort()[0] != exact_experts.sort()[0]).any(1).sum() for _, experts in (found, expected)]
    assert moved[0] <= moved[1] + max(2, rows // 20)
    same = (found[1] == exact_experts).all(1)
    torch.testing.assert_close(found[0][same].double(), exact_weights[same].double(), rtol=0.06, atol=0.02)


def test_weights_sum_to_one_before_the_experts_scales() -> None:
    x, projection = random(12, 16), random(5, 16, seed=1)
    weights, experts = route(x, torch.ones(16), projection, torch.ones(5), 3, EPS)
    torch.testing.assert_close(weights.sum(-1), torch.ones(12))
    assert (weights.diff(dim=-1) <= 0).all() and all(len(set(row.tolist())) == 3 for row in experts)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_way_to_mix_equals_the_definition(size: tuple[int, ...]) -> None:
    arguments = draw(size, torch.float32)
    expected = exact(*arguments)
    ways = [
        mix_experts(*arguments, impl="fast"),
        mix_experts(*arguments, impl="reference"),
        mix_experts_dense(*arguments),
    ]
    for found in ways:
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bfloat16_is_no_further_from_the_definition_than_the_reference(size: tuple[int, ...]) -> None:
    arguments = draw(size, torch.bfloat16)
    if not arguments[0].numel():
        assert mix_experts(*arguments).shape == arguments[0].shape
        return
    expected = exact(*arguments)
    error = {i: (mix_experts(*arguments, impl=i).double() - expected).square().mean() for i in ("fast", "reference")}
    assert error["fast"] <= 1.3 * error["reference"] + 1e-9
    dense = mix_experts_dense(*arguments)
    assert (dense.double() - expected).square().mean() <= 3 * error["reference"] + 1e-9


def draw_factors(size: tuple[int, ...], dtype: torch.dtype, rank: int) -> tuple[Factors, Factors]:
    """Those of gate_up and of down, as large as the weights themselves."""
    _, width, num, _, inner = size

    def draw_one(rows: int, columns: int, seed: int) -> Factors:
        a = random(num, rank, columns, seed=seed) / columns**0.5
        return a.to(dtype), (random(num, rows, rank, seed=seed + 1) / rank**0.5).to(dtype), 1.5

    return draw_one(2 * inner, width, 11), draw_one(width, inner, 21)


def added(weight: Tensor, factors: Factors | None) -> Tensor:
    """The experts' weights with what their factors add, in float64."""
    return (
        weight.double() if factors is None else weight.double() + factors[2] * factors[1].double() @ factors[0].double()
    )


@pytest.mark.parametrize("rank", [3, 32])
@pytest.mark.parametrize("which", ["both", "gate_up", "down"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_factors_are_added_to_the_experts_weights(size: tuple[int, ...], which: str, rank: int) -> None:
    h, weights, experts, gate_up, down = draw(size, torch.float32)
    wide, narrow = draw_factors(size, torch.float32, rank)
    factors = (wide if which != "down" else None, narrow if which != "gate_up" else None)
    expected = exact(h, weights, experts, added(gate_up, factors[0]), added(down, factors[1]))
    for impl in ("fast", "reference"):
        found = mix_adapted_experts(h, weights, experts, gate_up, down, *factors, impl=impl)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [size for size in SIZES if size[0]], ids=str)
def test_bfloat16_factors_are_no_further_from_the_definition_than_the_reference(size: tuple[int, ...]) -> None:
    arguments, factors = draw(size, torch.bfloat16), draw_factors(size, torch.bfloat16, 32)
    h, weights, experts, *matrices = arguments
    expected = exact(h, weights, experts, *(added(w, f) for w, f in zip(matrices, factors, strict=True)))
    error = {
        impl: (mix_adapted_experts(*arguments, *factors, impl=impl).double() - expected).square().mean()
        for impl in ("fast", "reference")
    }
    assert error["fast"] <= 1.3 * error["reference"] + 1e-9


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_under_factors_does_not_depend_on_its_company(dtype: torch.dtype) -> None:
    size = (60, 64, 8, 2, 32)
    (h, weights, experts, *matrices), factors = draw(size, dtype), draw_factors(size, dtype, 32)
    together = mix_adapted_experts(h, weights, experts, *matrices, *factors)
    for rows in (slice(0, 1), slice(5, 9), slice(11, 44)):
        alone = mix_adapted_experts(h[rows], weights[rows], experts[rows], *matrices, *factors)
        assert torch.equal(alone, together[rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_does_not_depend_on_its_company(dtype: torch.dtype) -> None:
    h, weights, experts, gate_up, down = draw((60, 64, 8, 2, 32), dtype)
    together = mix_experts(h, weights, experts, gate_up, down)
    for rows in (slice(0, 1), slice(5, 9), slice(11, 44)):
        assert torch.equal(mix_experts(h[rows], weights[rows], experts[rows], gate_up, down), together[rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_threads_give_the_same_bits(dtype: torch.dtype, several_threads) -> None:
    arguments = draw((200, 256, 16, 4, 128), dtype)
    with several_threads(1):
        alone = mix_experts(*arguments, impl="fast")
    with several_threads(3):
        together = mix_experts(*arguments, impl="fast")
    assert torch.equal(together, alone)


@pytest.mark.parametrize("expert", [-1, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_expert_that_does_not_exist_is_refused(expert: int, dtype: torch.dtype) -> None:
    h, weights, experts, gate_up, down = draw((6, 64, 8, 2, 32), dtype)
    experts[3, 1] = expert
    with pytest.raises(RequestError, match="expert"):
        mix_experts(h, weights, experts, gate_up, down, impl="fast")


def test_gradients_of_the_dense_form_are_those_of_the_sum() -> None:
    grads = []
    for mix in (mix_experts_dense, mix_experts):
        h, weights, experts, gate_up, down = draw((9, 8, 4, 2, 6), torch.float32)
        leaves = [x.requires_grad_() for x in (h, weights, gate_up, down)]
        mix(h, weights, experts, gate_up, down).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
