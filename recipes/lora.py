"""Trains a small adapter on text of your own, beside weights that stay as they are.

    presswork train recipes/lora.py --set start.model=FOLDER --set data.tokenizer=FOLDER \\
        --set data.train=train.jsonl --set data.validation=held_out.jsonl
    presswork run "..." --model FOLDER --adapter runs/lora/adapter
    presswork merge FOLDER runs/lora/adapter runs/merged
"""

from pathlib import Path

from presswork.models.adapters import LoraConfig
from presswork.training.config import OptimizerConfig, TrainConfig
from presswork.training.packing import PackConfig
from presswork.training.recipe import FromCheckpoint, Recipe
from presswork.training.text_files import TextPlan

MODEL = "runs/start"


def recipe() -> Recipe:
    """Rank 8 on every product but the router's, with the figures of Google's Sudoku run; see docs/training.md."""
    return Recipe(
        start=FromCheckpoint(model=MODEL),
        data=TextPlan(
            train=(Path("train.jsonl"),), validation=(Path("held_out.jsonl"),), tokenizer=MODEL,
            pack=PackConfig(num_rows=4, row_length=1024, canvases_per_row=4),
        ),
        lora=LoraConfig(rank=8, alpha=16, targets=("*_proj",)),
        train=TrainConfig(
            num_steps=2000,
            optimizer=OptimizerConfig(peak_rate=1.5e-4, betas=(0.95, 0.99), weight_decay=1e-4, warmup_steps=100),
            recompute=True,
            validate_every=100,
            patience=5,
        ),
    )  # fmt: skip
