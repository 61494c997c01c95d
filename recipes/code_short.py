"""The embedded `code` model, second of two runs: short canvases; see recipes/code.py."""

from dataclasses import replace
from pathlib import Path

from presswork.training.config import OptimizerConfig
from presswork.training.packing import PackedPlan
from presswork.training.recipe import FromCheckpoint, Recipe, load_recipe

FIRST = load_recipe(Path(__file__).with_name("code.py"))


def recipe() -> Recipe:
    """2.5M tokens more."""
    assert isinstance(FIRST.data, PackedPlan)
    pack = replace(FIRST.data.pack, canvas_length=16, canvases_per_row=12, span_share=0.2, seed=77)
    return replace(
        FIRST,
        start=FromCheckpoint(model="runs/code/model"),
        data=replace(FIRST.data, pack=pack),
        train=replace(
            FIRST.train,
            num_steps=400,
            optimizer=OptimizerConfig(peak_rate=7e-4, algorithm="muon", warmup_steps=40, final_share=0.05),
            ema_decay=0.98,
            validate_every=100,
        ),
    )
