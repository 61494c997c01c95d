"""One step of the sampler on readings made up by hand."""

from dataclasses import replace

import torch

from presswork.diffusion.accept import ConfidenceRule, EntropyBoundRule
from presswork.diffusion.noise import CounterNoise
from presswork.diffusion.sampler import CanvasState, DiffusionRules, Pins, StepReading, advance, start_canvas
from presswork.diffusion.schedule import TemperatureSchedule
from presswork.diffusion.stopping import StableAndConfidentRule

VOCAB, LENGTH = 100, 4
NOISE = CounterNoise(5)


def rules(num_steps: int = 8, stop: StableAndConfidentRule | None = None) -> DiffusionRules:
    return DiffusionRules(schedule=TemperatureSchedule(num_steps=num_steps), accept=EntropyBoundRule(0.1), stop=stop)


def reading(argmax: list[int], entropy: list[float], sample: list[int] | None = None) -> StepReading:
    return StepReading(
        argmax=torch.tensor(argmax),
        sample=torch.tensor(sample or argmax),
        entropy=torch.tensor(entropy),
        max_logprob=-torch.tensor(entropy),
        soft_embedding=torch.full((LENGTH, 2), sum(entropy)),
    )


def start() -> CanvasState:
    return start_canvas(NOISE, 1, LENGTH, VOCAB)


def test_a_canvas_starts_as_the_requests_noise() -> None:
    state = start()
    assert torch.equal(state.tokens, NOISE.initial_canvas(1, LENGTH, VOCAB))
    assert state.belief is None and state.step == 0 and not state.finished


def test_accepted_samples_stay_and_the_rest_is_noise_again() -> None:
    state = start()
    advance(state, reading([1, 2, 3, 4], [0.0, 3.0, 0.05, 3.0], sample=[11, 12, 13, 14]), rules(), NOISE, VOCAB)
    fresh = NOISE.renoise(1, 0, LENGTH, VOCAB)
    # 0 + 0.05 stays within the bound, and the position that crosses it, the first of the equal ones, is in.
    assert state.accepted.tolist() == [True, True, True, False]
    assert state.tokens.tolist() == [11, 12, 13, int(fresh[3])]
    assert state.argmax.tolist() == [1, 2, 3, 4]
    assert state.belief is not None and torch.equal(state.belief, torch.full((LENGTH, 2), 6.05))


def test_acceptance_starts_from_nothing_in_every_step() -> None:
    state = start()
    advance(state, reading([1, 2, 3, 4], [0.0, 0.0, 0.0, 0.0]), rules(), NOISE, VOCAB)
    assert state.accepted.all()
    advance(state, reading([1, 2, 3, 4], [5.0, 5.0, 5.0, 0.0]), rules(), NOISE, VOCAB)
    assert state.accepted.tolist() == [True, False, False, True]
    assert state.tokens[1:3].tolist() == NOISE.renoise(1, 1, LENGTH, VOCAB)[1:3].tolist()


def test_positions_remember_when_they_settled() -> None:
    state = start()
    for argmax in ([1, 2, 3, 4], [1, 2, 9, 4], [1, 5, 9, 4]):
        advance(state, reading(argmax, [1.0] * 4), rules(), NOISE, VOCAB)
    assert state.settled_step.tolist() == [1, 3, 2, 1]


def test_the_budget_ends_a_canvas_and_convergence_ends_it_early() -> None:
    state = start()
    for step in range(3):
        assert not state.finished
        advance(state, reading([step] * 4, [2.0] * 4), rules(num_steps=3), NOISE, VOCAB)
    assert state.finished and not state.converged

    stop = StableAndConfidentRule(stability_threshold=1, confidence_threshold=0.01)
    state, sure = start(), reading([1, 2, 3, 4], [0.0] * 4)
    advance(state, sure, rules(stop=stop), NOISE, VOCAB)
    assert not state.finished
    advance(state, sure, rules(stop=stop), NOISE, VOCAB)
    assert state.finished and state.converged and state.step == 2


def test_without_a_stop_rule_every_step_is_spent() -> None:
    state, sure = start(), reading([1, 2, 3, 4], [0.0] * 4)
    while not state.finished:
        advance(state, sure, rules(num_steps=5), NOISE, VOCAB)
    assert state.step == 5 and not state.converged


def test_the_confidence_rule_reads_probabilities() -> None:
    chosen = DiffusionRules(schedule=TemperatureSchedule(num_steps=4), accept=ConfidenceRule(0.8), stop=None)
    state = start()
    advance(state, reading([1, 2, 3, 4], [0.1, 0.3, 0.2, 4.0]), chosen, NOISE, VOCAB)
    assert state.accepted.tolist() == [True, False, True, False]


def pins(positions: list[int], tokens: list[int]) -> Pins:
    believed = torch.tensor([[token, -token] for token in tokens])
    return Pins(positions=torch.tensor(positions), tokens=torch.tensor(tokens), embeddings=believed)


def test_pins_hold_from_the_first_canvas_on_and_noise_elsewhere_is_the_same() -> None:
    pinned = start_canvas(NOISE, 1, LENGTH, VOCAB, pins=pins([2, 0], [77, 78]))
    free = start()
    assert pinned.tokens.tolist() == [78, int(free.tokens[1]), 77, int(free.tokens[3])]
    unsure = reading([1, 2, 3, 4], [2.0] * 4)
    for state in (pinned, free):
        advance(state, unsure, rules(), NOISE, VOCAB)
    assert pinned.tokens.tolist() == [78, 2, 77, int(free.tokens[3])]


def test_a_pinned_position_is_certain_whatever_the_model_says() -> None:
    state = start_canvas(NOISE, 1, LENGTH, VOCAB, pins=pins([2], [77]))
    advance(state, reading([1, 2, 3, 4], [5.0] * 4), rules(), NOISE, VOCAB)
    assert state.argmax.tolist() == [1, 2, 77, 4] and state.entropy.tolist() == [5.0, 5.0, 0.0, 5.0]
    assert state.belief is not None
    assert state.belief.tolist() == [[20.0, 20.0], [20.0, 20.0], [77.0, -77.0], [20.0, 20.0]]


def test_pins_cost_no_budget_and_one_free_position_is_always_accepted() -> None:
    for accept in (EntropyBoundRule(0.1), ConfidenceRule(0.9)):
        chosen = DiffusionRules(schedule=TemperatureSchedule(num_steps=4), accept=accept, stop=None)
        state = start_canvas(NOISE, 1, LENGTH, VOCAB, pins=pins([0, 3], [77, 78]))
        # The model is unsure of the pinned positions; counted, they would use the budget up or hold the only place.
        advance(state, reading([1, 2, 3, 4], [0.09, 1.0, 2.0, 0.09]), chosen, NOISE, VOCAB)
        assert state.accepted.tolist() == [True, True, False, True]


def test_the_stop_rule_sees_pins_as_settled() -> None:
    stop = StableAndConfidentRule(stability_threshold=1, confidence_threshold=0.01)
    state = start_canvas(NOISE, 1, LENGTH, VOCAB, pins=pins([1, 2], [77, 78]))
    for argmax in ([1, 2, 3, 4], [1, 5, 6, 4]):
        advance(state, reading(argmax, [0.0, 3.0, 3.0, 0.0]), rules(stop=stop), NOISE, VOCAB)
    assert state.converged and state.settled_step.tolist() == [1] * LENGTH


def test_a_canvas_of_pins_alone_is_its_pins() -> None:
    state = start_canvas(NOISE, 1, LENGTH, VOCAB, pins=pins([0, 1, 2, 3], [5, 6, 7, 8]))
    for accept in (EntropyBoundRule(0.1), ConfidenceRule(0.9)):
        chosen = DiffusionRules(schedule=TemperatureSchedule(num_steps=4), accept=accept, stop=None)
        advance(state, reading([1, 2, 3, 4], [3.0] * 4), chosen, NOISE, VOCAB)
        assert state.tokens.tolist() == state.argmax.tolist() == [5, 6, 7, 8] and state.accepted.all()


def test_what_lies_behind_a_certain_end_is_dropped_and_counts_as_certain() -> None:
    state = start_canvas(NOISE, 1, LENGTH, VOCAB, pins=pins([0, 3], [7, 8]))
    stop = rules(stop=StableAndConfidentRule(stability_threshold=1, confidence_threshold=0.005))
    advance(state, replace(reading([7, 2, 3, 8], [1.0] * 4), num_kept=2), stop, NOISE, VOCAB)
    assert state.argmax.tolist() == [7, 2] and state.num_dropped == 2
    assert state.tokens.shape == state.entropy.shape == state.accepted.shape == state.settled_step.shape == (2,)
    assert state.belief is not None and state.belief.shape == (2, 2)
    assert state.pins is not None and state.pins.positions.tolist() == [0]
    # The free one of four positions has 0.018 nats left: 0.0045 a position, but 0.009 of the two that are still there.
    second = StepReading(
        argmax=torch.tensor([7, 2]), sample=torch.tensor([7, 2]), entropy=torch.tensor([0.0, 0.018]),
        max_logprob=torch.zeros(2), soft_embedding=None,
    )  # fmt: skip
    advance(state, second, stop, NOISE, VOCAB)
    assert state.converged


def test_noise_of_a_shorter_canvas_is_that_of_the_longer_ones_beginning() -> None:
    state, other = start(), start()
    advance(state, replace(reading([1, 2, 3, 4], [9.0] * 4), num_kept=2), rules(), NOISE, VOCAB)
    advance(other, reading([1, 2, 3, 4], [9.0] * 4), rules(), NOISE, VOCAB)
    assert state.tokens.tolist() == other.tokens[:2].tolist()
