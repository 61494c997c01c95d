"""The embedded `sudoku` model, first of two runs: from nothing on a CPU, on uniform corruption.

Both runs, 35 and 75 minutes on two cores:

    presswork train recipes/sudoku.py
    presswork train recipes/sudoku_walks.py
"""

from presswork.engine.engine import Engine
from presswork.tasks.sudoku.encoding import EOS_ID
from presswork.tasks.sudoku.evaluate import evaluate
from presswork.tasks.sudoku.generate import Clues
from presswork.tasks.sudoku.tokenizer import build_tokenizer
from presswork.tasks.sudoku.training import BatchConfig, PuzzlePlan, initialise, model_config
from presswork.training.config import OptimizerConfig, TrainConfig
from presswork.training.recipe import FromScratch, Recipe

# Chosen on 192 minimal puzzles of seed 4321; see docs/decisions/0009-walks.md.
GENERATION = {
    "eos_token_id": [EOS_ID],
    "pad_token_id": 0,
    "max_denoising_steps": 28,
    "entropy_bound": 0.5,
    "t_min": 0.5,
    "t_max": 0.9,
    "stability_threshold": 1,
    "confidence_threshold": 0.03,
}


def solve_rates(engine: Engine) -> dict[str, float]:
    """Of 64 fresh puzzles of either kind."""
    figures = {}
    for name, clues in (("solved_30_45", Clues((30, 45))), ("solved_minimal", Clues())):
        report = evaluate(engine, 64, clues, 998, with_ar=False)
        figures |= {name: report["solved"], f"steps_{name[7:]}": report["mean_steps"]}
    return figures


def recipe() -> Recipe:
    """333,000 canvases of fresh symmetries of 120,000 puzzles, from many clues to few."""
    return Recipe(
        start=FromScratch(model=model_config(), initialise=initialise),
        data=PuzzlePlan(batch=BatchConfig(curriculum_steps=1040)),
        train=TrainConfig(
            num_steps=2600, optimizer=OptimizerConfig(peak_rate=1.5e-3), ema_decay=0.998, compile=True,
            checkpoint_every=100,
        ),
        generation=GENERATION,
        evaluate=solve_rates,
        evaluate_every=400,
        write_text_files=build_tokenizer,
    )  # fmt: skip
