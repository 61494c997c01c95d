"""An adapter for the model in the folder that LORA_BASE names, trained on counting on."""

import os

from presswork.models.adapters import LoraConfig
from presswork.training.config import OptimizerConfig, TrainConfig
from presswork.training.recipe import FromCheckpoint, Recipe
from tests.training.recipe_for_tests import CountingPlan


def recipe() -> Recipe:
    return Recipe(
        start=FromCheckpoint(model=os.environ["LORA_BASE"]),
        data=CountingPlan(),
        lora=LoraConfig(rank=4, alpha=8, dropout=0.1, targets=("*_proj",)),
        train=TrainConfig(
            num_steps=50, optimizer=OptimizerConfig(peak_rate=2e-2, warmup_steps=5), dtype="float32", log_every=1,
            checkpoint_every=10, ema_decay=0.8,
        ),
        generation={"max_denoising_steps": 4, "eos_token_id": [1]},
    )  # fmt: skip
