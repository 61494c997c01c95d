"""The embedded `sudoku` model, second of two runs: canvases that walk through the sampler; see recipes/sudoku.py."""

from pathlib import Path

from presswork.tasks.sudoku.tokenizer import build_tokenizer
from presswork.tasks.sudoku.training import BatchConfig, WalkPlan
from presswork.training.config import OptimizerConfig, TrainConfig
from presswork.training.recipe import FromCheckpoint, Recipe, load_recipe

FIRST = load_recipe(Path(__file__).with_name("sudoku.py"))


def recipe() -> Recipe:
    """563,000 canvases."""
    return Recipe(
        start=FromCheckpoint(model="runs/sudoku/model"),
        data=WalkPlan(batch=BatchConfig(curriculum_steps=0, minimal_share=0.7)),
        train=TrainConfig(
            num_steps=4400, optimizer=OptimizerConfig(peak_rate=1e-3), ema_decay=0.998, compile=True,
            checkpoint_every=100,
        ),
        generation=FIRST.generation,
        evaluate=FIRST.evaluate,
        evaluate_every=FIRST.evaluate_every,
        write_text_files=build_tokenizer,
    )  # fmt: skip
