"""A recipe in a folder: opened, resumed, exported."""

import copy
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from presswork.errors import ConfigError, TrainingError
from presswork.models.adapters import Adapter
from presswork.models.transformer import Transformer
from presswork.text.lock import kept_from_others
from presswork.text.tokenizer import tokenizer_files
from presswork.training.checkpoint import STATE_FILE
from presswork.training.distributed import ALONE, Ranks
from presswork.training.inputs import contents_of, differing
from presswork.training.recipe import FromCheckpoint, Recipe, ValidatedPlan, as_json, describe
from presswork.training.trainer import Trainer
from presswork.weights.config_files import (
    read_end_ids,
    read_generation_config,
    write_generation_config,
)
from presswork.weights.hub import resolve
from presswork.weights.lora import merge_adapter, new_adapter
from presswork.weights.peft_files import save_adapter
from presswork.weights.save import save_model

RECIPE_FILE = "recipe.json"
INPUTS_FILE = "inputs.json"
LOCK_FILE = "lock"
MODEL_FOLDER = "model"
ADAPTER_FOLDER = "adapter"

_ADAPTER = "adapter."
# Over how many processes a run goes, and what the finished model is saved with.
_MAY_CHANGE = ("train.expert_parallel ", "generation.")

logger = logging.getLogger(__name__)


@contextmanager
def kept_run(folder: Path, ranks: Ranks = ALONE) -> Iterator[None]:
    """A run's folder, made and held, so that no second run writes to it. Raises DataError where another does."""
    with ExitStack() as held:
        ranks.first_does(lambda: _hold(folder, held))
        yield


def _hold(folder: Path, held: ExitStack) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot make {folder}: {error.strerror or error}; give another folder") from error
    held.enter_context(kept_from_others(folder / LOCK_FILE, by="training run", instead="another folder"))


def open_run(recipe: Recipe, folder: Path, ranks: Ranks = ALONE) -> Trainer:
    """The trainer of a recipe in a folder, at the step the folder is at; the recipe is written beside its state.

    Args:
        ranks: the processes of the run, which share the folder.

    Raises:
        ConfigError: the folder holds a run of another recipe or of other data.
        DataError: there is nothing to train on.
    """
    contents: dict[str, str] = {}
    ranks.first_does(lambda: contents.update(_refuse_another(recipe, folder)))
    model = recipe.start.build()
    if recipe.lora is None and not recipe.train.diffusion_weight and model.own_encoder is not None:
        raise ConfigError(
            "train.diffusion_weight is 0, and the model's two modes do not share their weights, so that it cannot be "
            "saved as an autoregressive one; start from a tied model, or train the canvases too"
        )
    if recipe.lora is not None:
        model.requires_grad_(False)
        model.adapter = new_adapter(model.config, recipe.lora)
    validation = recipe.data.validate_on(model) if isinstance(recipe.data, ValidatedPlan) else ()
    trainer = Trainer(model, recipe.data.open(model), recipe.train, folder, validation, ranks)
    ranks.first_does(lambda: _remember(recipe, contents, folder))
    return trainer


def _refuse_another(recipe: Recipe, folder: Path) -> dict[str, str]:
    """Raise where the folder's state is that of a recipe with other values or other data; returns the data's sums."""
    contents = contents_of(recipe)
    if not (folder / STATE_FILE).exists():
        return contents
    before = _remembered(folder / RECIPE_FILE, describe(recipe))
    changes = [line for line in _differences(before, describe(recipe)) if not line.startswith(_MAY_CHANGE)]
    if changes:
        raise ConfigError(
            f"{folder} holds a run of another recipe: {'; '.join(changes[:3])}; go on with that one, or train in "
            "another folder"
        )
    others = differing(_remembered(folder / INPUTS_FILE, contents), contents)
    if others:
        raise ConfigError(
            f"{folder} holds a run that read other contents of {', '.join(others[:3])}; put them back, or train in "
            "another folder"
        )
    return contents


def _remembered(file: Path, default: Any) -> Any:
    if not file.exists():
        return default
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {file}: {error}; remove it to go on with the run there") from error


def _remember(recipe: Recipe, contents: Mapping[str, str], folder: Path) -> None:
    for name, text in ((RECIPE_FILE, as_json(recipe)), (INPUTS_FILE, json.dumps(contents, indent=2))):
        file = folder / name
        partial = file.with_suffix(".partial")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(text + "\n", encoding="utf-8")
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
    """A copy of the model with the averaged weights, in bfloat16, for generation; an adapter is merged into it.

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
            if name.startswith(_ADAPTER):
                continue
            whole = layout.gather(name, average.get(name, layout.local(tensor)))
            if model is not None:
                state[name].copy_(whole)
        adapter = averaged_adapter(trainer)
        if model is not None and adapter is not None:
            merge_adapter(model, adapter)
    return model


def averaged_adapter(trainer: Trainer) -> Adapter | None:
    """A float32 copy of the adapter that is trained, with the averaged factors; None where the weights are trained.

    Of several processes all have it; all must call it.
    """
    if trainer.model.adapter is None:
        return None
    adapter = copy.deepcopy(trainer.model.adapter).eval()
    for name, average in trainer.averaged_weights().items():
        if name.startswith(_ADAPTER):
            module, _, leaf = name.removeprefix(_ADAPTER).rpartition(".")
            whole = trainer.layout.gather(name, average)
            setattr(adapter.get_submodule(module), leaf, nn.Parameter(whole.clone(), requires_grad=False))
    return adapter


def generation_settings(recipe: Recipe) -> dict[str, Any]:
    """What a finished model is saved with: the recipe's settings over those of the checkpoint the run started from."""
    if not isinstance(recipe.start, FromCheckpoint):
        return dict(recipe.generation)
    source = resolve(recipe.start.model)
    return {**read_generation_config(source), "eos_token_id": read_end_ids(source), **recipe.generation}


def export(trainer: Trainer, recipe: Recipe, folder: Path | None = None) -> Path:
    """Write the averaged weights with tokenizer, template and generation defaults; returns the folder.

    Where an adapter is trained, it alone is written. Of several processes the first writes; all must call it.

    Args:
        folder: where; None is `model`, or `adapter`, in the run's folder.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    adapter = averaged_adapter(trainer)
    if adapter is not None and recipe.lora is not None:
        base = recipe.start.model if isinstance(recipe.start, FromCheckpoint) else None
        target = folder or trainer.folder / ADAPTER_FOLDER
        if trainer.ranks.is_first:
            save_adapter(adapter, target, trainer.model.config, recipe.lora, base)
        return target
    target = folder or trainer.folder / MODEL_FOLDER
    model = averaged_model(trainer)
    if model is not None:
        _write_model(model, recipe, target)
    return target


def _write_model(model: Transformer, recipe: Recipe, target: Path) -> None:
    if recipe.train.diffusion_weight:
        save_model(model, target)
        write_generation_config(target, generation_settings(recipe))
    else:
        tokens = {name: value for name, value in generation_settings(recipe).items() if name.endswith("_token_id")}
        save_model(model, target, layout="autoregressive", generation_config=tokens)
    if recipe.write_text_files is not None:
        recipe.write_text_files(target)
    elif isinstance(recipe.start, FromCheckpoint):
        for file in tokenizer_files(resolve(recipe.start.model)):
            shutil.copyfile(file, target / file.name)
