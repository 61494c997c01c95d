"""Batches of the Sudoku recipe: what is in them, that they repeat, and that walks stay on their boards."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from presswork.engine.loader import load
from presswork.models.transformer import Transformer
from presswork.tasks.sudoku.encoding import CANVAS_LENGTH, PROMPT_LENGTH, encode_prompts, encode_solutions
from presswork.tasks.sudoku.evaluate import is_solved
from presswork.tasks.sudoku.symmetry import draw_symmetries
from presswork.tasks.sudoku.training import (
    BatchConfig,
    PuzzleBatches,
    PuzzleWalks,
    WalkConfig,
    clue_places,
    initialise,
    model_config,
)
from presswork.training.config import OptimizerConfig, TrainConfig
from presswork.training.loss import Batch
from presswork.training.recipe import load_recipe, override
from presswork.training.run import export, open_run
from presswork.training.trainer import Trainer
from presswork.weights.hub import ASSETS

RECIPES = Path(__file__).parents[2] / "recipes"
CONFIG = BatchConfig(num_puzzles=4, canvases_per_puzzle=3, curriculum_steps=10, minimal_share=0.5)
WALK = WalkConfig(num_boards=8, visits=3)


@pytest.fixture(scope="module")
def batches() -> PuzzleBatches:
    return PuzzleBatches(300, 1, CONFIG)


@pytest.fixture(scope="module")
def model() -> Transformer:
    made = Transformer(model_config())
    initialise(made)
    return made.requires_grad_(False)


def clues(batch: Batch) -> np.ndarray:
    cells = batch.ids[:, 1:91].view(-1, 9, 10)[:, :, :9].flatten(1) - 14
    return (cells % 10 > 0).sum(1).numpy()


def assert_equal(found: Batch, expected: Batch) -> None:
    for field in fields(Batch):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        assert a is b or torch.equal(a, b), field.name


def test_the_model_is_as_large_as_its_card_says(model) -> None:
    assert sum(p.numel() for p in model.parameters()) == 1_771_160


def test_a_batch_is_a_function_of_its_step(batches) -> None:
    assert_equal(PuzzleBatches(300, 1, CONFIG)(7), batches(7))
    assert not torch.equal(batches(8).x0, batches(7).x0)


def test_prompts_belong_to_their_canvases_and_noise_covers_all_times(batches) -> None:
    batch = batches(20)
    assert batch.ids.shape[1] == PROMPT_LENGTH + CANVAS_LENGTH and (batch.starts == PROMPT_LENGTH).all()
    assert torch.equal(batch.ids[batch.examples, PROMPT_LENGTH:], batch.x0)
    counted = batch.targets != -100
    assert torch.equal(counted.nonzero()[:, 1].unique(), torch.arange(PROMPT_LENGTH - 1, 181))
    assert torch.equal(batch.targets[:, PROMPT_LENGTH - 1 : -1], batch.ids[:, PROMPT_LENGTH:])
    assert batch.self_conditioned.shape[0] == 6 == batch.self_conditioned.unique().shape[0]
    changed = (batch.xt != batch.x0).double().mean(1).view(4, 3)
    assert (changed[:, 0] < 0.5).all() and (changed[:, 2] > 0.5).all()


def test_the_causal_loss_comes_every_few_steps(batches) -> None:
    assert (batches(21).targets == -100).all() and batches(21).ids.shape[1] == PROMPT_LENGTH


def test_the_curriculum_ends_at_its_share_of_minimal_puzzles(batches) -> None:
    early = clues(PuzzleBatches(300, 1, replace(CONFIG, num_puzzles=64))(0))
    late = np.concatenate([clues(batches(step)) for step in range(100, 160)])
    # Puzzles that are not minimal have 24 to 55 clues.
    assert (early > 26).mean() > 0.8 and 0.3 < (late > 26).mean() < 0.6 and late.max() <= 55


def test_canvases_that_hold_their_clues_have_them_clean() -> None:
    config = replace(CONFIG, num_held=2)
    batch = PuzzleBatches(64, 5, config)(20)
    prompt = batch.ids[:, 1:91].view(-1, 9, 10)[:, :, :9].flatten(1) - 14
    places = clue_places((prompt % 10).numpy().astype(np.uint8)).repeat_interleave(3, 0)
    is_right = (batch.xt == batch.x0) | ~places
    assert is_right.view(4, 3, -1)[:, 1:].all() and not is_right.view(4, 3, -1)[:, 0].all()


class TestWalks:
    @pytest.fixture
    def walks(self, batches, model) -> PuzzleWalks:
        return PuzzleWalks(batches, model, WALK)

    def hidden(self, batch: Batch, seed: int = 0) -> torch.Tensor:
        return torch.randn(batch.xt.numel(), 128, generator=torch.Generator().manual_seed(seed))

    def run(self, walks: PuzzleWalks, model: Transformer, steps: range) -> list[Batch]:
        drawn = []
        for step in steps:
            batch = walks(step)
            walks.observe(step, batch, self.hidden(batch, step), model)
            drawn.append(batch)
        return drawn

    def test_a_third_of_the_canvases_is_corrupted_and_the_rest_walks(self, walks, model) -> None:
        first, _, again = self.run(walks, model, range(3))
        assert (first.belief == 0).all()
        walking = torch.arange(12) % 3 > 0
        assert (again.belief[walking].abs().sum((1, 2)) > 0).any() and (again.belief[~walking] == 0).all()
        assert not walking[again.self_conditioned].any() and again.self_conditioned.shape[0] == 2

    def test_prompts_fit_solutions_after_any_number_of_symmetries(self, walks, model) -> None:
        for batch in self.run(walks, model, range(12)):
            prompt = batch.ids[:, 1:91].view(-1, 9, 10)[:, :, :9].flatten(1) - 14
            digit = (prompt % 10).numpy().astype(np.uint8)
            x0 = (batch.x0[::3].view(-1, 9, 10)[:, :, :9].flatten(1) - 4).numpy().astype(np.uint8)
            assert all(is_solved(p, s) for p, s in zip(digit, x0, strict=True))
            assert torch.equal(torch.from_numpy(encode_prompts(digit)), batch.ids[:, :PROMPT_LENGTH])

    def test_walks_that_hold_their_clues_are_certain_of_them_behind_their_first_step(self, model) -> None:
        walks = PuzzleWalks(PuzzleBatches(64, 5, replace(CONFIG, num_held=1)), model, WALK)
        embedding, told = model.decoder.embedding, 0
        for batch in self.run(walks, model, range(6)):
            prompt = batch.ids[:, 1:91].view(-1, 9, 10)[:, :, :9].flatten(1) - 14
            places = clue_places((prompt % 10).numpy().astype(np.uint8))
            held, other = batch.xt[2::3], batch.xt[1::3]
            assert torch.equal(held[places], batch.x0[2::3][places])
            assert not torch.equal(other[places], batch.x0[1::3][places])
            for canvas, where, x0 in zip(batch.belief[2::3], places, batch.x0[2::3], strict=True):
                if canvas.any():
                    told += 1
                    assert torch.allclose(canvas[where], embedding[x0[where]].to(canvas.dtype), atol=1e-6)
        assert told

    def test_drafts_and_beliefs_move_with_their_board(self, walks) -> None:
        walks(0)
        spelled = torch.from_numpy(encode_solutions(walks._solutions[:4])).repeat_interleave(2, 0)
        walks._walks.tokens[:8] = spelled
        walks._walks.probabilities[:8] = (spelled[:, :, None] == walks._walks._alphabet).float()
        before = walks._puzzles[:4].copy()
        walks._turn_over(slice(0, 4), torch.arange(8), draw_symmetries(4, np.random.default_rng(5)))
        moved = torch.from_numpy(encode_solutions(walks._solutions[:4])).repeat_interleave(2, 0)
        assert (walks._puzzles[:4] != before).any(1).all()
        assert torch.equal(walks._walks.tokens[:8], moved)
        assert torch.equal(walks._walks.probabilities[:8], (moved[:, :, None] == walks._walks._alphabet).float())

    def boards(self, walks: PuzzleWalks) -> set[bytes]:
        """The store, told apart by what survives every symmetry: sorted clue counts of rows and columns."""
        grids = (walks._puzzles.reshape(-1, 9, 9) > 0).astype(np.uint8)
        sums = [np.sort(np.stack([g.sum(0), g.sum(1)]), axis=1) for g in grids]
        return {np.sort(s, axis=0).tobytes() for s in sums}

    def test_boards_leave_after_their_visits(self, walks, model) -> None:
        seen = []
        for step in range(0, 12, 2):
            self.run(walks, model, range(step, step + 2))
            seen.append(self.boards(walks))
        assert seen[0] & seen[1] and not seen[0] & seen[4]

    def test_boards_stay_until_their_walks_are_over(self, batches, model) -> None:
        # Two turns of four boards: each is visited in every second step, and no walk solves anything in three.
        walks = PuzzleWalks(batches, model, replace(WALK, visits=0, num_steps=3))
        seen = []
        for step in range(0, 14, 2):
            self.run(walks, model, range(step, step + 2))
            seen.append(self.boards(walks))
        assert seen[0] == seen[1] == seen[2] and seen[3] == seen[4] == seen[5] and not seen[2] & seen[3]
        assert seen[6] != seen[5]

    @pytest.mark.parametrize("walk", [WALK, replace(WALK, visits=0, num_steps=2)])
    def test_a_resumed_source_goes_on_alike(self, batches, model, walk) -> None:
        whole = PuzzleWalks(batches, model, walk)
        expected = self.run(whole, model, range(6))
        first = PuzzleWalks(batches, model, walk)
        self.run(first, model, range(3))
        second = PuzzleWalks(batches, model, walk)
        second.restore(first.state())
        for found, wanted in zip(self.run(second, model, range(3, 6)), expected[3:], strict=True):
            assert_equal(found, wanted)


@pytest.mark.slow
def test_training_on_walks_resumes_to_the_bit(batches, tmp_path) -> None:
    def trainer(folder: str) -> Trainer:
        model = Transformer(model_config())
        initialise(model)
        optimizer = OptimizerConfig(peak_rate=1e-3, warmup_steps=2)
        config = TrainConfig(num_steps=4, optimizer=optimizer, checkpoint_every=2, log_every=1)
        return Trainer(model, PuzzleWalks(batches, model, WALK), config, tmp_path / folder)

    expected = [r.loss for r in trainer("whole").run()]
    found = [r.loss for r in trainer("parts").run(until=2)] + [r.loss for r in trainer("parts").run()]
    assert found == expected


def deepen(folder: Path, out: Path, *flags: str) -> None:
    command = [sys.executable, str(RECIPES / "weights" / "deepen.py"), str(folder), "--out", str(out), *flags]
    subprocess.run(command, check=True, timeout=300)


@pytest.mark.slow
def test_copies_without_weight_change_nothing(tmp_path) -> None:
    deepen(ASSETS / "sudoku", tmp_path / "same", "--scale", "0")
    deepen(ASSETS / "sudoku", tmp_path / "near")
    prompt = encode_prompts(np.zeros((1, 81), np.uint8))[0].tolist()
    draft = torch.randint(4, 14, (CANVAS_LENGTH,), generator=torch.Generator().manual_seed(3)).tolist()
    shallow, same, near = (load(folder) for folder in (ASSETS / "sudoku", tmp_path / "same", tmp_path / "near"))
    assert near.model.config.num_layers == same.model.config.num_layers == 2 * shallow.model.config.num_layers
    expected, found, close = (engine.canvas_logits(prompt, draft) for engine in (shallow, same, near))
    assert torch.equal(found, expected)
    assert 0 < (close - expected).abs().mean() < 0.2 * expected.abs().mean()


@pytest.mark.slow
def test_the_recipes_run_end_to_end(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["train.compile=false", "data.pool_size=50", "train.log_every=1", "train.num_steps=2"]
    for name in ("sudoku", "sudoku_walks", "sudoku_deep"):
        made = override(load_recipe(RECIPES / f"{name}.py"), settings)
        if name == "sudoku_deep":
            deepen(Path("runs/sudoku_walks/model"), Path("runs/sudoku_twice/model"))
        # Each starts from what the one before wrote there.
        trainer = open_run(made, Path("runs") / name)
        assert [report.step for report in trainer.run()] == [0, 1]
        folder = export(trainer, made)
    reply = load(folder).generate("0" * 20 + "1" + "0" * 60, max_denoising_steps=2, max_tokens=CANVAS_LENGTH)
    assert 1 <= len(reply.token_ids) <= CANVAS_LENGTH and reply.stats.num_denoise_steps == 2
