"""Trains a small adapter on text of your own, beside weights that stay as they are.

    presswork train recipes/lora.py --set start.model=FOLDER --set data.tokenizer=FOLDER \\
        --set data.train=train.jsonl --set data.validation=held_out.jsonl
    presswork run "..." --model FOLDER --adapter runs/lora/adapter
    presswork merge FOLDER runs/lora/adapter runs/merged
"""

from dataclasses import replace
from pathlib import Path

from presswork.models.adapters import LoraConfig
from presswork.training.recipe import Recipe, load_recipe

WHOLE = load_recipe(Path(__file__).with_name("adapt.py"))


def recipe() -> Recipe:
    """Rank 8 on every product but the router's, with the figures of Google's Sudoku run; see docs/training.md."""
    return replace(WHOLE, lora=LoraConfig(rank=8, alpha=16, targets=("*_proj",)))
