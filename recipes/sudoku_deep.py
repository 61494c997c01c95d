"""A deeper `sudoku` model: twice the layers of the embedded one, on longer walks; see docs/decisions/0020.

python recipes/weights/deepen.py runs/sudoku_walks/model --out runs/sudoku_twice/model
presswork train recipes/sudoku_deep.py
"""

from dataclasses import replace
from pathlib import Path

from presswork.tasks.sudoku.training import BatchConfig, WalkConfig, WalkPlan
from presswork.training.config import OptimizerConfig
from presswork.training.recipe import FromCheckpoint, Recipe, load_recipe

SECOND = load_recipe(Path(__file__).with_name("sudoku_walks.py"))


def recipe() -> Recipe:
    """Starts from what recipes/weights/deepen.py makes of the second run."""
    optimizer = OptimizerConfig(peak_rate=1e-3, algorithm="muon", warmup_steps=50, final_share=0.02)
    return replace(
        SECOND,
        start=FromCheckpoint(model="runs/sudoku_twice/model"),
        data=WalkPlan(
            batch=BatchConfig(curriculum_steps=0, minimal_share=0.85, num_held=1, causal_every=8),
            walk=WalkConfig(num_steps=28, t_min=0.5, t_max=0.9, entropy_bound=0.5, visits=0),
        ),
        train=replace(SECOND.train, num_steps=2000, optimizer=optimizer),
        evaluate_every=900,
    )
