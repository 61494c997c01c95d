"""Uniform corruption: how often, by what, and the limits t = 0 and t = 1."""

import pytest
import torch

from presswork.diffusion.corruption import MIN_TIME, corrupt, draw_times

VOCAB = 50


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_tokens_change_as_often_as_t_says(t: float) -> None:
    x0 = torch.full((20, 5000), 7)
    xt, replaced = corrupt(x0, torch.full((20,), t), VOCAB, generator())
    num, total = int(replaced.sum()), x0.numel()
    assert abs(num - t * total) < 4 * (t * (1 - t) * total) ** 0.5
    assert torch.equal(xt[~replaced], x0[~replaced])
    # A replacement may be the token it replaces.
    counts = torch.bincount(xt[replaced], minlength=VOCAB).double()
    chi_square = float(((counts - num / VOCAB) ** 2 / (num / VOCAB)).sum())
    assert chi_square < VOCAB + 6 * (2 * VOCAB) ** 0.5


def test_no_time_changes_nothing_and_all_time_leaves_noise() -> None:
    x0 = torch.arange(40).view(2, 20)
    xt, replaced = corrupt(x0, torch.tensor([0.0, 1.0]), VOCAB, generator())
    assert torch.equal(xt[0], x0[0]) and not replaced[0].any() and replaced[1].all()


def test_each_example_has_its_own_time() -> None:
    _, replaced = corrupt(torch.zeros(2, 10_000, dtype=torch.int64), torch.tensor([0.2, 0.7]), VOCAB, generator())
    assert replaced.double().mean(1).tolist() == pytest.approx([0.2, 0.7], abs=0.02)


def test_times_are_uniform_above_their_least() -> None:
    times = draw_times(50_000, generator())
    assert float(times.min()) >= MIN_TIME and float(times.max()) <= 1
    assert float(times.mean()) == pytest.approx(0.5, abs=0.006) and float(times.var()) == pytest.approx(
        1 / 12, abs=2e-3
    )


def test_times_in_parts_cover_every_part() -> None:
    times = draw_times(30_000, generator(), parts=3).view(-1, 3)
    assert all(i / 3 <= float(times[:, i].min()) and float(times[:, i].max()) <= (i + 1) / 3 + 1e-4 for i in range(3))
    assert float(times.mean()) == pytest.approx(0.5, abs=0.004)


def test_the_same_generator_gives_the_same_noise() -> None:
    x0, t = torch.zeros(3, 30, dtype=torch.int64), torch.full((3,), 0.5)
    assert torch.equal(corrupt(x0, t, VOCAB, generator(4))[0], corrupt(x0, t, VOCAB, generator(4))[0])
