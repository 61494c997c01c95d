"""Schedule, acceptance and stopping, on numbers from the reference sampler's description."""

import pytest
import torch

from presswork.diffusion.accept import ConfidenceRule, EntropyBoundRule
from presswork.diffusion.schedule import TemperatureSchedule
from presswork.diffusion.stopping import StableAndConfidentRule
from presswork.errors import PressworkError

ENTROPIES = torch.tensor([0.0772, 0.1865, 0.4362, 4.159, 4.159, 4.159, 4.159, 4.159])


def test_equal_bounds_are_a_constant_temperature() -> None:
    schedule = TemperatureSchedule(num_steps=3, t_min=0.5, t_max=0.5)
    assert [schedule.temperature(step) for step in range(3)] == [0.5] * 3


def test_the_released_schedule_ends_one_increment_above_t_min() -> None:
    schedule = TemperatureSchedule(num_steps=48)
    found = [schedule.temperature(step) for step in (0, 1, 47)]
    assert found == pytest.approx([0.8, 0.7916667, 0.4083333], abs=1e-7)
    assert all(schedule.temperature(s) > schedule.temperature(s + 1) for s in range(47))


def test_temperatures_are_those_of_float32_tensors() -> None:
    steps = torch.arange(1, 49, dtype=torch.int32)
    expected = 0.4 + (0.8 - 0.4) * (steps / 48)
    found = [TemperatureSchedule(num_steps=48).temperature(48 - int(s)) for s in steps]
    assert torch.equal(torch.tensor(found), expected)


@pytest.mark.parametrize(("bound", "num"), [(0.01, 1), (0.2, 2), (0.5, 3), (5.0, 5)])
def test_the_crossing_position_is_accepted(bound: float, num: int) -> None:
    order = torch.tensor([5, 0, 7, 2, 1, 6, 3, 4])
    accepted = EntropyBoundRule(bound).accept(ENTROPIES[order], -ENTROPIES[order])
    assert int(accepted.sum()) == num
    assert ENTROPIES[order][accepted].max() <= ENTROPIES[order][~accepted].min()


def test_ties_at_the_bound_go_to_the_lower_position() -> None:
    accepted = EntropyBoundRule(0.25).accept(torch.full((6,), 0.2), torch.zeros(6))
    assert accepted.tolist() == [True, True, False, False, False, False]


def test_something_is_always_accepted() -> None:
    hopeless = torch.full((4,), 12.0)
    assert int(EntropyBoundRule(1e-6).accept(hopeless, -hopeless).sum()) == 1
    assert ConfidenceRule(0.9).accept(hopeless, torch.tensor([-9.0, -8.0, -7.0, -8.0])).tolist() == [
        False, False, True, False,
    ]  # fmt: skip


def test_the_confidence_rule_takes_probabilities_from_its_threshold_on() -> None:
    logprobs = torch.tensor([0.95, 0.9, 0.85, 0.1]).log()
    assert ConfidenceRule(0.9).accept(torch.zeros(4), logprobs).tolist() == [True, True, False, False]


@pytest.mark.parametrize("rule", [EntropyBoundRule(0.3), ConfidenceRule(0.5)])
def test_canvases_of_a_batch_are_judged_alone(rule) -> None:
    generator = torch.Generator().manual_seed(0)
    entropy = torch.rand(5, 3, 16, generator=generator) / 4
    together = rule.accept(entropy, -entropy)
    alone = [rule.accept(row, -row) for row in entropy.flatten(0, 1)]
    assert torch.equal(together.flatten(0, 1), torch.stack(alone))


def canvases(*numbers: int) -> list[torch.Tensor]:
    return [torch.full((4,), n) for n in numbers]


@pytest.mark.parametrize(
    ("threshold", "past", "expected"),
    [
        (0, (), True), (1, (), False), (1, (7,), True), (1, (7, 5), False), (1, (5, 7), True), (2, (7,), False),
        (2, (7, 7), True), (2, (5, 7), False), (2, (5, 7, 7), True),
    ],
)  # fmt: skip
def test_a_canvas_stops_at_step_k_plus_1_at_the_earliest(threshold: int, past, expected: bool) -> None:
    rule = StableAndConfidentRule(stability_threshold=threshold, confidence_threshold=0.005)
    assert rule.converged(canvases(7)[0], canvases(*past), torch.full((4,), 0.001)) is expected


def test_confident_means_strictly_below() -> None:
    rule = StableAndConfidentRule(stability_threshold=0, confidence_threshold=0.5)
    assert not rule.converged(canvases(1)[0], [], torch.tensor([0.25, 0.75, 0.5, 0.5]))
    assert rule.converged(canvases(1)[0], [], torch.tensor([0.25, 0.70, 0.5, 0.5]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TemperatureSchedule(num_steps=0), "max_denoising_steps must be a positive integer, got 0"),
        (lambda: TemperatureSchedule(num_steps=4, t_min=0.81, t_max=0.8), "t_min must lie in"),
        (lambda: TemperatureSchedule(num_steps=4, t_min=0.0, t_max=0.0), "t_max must be at least 1e-06"),
        (lambda: EntropyBoundRule(0.0), "entropy_bound must be above 0"),
        (lambda: ConfidenceRule(1.5), "accept_threshold must lie in"),
        (lambda: StableAndConfidentRule(stability_threshold=-1), "stability_threshold must be an integer"),
        (lambda: StableAndConfidentRule(confidence_threshold=0.0), "confidence_threshold must be above 0"),
    ],
)
def test_bad_values_are_refused_in_one_line(make, message: str) -> None:
    with pytest.raises(PressworkError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
