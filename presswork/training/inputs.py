"""The files a run reads, told apart by their contents: one that is gone on with has to find the same ones."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from presswork.text.check_sum import check_sum
from presswork.training.recipe import FromCheckpoint, Recipe
from presswork.weights.hub import resolve


def contents_of(recipe: Recipe) -> dict[str, str]:
    """A check sum of each file, by name: of the data's, and of the weights that an adapter is trained beside.

    Weights that are trained themselves matter at the first step alone, and are not looked at. Of an adapter's, which
    may be large, the beginning and the end of every file are.

    Raises: DataError for a file that cannot be read.
    """
    found = {str(file): _told(file) for file in _files(recipe.data) if file.is_file()}
    if recipe.lora is not None and isinstance(recipe.start, FromCheckpoint):
        for file in sorted(resolve(recipe.start.model).glob("*.safetensors")):
            found[f"{recipe.start.model}/{file.name}"] = _told(file, only_ends=True)
    return found


def differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of files whose contents differ."""
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def _files(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _files(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _files(getattr(value, field.name))


def _told(file: Path, *, only_ends: bool = False) -> str:
    return f"{file.stat().st_size} {check_sum(file, only_ends=only_ends):08x}"
