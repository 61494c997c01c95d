"""A deeper `sudoku` model: twice the layers of the embedded one, on longer walks; see docs/decisions/0020.

python recipes/weights/deepen.py runs/sudoku_walks/model --out runs/sudoku_twice/model
presswork train recipes/sudoku_deep.py
"""

from pathlib import Path

from presswork.tasks.sudoku.tokenizer import build_tokenizer
from presswork.tasks.sudoku.training import BatchConfig, WalkConfig, WalkPlan
from presswork.training.config import OptimizerConfig, TrainConfig
from presswork.training.recipe import FromCheckpoint, Recipe, load_recipe

FIRST = load_recipe(Path(__file__).with_name("sudoku.py"))


def recipe() -> Recipe:
    """Starts from what recipes/weights/deepen.py makes of the second run."""
    return Recipe(
        start=FromCheckpoint(model="runs/sudoku_twice/model"),
        data=WalkPlan(
            batch=BatchConfig(curriculum_steps=0, minimal_share=0.85, num_held=1, causal_every=8),
            walk=WalkConfig(num_steps=28, t_min=0.5, t_max=0.9, entropy_bound=0.5, visits=0),
        ),
        train=TrainConfig(
            num_steps=2000,
            optimizer=OptimizerConfig(peak_rate=1e-3, algorithm="muon", warmup_steps=50, final_share=0.02),
            ema_decay=0.998,
            compile=True,
            checkpoint_every=100,
        ),
        generation=FIRST.generation,
        evaluate=FIRST.evaluate,
        evaluate_every=900,
        write_text_files=build_tokenizer,
    )
