"""Goes on training a model on text of your own: a released checkpoint, an embedded model, or a converted one.

    presswork convert ORG/NAME runs/start --canvas 64
    presswork train recipes/adapt.py --set start.model=runs/start --set data.tokenizer=runs/start \\
        --set data.train=train.jsonl --set data.validation=held_out.jsonl
"""

from pathlib import Path

from presswork.training.config import OptimizerConfig, TrainConfig
from presswork.training.packing import PackConfig
from presswork.training.recipe import FromCheckpoint, Recipe
from presswork.training.text_files import TextPlan

MODEL = "runs/start"


def recipe() -> Recipe:
    """Full fine-tuning at a low rate; kept are the weights whose validation loss was lowest."""
    return Recipe(
        start=FromCheckpoint(model=MODEL),
        data=TextPlan(
            train=(Path("train.jsonl"),), validation=(Path("held_out.jsonl"),), tokenizer=MODEL,
            pack=PackConfig(num_rows=4, row_length=1024, canvases_per_row=4),
        ),
        train=TrainConfig(
            num_steps=2000,
            optimizer=OptimizerConfig(peak_rate=1.5e-4, betas=(0.95, 0.99), weight_decay=1e-4, warmup_steps=100),
            recompute=True,
            validate_every=100,
            patience=5,
        ),
    )  # fmt: skip
