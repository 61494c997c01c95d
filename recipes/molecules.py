"""A `molecules` model, from nothing on a CPU: SMILES from MOSES.

The set comes out of a wheel:

    pip download --no-deps molsets==0.3.1 -d data
    presswork train recipes/molecules.py
"""

from presswork.config import ModelConfig, RopeConfig, periodic_layers
from presswork.engine.engine import Engine
from presswork.tasks.molecules.evaluate import evaluate
from presswork.tasks.molecules.smiles import EOS_ID, VOCAB_SIZE, build_tokenizer
from presswork.tasks.molecules.training import MosesPlan
from presswork.training.config import OptimizerConfig, TrainConfig
from presswork.training.packing import PackConfig
from presswork.training.recipe import FromScratch, Recipe


def model_config() -> ModelConfig:
    """2.6M parameters: 6 layers of width 160; a canvas holds any molecule of the set."""
    return ModelConfig(
        vocab_size=VOCAB_SIZE, hidden_size=160, intermediate_size=384, num_attention_heads=5,
        layers=periodic_layers(6, period=6, sliding=(32, 5), full=(32, 5)), num_experts=4, top_k_experts=2,
        moe_intermediate_size=64, sliding_window=128, canvas_length=64, sliding_rope=RopeConfig(theta=1e3),
        max_position_embeddings=256,
    )  # fmt: skip


def validity(engine: Engine) -> dict[str, float]:
    """Of 256 molecules."""
    report = evaluate(engine, 256, 0)
    return {"valid": report["valid"], "unique": report["unique@1k"], "steps": report["mean_steps"]}


def recipe() -> Recipe:
    """Less than half of the set, once."""
    return Recipe(
        start=FromScratch(model=model_config()),
        data=MosesPlan(
            pack=PackConfig(
                num_rows=32,
                row_length=128,
                canvases_per_row=4,
                span_share=0.15,
                self_conditioned_share=0.75,
                draft_share=0.6,
            )
        ),
        train=TrainConfig(
            num_steps=6000,
            optimizer=OptimizerConfig(peak_rate=2e-3, algorithm="muon", warmup_steps=100, final_share=0.02),
            encoder_weight=0.5,
            ema_decay=0.998,
            compile=True,
            validate_every=500,
        ),
        generation={
            "eos_token_id": [EOS_ID],
            "pad_token_id": 0,
            "max_denoising_steps": 64,
            "entropy_bound": 0.1,
            "t_min": 0.8,
            "t_max": 0.8,
            "stability_threshold": 1,
            "confidence_threshold": 0.01,
        },
        evaluate=validity,
        evaluate_every=500,
        write_text_files=build_tokenizer,
    )
