"""Orthogonalisation against the singular value decomposition, and Muon's step against the formula."""

import math

import pytest
import torch

from presswork.training.config import OptimizerConfig
from presswork.training.muon import muon_step, orthogonalise
from presswork.training.optim import MasterOptimizer


@pytest.mark.parametrize("shape", [(8, 8), (5, 30), (30, 5), (3, 12, 7), (64, 256)], ids=str)
def test_singular_values_end_near_one_and_directions_stay(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalise(matrix)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.4 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    # An orthogonalised matrix has the same singular directions, so it lies close to U V^T.
    overlap = (found * (u @ v)).sum((-2, -1)) / (u @ v).norm(dim=(-2, -1)) / found.norm(dim=(-2, -1))
    assert (overlap > 0.95).all()


def test_each_matrix_of_a_stack_stands_alone() -> None:
    stack = torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(1))
    stack[1] *= 1000
    torch.testing.assert_close(orthogonalise(stack)[1], orthogonalise(stack[1]), atol=2e-2, rtol=0)


def test_a_step_by_the_formula() -> None:
    generator = torch.Generator().manual_seed(2)
    master, grad, momentum = (torch.randn(4, 6, generator=generator) for _ in range(3))
    kept = 0.9 * momentum + 0.1 * grad
    update = orthogonalise(0.1 * grad + 0.9 * kept)
    expected = master * (1 - 0.02 * 0.5) - 0.02 * 0.2 * math.sqrt(6) * update
    muon_step(master, grad, momentum, rate=0.02, decay=0.5, beta=0.9)
    torch.testing.assert_close(momentum, kept)
    torch.testing.assert_close(master, expected)


def test_updates_are_as_large_as_adamws() -> None:
    generator = torch.Generator().manual_seed(3)
    for shape in ((64, 64), (64, 512), (512, 64)):
        master = torch.zeros(shape)
        muon_step(master, torch.randn(shape, generator=generator), torch.zeros(shape), rate=1.0, decay=0.0, beta=0.95)
        assert 0.1 < master.square().mean().sqrt() < 0.3


class Tables(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.nn.Parameter(torch.randn(5, 4, generator=generator))
        self.output = torch.nn.Parameter(torch.randn(4, 4, generator=generator))


def test_tables_of_tokens_are_left_to_adamw() -> None:
    model = Tables()
    config = OptimizerConfig(peak_rate=0.01, algorithm="muon", warmup_steps=0, schedule="constant", weight_decay=0.0)
    optimizer = MasterOptimizer(model, config, 10, 0.0)
    before = {name: master.clone() for name, master in optimizer.masters.items()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.take_gradients()
    optimizer.step(0)
    # AdamW's first step is the rate in every entry; a matrix of ones has one direction only.
    torch.testing.assert_close(before["embedding"] - optimizer.masters["embedding"], torch.full((5, 4), 0.01))
    assert not torch.allclose(before["output"] - optimizer.masters["output"], torch.full((4, 4), 0.01), rtol=0.1)
