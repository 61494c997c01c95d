"""Carried canvases take the steps that the engine's sampler takes."""

import torch

from presswork.diffusion.accept import EntropyBoundRule
from presswork.diffusion.sampler import DiffusionRules
from presswork.diffusion.schedule import TemperatureSchedule
from presswork.diffusion.stopping import StableAndConfidentRule
from presswork.ops.vocab_head import read_vocab
from presswork.testing import tiny_model
from presswork.training.carry import CarriedCanvases
from presswork.training.loss import decode, encode

NUM, LENGTH, VOCAB = 3, 8, 64


def walks(stop: StableAndConfidentRule | None = None, num_steps: int = 4) -> CarriedCanvases:
    rules = DiffusionRules(
        schedule=TemperatureSchedule(num_steps=num_steps), accept=EntropyBoundRule(9.0), stop=stop
    )  # fmt: skip
    carried = CarriedCanvases(NUM, LENGTH, VOCAB, torch.arange(VOCAB), rules)
    carried.restart(torch.arange(NUM), generator(0))
    return carried


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hidden_of(model, carried: CarriedCanvases) -> torch.Tensor:
    _, kept = encode(model, torch.arange(NUM * 5).view(NUM, 5))
    starts = torch.full((NUM,), 5)
    belief = carried.belief(torch.arange(NUM), model.decoder.embedding)
    return decode(model, carried.tokens, torch.arange(NUM), starts, kept, belief.flatten(0, 1))


def test_one_step_equals_the_samplers_step() -> None:
    model, carried = tiny_model(), walks()
    x0 = torch.zeros(NUM, LENGTH, dtype=torch.int64)
    for step in range(3):
        hidden = hidden_of(model, carried)
        drawn = generator(step + 1)
        uniform = torch.rand(NUM * LENGTH, generator=drawn, dtype=torch.float64)
        fresh = torch.randint(0, VOCAB, (NUM, LENGTH), generator=drawn)
        temperature = TemperatureSchedule(num_steps=4).temperature(step)
        reading = read_vocab(
            hidden, model.head, softcap=30.0, temperature=torch.full((NUM * LENGTH,), temperature), uniform=uniform,
            soft_embedding=True, impl="reference",
        )  # fmt: skip
        over = carried.advance(model, hidden, x0, generator(step + 1), torch.arange(NUM))
        assert not over.any() and carried.steps.tolist() == [step + 1] * NUM
        for i in range(NUM):
            rows = slice(i * LENGTH, (i + 1) * LENGTH)
            accepted = EntropyBoundRule(9.0).accept(reading.entropy[rows], reading.max_logprob[rows])
            assert 0 < int(accepted.sum()) < LENGTH
            assert torch.equal(carried.tokens[i], torch.where(accepted, reading.sample[rows], fresh[i]))
            assert reading.soft_embedding is not None
            belief = carried.belief(torch.tensor([i]), model.decoder.embedding)[0]
            torch.testing.assert_close(belief, reading.soft_embedding[rows], rtol=1e-4, atol=1e-6)


def test_walks_end_out_of_steps_or_certain_and_right() -> None:
    model, carried = tiny_model(), walks(StableAndConfidentRule(confidence_threshold=100.0), num_steps=2)
    hidden = hidden_of(model, carried)
    argmax = read_vocab(hidden, model.head, softcap=30.0, temperature=torch.full((NUM * LENGTH,), 0.8)).argmax
    x0 = argmax.view(NUM, LENGTH).clone()
    x0[1, 3] = (x0[1, 3] + 1) % VOCAB
    over = carried.advance(model, hidden, x0, generator(1), torch.arange(NUM))
    assert over.tolist() == [True, False, True]
    over = carried.advance(model, hidden_of(model, carried), x0, generator(2), torch.arange(NUM))
    assert over.all()


def test_a_restart_is_noise_without_belief_and_leaves_the_others() -> None:
    model, carried = tiny_model(), walks()
    carried.advance(model, hidden_of(model, carried), torch.zeros(NUM, LENGTH).long(), generator(1), torch.arange(NUM))
    before = {name: value.clone() for name, value in carried.state().items()}
    carried.restart(torch.tensor([1]), generator(2))
    assert (carried.probabilities[1] == 0).all() and carried.steps.tolist() == [1, 0, 1]
    assert not torch.equal(carried.tokens[1], before["tokens"][1])
    for i in (0, 2):
        assert all(torch.equal(value[i], before[name][i]) for name, value in carried.state().items())


def test_chosen_walks_move_alone() -> None:
    model, carried = tiny_model(), walks()
    before = {name: value.clone() for name, value in carried.state().items()}
    chosen = torch.tensor([2])
    hidden = hidden_of(model, carried)[2 * LENGTH :]
    carried.advance(model, hidden, torch.zeros(1, LENGTH, dtype=torch.int64), generator(1), chosen)
    assert carried.steps.tolist() == [0, 0, 1]
    assert all(torch.equal(value[:2], before[name][:2]) for name, value in carried.state().items())


def test_belief_in_tokens_outside_the_alphabet_is_dropped() -> None:
    model, carried = tiny_model(), walks()
    carried.advance(model, hidden_of(model, carried), torch.zeros(NUM, LENGTH).long(), generator(1), torch.arange(NUM))
    some = torch.tensor([5, 9, 3])
    listed = CarriedCanvases(NUM, LENGTH, VOCAB, some, carried._rules)
    listed.restart(torch.arange(NUM), generator(0))
    listed.advance(model, hidden_of(model, listed), torch.zeros(NUM, LENGTH).long(), generator(1), torch.arange(NUM))
    torch.testing.assert_close(listed.probabilities, carried.probabilities[:, :, some])
