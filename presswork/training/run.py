"""A recipe in a folder: opened, resumed, exported."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from presswork.errors import ConfigError, TrainingError
from presswork.models.transformer import Transformer
from presswork.text.tokenizer import TOKENIZER_FILES
from presswork.training.checkpoint import STATE_FILE
from presswork.training.distributed import ALONE, Ranks
from presswork.training.recipe import FromCheckpoint, Recipe, ValidatedPlan, as_json, describe
from presswork.training.trainer import Trainer
from presswork.weights.config_files import write_generation_config
from presswork.weights.hub import resolve
from presswork.weights.save import save_model

RECIPE_FILE = "recipe.json"
MODEL_FOLDER = "model"

logger = logging.getLogger(__name__)


def open_run(recipe: Recipe, folder: Path, ranks: Ranks = ALONE) -> Trainer:
    """The trainer of a recipe in a folder, at the step the folder is at; the recipe is written beside its state.

    Args:
        ranks: the processes of the run, which share the folder.

    Raises:
        ConfigError: the folder holds a run of another recipe.
        DataError: there is nothing to train on.
    """
    _refuse_another(recipe, folder)
    model = recipe.start.build()
    validation = recipe.data.validate_on(model) if isinstance(recipe.data, ValidatedPlan) else ()
    trainer = Trainer(model, recipe.data.open(model), recipe.train, folder, validation, ranks)
    ranks.first_does(lambda: _remember(recipe, folder))
    return trainer


def _refuse_another(recipe: Recipe, folder: Path) -> None:
    """Raise where the folder's state is that of a recipe with other values."""
    file = folder / RECIPE_FILE
    if not file.exists() or not (folder / STATE_FILE).exists():
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {file}: {error}; remove it to go on with the run there") from error
    # Over how many processes a run goes may change from one start to the next.
    changes = [line for line in _differences(before, describe(recipe)) if not line.startswith("train.expert_parallel ")]
    if changes:
        raise ConfigError(
            f"{folder} holds a run of another recipe: {'; '.join(changes[:3])}; go on with that one, or train in "
            "another folder"
        )


def _remember(recipe: Recipe, folder: Path) -> None:
    file = folder / RECIPE_FILE
    partial = file.with_suffix(".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_text(as_json(recipe) + "\n", encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise TrainingError(f"cannot write {file}: {error}") from error


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        names = [*before, *(name for name in now if name not in before)]
        parts = [_differences(before.get(name), now.get(name), f"{path}.{name}" if path else name) for name in names]
        return [difference for part in parts for difference in part]
    return [] if before == now else [f"{path} was {before}, is {now}"]


def averaged_model(trainer: Trainer) -> Transformer | None:
    """A copy of the model with the averaged weights, in bfloat16, for generation.

    Of several processes the first has it, the others None; all must call it. One tensor at a time is whole on the
    others.
    """
    # The trainer's own may be compiled, so its tensors are taken and not the module.
    with torch.no_grad():
        layout, average = trainer.layout, trainer.averaged_weights()
        model, state = None, {}
        if trainer.ranks.is_first:
            model = Transformer(trainer.model.config).requires_grad_(False).eval().to(torch.bfloat16)
            state = model.state_dict()
        for name, tensor in trainer.model.named_buffers():
            if model is not None:
                state[name].copy_(tensor)
        for name, tensor in trainer.model.named_parameters():
            whole = layout.gather(name, average.get(name, layout.local(tensor)))
            if model is not None:
                state[name].copy_(whole)
    return model


def export(trainer: Trainer, recipe: Recipe, folder: Path | None = None) -> Path:
    """Write the averaged weights with tokenizer, template and generation defaults; returns the folder.

    Of several processes the first writes; all must call it.

    Args:
        folder: where; None is `model` in the run's folder.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    target = folder or trainer.folder / MODEL_FOLDER
    model = averaged_model(trainer)
    if model is not None:
        _write_model(model, recipe, target)
    return target


def _write_model(model: Transformer, recipe: Recipe, target: Path) -> None:
    save_model(model, target)
    write_generation_config(target, dict(recipe.generation))
    if recipe.write_text_files is not None:
        recipe.write_text_files(target)
    elif isinstance(recipe.start, FromCheckpoint):
        source = resolve(recipe.start.model)
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
