"""The learning rate's shape, and AdamW over float32 masters against the textbook update."""

import itertools
import math

import pytest
import torch
from torch import nn

from presswork.errors import ConfigError
from presswork.training.config import OptimizerConfig, TrainConfig
from presswork.training.optim import MasterOptimizer, learning_rate


def test_the_rate_warms_up_linearly_and_follows_a_cosine_to_its_final_share() -> None:
    config = OptimizerConfig(peak_rate=2.0, warmup_steps=4, final_share=0.1)
    rates = [learning_rate(config, step, 105) for step in range(105)]
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[54] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5)) and rates[-1] == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))


@pytest.mark.parametrize(("warmup", "num_steps"), [(0, 1), (10, 5), (5, 5)])
def test_short_runs_have_a_rate_too(warmup: int, num_steps: int) -> None:
    config = OptimizerConfig(peak_rate=1.0, warmup_steps=warmup)
    assert all(0 < learning_rate(config, step, num_steps) <= 1 for step in range(num_steps))


class Two(nn.Module):
    """A matrix, which decays, and a vector, which does not."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(3, 4, generator=generator).to(dtype))
        self.vector = nn.Parameter(torch.randn(4, generator=generator).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps_equal_the_textbook(dtype: torch.dtype) -> None:
    config = OptimizerConfig(peak_rate=0.1, warmup_steps=2, betas=(0.9, 0.95), weight_decay=0.2, clip_norm=1.0)
    model = Two(dtype)
    optimizer = MasterOptimizer(model, config, num_steps=6, ema_decay=0.9)
    names = ("matrix", "vector")
    masters = {name: optimizer.masters[name].clone().double() for name in names}
    average = {name: masters[name].clone() for name in names}
    first, second = ({name: torch.zeros_like(masters[name]) for name in names} for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        grads = {name: torch.randn(masters[name].shape, generator=generator).to(dtype) for name in names}
        for name, parameter in model.named_parameters():
            parameter.grad = grads[name].clone()
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))
        optimizer.take_gradients()
        assert optimizer.step(step) == pytest.approx(norm, rel=1e-5)
        rate = learning_rate(config, step, 6)
        decay = min(0.9, (step + 1) / (step + 10))
        for name in names:
            grad = grads[name].double() * min(1.0, 1.0 / (norm + 1e-6))
            masters[name] *= 1 - rate * (0.2 if name == "matrix" else 0.0)
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.95 * second[name] + 0.05 * grad.square()
            corrected = second[name] / (1 - 0.95 ** (step + 1))
            masters[name] -= rate * first[name] / (1 - 0.9 ** (step + 1)) / (corrected.sqrt() + 1e-8)
            average[name] = decay * average[name] + (1 - decay) * masters[name]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(optimizer.masters[name].double(), masters[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(optimizer.average[name].double(), average[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(parameter.data, optimizer.masters[name].to(dtype)) and parameter.grad is None


def test_small_updates_are_not_lost_to_bfloat16() -> None:
    config = OptimizerConfig(peak_rate=1e-4, warmup_steps=0, final_share=1.0, weight_decay=0.0)
    model = Two(torch.bfloat16)
    optimizer = MasterOptimizer(model, config, num_steps=200, ema_decay=0.0)
    start = optimizer.masters["vector"].clone()
    for step in range(200):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.take_gradients()
        optimizer.step(step)
    torch.testing.assert_close(optimizer.masters["vector"], start - 0.02, rtol=0, atol=1e-4)
    assert not torch.equal(model.vector.data, start.bfloat16())


def test_gradients_of_several_passes_add_up_in_float32() -> None:
    model = Two(torch.bfloat16)
    optimizer = MasterOptimizer(model, OptimizerConfig(peak_rate=1e-4), num_steps=9, ema_decay=0.0)
    # Behind 1 bfloat16 knows no smaller step than 2^-7.
    for value in (1.0, *[2.0**-9] * 64):
        model.vector.grad = torch.full_like(model.vector, value)
        optimizer.take_gradients()
    assert model.vector.grad is None
    assert optimizer.masters["vector"].grad.tolist() == [1.125] * 4
    assert optimizer.step(0) == pytest.approx(2.25) and optimizer.masters["vector"].grad is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizerConfig(peak_rate=0.0), "peak_rate must be positive, got 0.0"),
        (lambda: OptimizerConfig(peak_rate=1.0, final_share=2.0), "final_share must lie in"),
        (lambda: OptimizerConfig(peak_rate=1.0, betas=(0.9, 1.0)), "betas must lie in"),
        (lambda: OptimizerConfig(peak_rate=1.0, weight_decay=-0.1), "weight_decay must not be negative"),
        (lambda: TrainConfig(num_steps=0, optimizer=OptimizerConfig(peak_rate=1.0)), "num_steps must be positive"),
        (
            lambda: TrainConfig(num_steps=1, optimizer=OptimizerConfig(peak_rate=1.0), dtype="float8"),
            "dtype must be bfloat16 or float32, got 'float8'",
        ),
    ],
)
def test_bad_values_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
