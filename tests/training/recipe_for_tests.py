"""A recipe that trains in seconds: counting on from the prompt."""

from dataclasses import dataclass
from pathlib import Path

from presswork.engine.engine import Engine
from presswork.models.transformer import Transformer
from presswork.tasks.molecules.smiles import build_tokenizer
from presswork.testing import tiny_config
from presswork.training.config import OptimizerConfig, TrainConfig
from presswork.training.loss import Batch
from presswork.training.recipe import FromScratch, Recipe
from presswork.training.trainer import BatchSource
from tests.training.test_trainer import counting


@dataclass(frozen=True, slots=True, kw_only=True)
class CountingPlan:
    """Batches of `counting`, from a first one on."""

    first: int = 0

    def open(self, model: Transformer) -> BatchSource:
        return lambda step: counting(self.first + step)

    def validate_on(self, model: Transformer) -> list[Batch]:
        return [counting(10_000)]


def recipe() -> Recipe:
    return Recipe(
        start=FromScratch(model=tiny_config()),
        data=CountingPlan(),
        train=TrainConfig(
            num_steps=4, optimizer=OptimizerConfig(peak_rate=3e-3, warmup_steps=2), dtype="float32", log_every=1,
            checkpoint_every=2, validate_every=2,
        ),
        generation={"max_denoising_steps": 4, "eos_token_id": [1]},
        evaluate=length_written,
        evaluate_every=2,
        write_text_files=write_text_files,
    )  # fmt: skip


def length_written(engine: Engine) -> dict[str, float]:
    """How much the model has to say."""
    return {"length": float(len(engine.generate(prompt_token_ids=[3], max_tokens=5, ignore_eos=True).token_ids))}


def write_text_files(folder: Path) -> None:
    """Any tokenizer does."""
    build_tokenizer(folder)
