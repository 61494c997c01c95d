"""A recipe: everything a training run is made of, in one printable, overridable value.

A recipe file is Python and defines `recipe()`, which returns a Recipe. Its fields are plain frozen dataclasses, so any
of them can be set from outside by its path: `train.optimizer.peak_rate=1e-3`.
"""

import importlib.util
import json
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints, runtime_checkable

import torch

from presswork.config import ModelConfig, require
from presswork.errors import ConfigError
from presswork.models.adapters import LoraConfig
from presswork.models.transformer import Transformer
from presswork.training.config import TrainConfig
from presswork.training.loss import Batch
from presswork.training.trainer import BatchSource
from presswork.weights.config_files import check_generation_settings
from presswork.weights.hub import resolve
from presswork.weights.initialise import random_model
from presswork.weights.load import load_model


class BatchPlan(Protocol):
    """A recipe's data: a frozen dataclass that opens as batches."""

    def open(self, model: Transformer) -> BatchSource:
        """The batches of a run that trains this model. Raises DataError where there is nothing to train on."""
        ...


@runtime_checkable
class ValidatedPlan(Protocol):
    """Data that also holds batches to validate on."""

    def validate_on(self, model: Transformer) -> Sequence[Batch]: ...


class Start(Protocol):
    """Where a run's weights come from: a frozen dataclass."""

    def build(self) -> Transformer: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FromScratch:
    """Fresh weights.

    Args:
        model: the architecture.
        seed: of the weights.
        initialise: sets weights after the usual start, where a task knows better.
    """

    model: ModelConfig
    seed: int = 0
    initialise: Callable[[Transformer, int], None] | None = None

    def build(self) -> Transformer:
        """A float32 model."""
        model = random_model(self.model, dtype=torch.float32, seed=self.seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("q_norm"):
                    # Attention has no 1/sqrt(h): without this the first softmax is nearly one-hot.
                    parameter.fill_(parameter.numel() ** -0.5)
        if self.initialise is not None:
            self.initialise(model, self.seed)
        return model


@dataclass(frozen=True, slots=True, kw_only=True)
class FromCheckpoint:
    """Weights of a model that exists.

    Args:
        model: an embedded model's name, a folder, or a Hub id.
    """

    model: str

    def build(self) -> Transformer:
        """The model in its checkpoint's dtype."""
        return load_model(resolve(self.model))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training run.

    Args:
        start: where the weights come from.
        data: what is trained on.
        train: how.
        lora: trains an adapter beside the weights, which stay as they are; None trains the weights.
        generation: sampling defaults the finished model is saved with, over those of the checkpoint the run started
            from.
        evaluate: tells how well a model does the task, from an engine that holds it; figures by name.
        evaluate_every: steps between evaluations, whole reports; 0 never evaluates.
        write_text_files: writes the tokenizer and the template into the finished model's folder; None copies those of
            the checkpoint the run started from.
    """

    start: Start
    data: BatchPlan
    train: TrainConfig
    lora: LoraConfig | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Callable[[Any], Mapping[str, float]] | None = None
    evaluate_every: int = 0
    write_text_files: Callable[[Path], None] | None = None

    def __post_init__(self) -> None:
        check_generation_settings(self.generation)
        require(
            self.lora is None or not isinstance(self.start, FromScratch),
            "lora adapts weights that are trained, and this run starts from fresh ones; start from a checkpoint",
        )
        every, log_every = self.evaluate_every, self.train.log_every
        require(
            every >= 0 and every % log_every == 0,
            f"evaluate_every must be 0 or a multiple of train.log_every ({log_every}), got {every}",
        )
        require(every == 0 or self.evaluate is not None, f"evaluate_every is {every}, but nothing is evaluated; set 0")


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in a Python file.

    Raises:
        ConfigError: no such file, no `recipe()` in it, or it does not return a Recipe.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no recipe at {file}; give a Python file that defines recipe(), such as recipes/sudoku.py")
    spec = importlib.util.spec_from_file_location(f"recipe_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} is not a Python file; a recipe ends in .py and defines recipe()")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up there.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    make = getattr(module, "recipe", None)
    if not callable(make):
        raise ConfigError(
            f"{file} defines no recipe(); a recipe file has a function of that name that returns a Recipe"
        )
    made = make()
    if not isinstance(made, Recipe):
        raise ConfigError(
            f"recipe() of {file} must return a presswork.training.recipe.Recipe, got {type(made).__name__}"
        )
    return made


def override(value: Any, settings: Sequence[str]) -> Any:
    """The dataclass with fields set by `path=text`; the text is read as the field's type.

    Raises:
        ConfigError: no such field, a text that is no such value, or a value the field refuses.
    """
    tree: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"cannot read {setting!r}; set a field as path=value, such as train.num_steps=100")
        *parts, name = path.strip().split(".")
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{path.strip()}: {part} is set to {node!r} too; set one of them")
        if isinstance(node.get(name), dict):
            raise ConfigError(f"{path.strip()}: a part of it is set too; set one of them")
        node[name] = text.strip()
    return _changed(value, tree, ())


def _changed(value: Any, tree: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The value, at `names` in its recipe, with its fields set from the leaves up, so that each is checked once."""
    is_mapping = isinstance(value, Mapping)
    if is_mapping and not any(isinstance(text, dict) for text in tree.values()):
        return {**value, **{name: _literal(text) for name, text in tree.items()}}
    if not is_dataclass(value) or isinstance(value, type):
        wrong = next(item for item in tree.items() if not is_mapping or isinstance(item[1], dict))
        path, where = ".".join((*names, *_first_leaf(*wrong))), ".".join(names)
        raise ConfigError(f"{path}: {where} has no {'such field' if is_mapping else 'fields'}; it is {value!r}")
    known = [f.name for f in fields(value)]
    changes = {}
    for name, given in tree.items():
        path = ".".join((*names, *_first_leaf(name, given)))
        if name not in known:
            where = ".".join(names) or "the recipe"
            raise ConfigError(f"{path}: {where} has no field {name!r}; it has {', '.join(known)}")
        hint = get_type_hints(type(value))[name]
        if isinstance(given, dict):
            part = getattr(value, name)
            changes[name] = _changed(_default_part(hint) if part is None else part, given, (*names, name))
        else:
            changes[name] = _parse(hint, given, path)
    return replace(value, **changes)


def _first_leaf(name: str, given: Any) -> tuple[str, ...]:
    return (name, *_first_leaf(*next(iter(given.items())))) if isinstance(given, dict) else (name,)


def _default_part(hint: Any) -> Any:
    """A part that is switched on by setting one of its fields; None where the type is of no such kind."""
    kinds = [kind for kind in get_args(hint) if is_dataclass(kind)]
    return kinds[0]() if len(kinds) == 1 and isinstance(kinds[0], type) else None


def _literal(text: str) -> Any:
    """A value of a mapping, which names no types: a number, true, false, none or a list of such; else the text."""
    try:
        return json.loads("null" if text.lower() == "none" else text)
    except ValueError:
        return text


def _parse(hint: Any, text: str, path: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if type(None) in arguments and text.lower() == "none":
            return None
        return _parse(next(kind for kind in arguments if kind is not type(None)), text, path)
    if origin is Literal and text in arguments:
        return text
    if origin is tuple:
        parts = [part for part in text.split(",") if part]
        kinds = [arguments[0]] * len(parts) if arguments[1:] == (...,) else list(arguments)
        if len(kinds) == len(parts):
            return tuple(_parse(kind, part, path) for kind, part in zip(kinds, parts, strict=True))
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if hint in (int, float, str, Path):
        try:
            return hint(text)
        except ValueError:
            pass
    expected = " or ".join(map(str, arguments)) if origin is Literal else getattr(hint, "__name__", str(hint))
    raise ConfigError(f"{path}: {text!r} cannot be read as {expected}")


def describe(value: Any) -> Any:
    """A recipe, or part of one, as plain values for JSON; functions by their names."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: describe(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def as_json(recipe: Recipe) -> str:
    """A recipe as indented JSON, as it is printed and saved with its run."""
    return json.dumps(describe(recipe), indent=2)
