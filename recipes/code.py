"""The embedded `code` model, first of two runs: Python functions and plain technical English, from nothing on a CPU.

Make the corpus first:

    python recipes/data/code.py --wheels data/wheels --pages data/pages --out data/code
    presswork train recipes/code.py
    presswork train recipes/code_short.py
    python recipes/weights/mean.py runs/code/model runs/code_short/model --out runs/code_mean/model
"""

import shutil
from pathlib import Path

from presswork.config import ModelConfig, RopeConfig, periodic_layers
from presswork.training.config import OptimizerConfig, TrainConfig
from presswork.training.packing import PackConfig, PackedPlan
from presswork.training.recipe import FromScratch, Recipe
from presswork.weights.convert import RELEASED_GENERATION

DATA = Path("data/code")


def model_config() -> ModelConfig:
    """7.2M parameters: 6 layers of width 256, vocabulary 8,192."""
    return ModelConfig(
        vocab_size=8192, hidden_size=256, intermediate_size=512, num_attention_heads=4,
        layers=periodic_layers(6, period=3, sliding=(64, 2), full=(64, 2)), num_experts=4, top_k_experts=2,
        moe_intermediate_size=64, sliding_window=256, canvas_length=64, sliding_rope=RopeConfig(theta=1e4),
        full_rope=RopeConfig(theta=1e5, proportional=True, rotary_fraction=0.5), max_position_embeddings=4096,
    )  # fmt: skip


def write_text_files(folder: Path) -> None:
    """Copy what the corpus script wrote."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(DATA / name, folder / name)


def recipe() -> Recipe:
    """48M tokens."""
    return Recipe(
        start=FromScratch(model=model_config()),
        data=PackedPlan(
            train=DATA / "train.npz",
            validation=DATA / "validation.npz",
            pack=PackConfig(num_rows=16, row_length=384, canvases_per_row=6, span_share=0.3, draft_share=0.3),
        ),
        train=TrainConfig(
            num_steps=7800,
            optimizer=OptimizerConfig(peak_rate=2e-3, algorithm="muon", warmup_steps=200, final_share=0.02),
            ema_decay=0.999,
            compile=True,
            validate_every=500,
        ),
        generation={**RELEASED_GENERATION, "t_min": 0.6, "t_max": 0.9, "eos_token_id": [1], "pad_token_id": 0},
        write_text_files=write_text_files,
    )
