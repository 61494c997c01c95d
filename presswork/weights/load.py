"""Loads a model folder: tensor by tensor from mapped files into a model allocated once."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from presswork.config import ModelConfig
from presswork.errors import CheckpointError, ConfigError
from presswork.models.transformer import Transformer
from presswork.weights.config_files import read_config, read_layout
from presswork.weights.files import INDEX_FILE, one_line, weight_map, weights_entry
from presswork.weights.initialise import empty_model, initialise_self_conditioning
from presswork.weights.names import HEAD, Layout, Place, checkpoint_places, is_skipped, source_names

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""(bytes read so far, bytes in all); called after each tensor."""

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FINITE_CHUNK = 1 << 20
_MAX_NAMED = 3
_PORTION_BYTES = 1 << 26
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """What a file's header says of one tensor."""

    path: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * _DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Where each file tensor goes: name in the files -> places in the model; one tensor may go to several."""

    targets: dict[str, list[Place]]
    embedding: str


def loaded_bytes(folder: str | Path, dtype: torch.dtype | None = None) -> int:
    """What a folder's model takes in memory once it is loaded; args and errors as `load_model`'s."""
    folder = Path(folder)
    config, stored = read_config(folder), _scan(folder)
    plan = _plan(folder, config, read_layout(folder), stored)
    model = empty_model(config, dtype=dtype or _DTYPES[stored[plan.embedding].dtype], device="meta")
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def load_model(
    folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Transformer:  # fmt: skip
    """The model in a folder, frozen and in eval mode.

    A folder of the autoregressive family loads too: its weights become both modes', self-conditioning starts fresh
    and contributes nothing until it is trained.

    Args:
        dtype: float32, bfloat16 or float16; None keeps the checkpoint's (its embedding's, where they differ).
        progress: told the bytes read and the bytes to read after each tensor.
    Raises:
        CheckpointError: anything about the folder that keeps it from being used, naming tensor and file.
        ConfigError: an unsupported dtype.
    """
    folder = Path(folder)
    if dtype not in (None, *_DTYPES.values()):
        raise ConfigError(f"a model's dtype must be float32, bfloat16 or float16, got {dtype}")
    config, layout = read_config(folder), read_layout(folder)
    stored = _scan(folder)
    plan = _plan(folder, config, layout, stored)
    model = empty_model(config, dtype=dtype or _DTYPES[stored[plan.embedding].dtype], device=device)
    if layout == "autoregressive":
        logger.info("%s is an autoregressive model: its self-conditioning starts fresh", folder)
        initialise_self_conditioning(model.self_conditioning, config.initializer_range)
    _fill(model, plan, stored, progress)
    return model


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; one pass without a temporary of its size."""
    # NaN and infinity survive a sum. A sum may also overflow on its own: only then look at each value.
    if bool(torch.isfinite(tensor.sum())):
        return True
    return all(bool(torch.isfinite(part).all()) for part in tensor.reshape(-1).split(_FINITE_CHUNK))


def _scan(folder: Path) -> dict[str, _Stored]:
    """Every tensor the folder holds and we might read, from the headers alone."""
    found: dict[str, _Stored] = {}
    for path, promised in weight_map(folder).items():
        with _open(path) as file:
            names = file.keys()
            held = set(names)
            for name in promised or ():
                if name not in held:
                    raise CheckpointError(f"{path} lacks {name}, which {INDEX_FILE} says it holds; download it again")
            for name in promised or names:
                if not is_skipped(name):
                    header = file.get_slice(name)
                    found[name] = _Stored(path=path, dtype=header.get_dtype(), shape=tuple(header.get_shape()))
    return found


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {one_line(error)}") from error
    except (SafetensorError, ValueError) as error:
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise CheckpointError(f"{path} is a Git LFS pointer, not weights; run git lfs pull there") from error
        reason = f"{one_line(error)}; it has {path.stat().st_size} bytes"
        raise CheckpointError(f"{path} is cut short or not a safetensors file ({reason}); download it again") from error


def _plan(folder: Path, config: ModelConfig, layout: Layout, stored: dict[str, _Stored]) -> _Plan:
    places, sources = checkpoint_places(config), source_names(config, layout)
    for name, tensor in stored.items():
        _require_dtype(name, tensor)
    chosen = {name: next((s for s in names if s in stored), None) for name, names in sources.items() if names}
    missing = [sources[name][0] for name, source in chosen.items() if source is None]
    known = {HEAD}.union(*sources.values())
    _refuse_names(folder, missing, sorted(set(stored) - known), stored)
    targets: dict[str, list[Place]] = {}
    for name, source in chosen.items():
        assert source is not None
        for alias in sources[name]:
            if alias in stored:
                _require_shape(alias, stored[alias], places[name])
        targets.setdefault(source, []).append(places[name])
    if HEAD in stored:
        _require_shape(HEAD, stored[HEAD], next(p for p in places.values() if p.parameter == "decoder.embedding"))
    embedding = next(s for s, where in targets.items() if any(p.parameter == "decoder.embedding" for p in where))
    return _Plan(targets=targets, embedding=embedding)


def _require_dtype(name: str, tensor: _Stored) -> None:
    if tensor.dtype not in _DTYPES:
        accepted = ", ".join(_DTYPES)
        raise CheckpointError(
            f"{name} in {tensor.path} is {tensor.dtype}; accepted: {accepted}; "
            "quantised checkpoints are not supported yet, use the original one"
        )


def _require_shape(name: str, tensor: _Stored, place: Place) -> None:
    if tensor.shape != place.shape:
        got, expected = list(tensor.shape), list(place.shape)
        raise CheckpointError(f"{name} in {tensor.path} has shape {got}, config.json asks for {expected}")


def _refuse_names(folder: Path, missing: list[str], unexpected: list[str], stored: dict[str, _Stored]) -> None:
    problems = []
    if missing:
        problems.append(f"{weights_entry(folder)} lacks {_some(missing)}")
    if unexpected:
        path = stored[unexpected[0]].path
        problems.append(f"{path} holds {_some(unexpected)}, which the model in config.json does not have")
    if problems:
        raise CheckpointError("; ".join(problems))


def _some(names: list[str]) -> str:
    rest = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _fill(model: Transformer, plan: _Plan, stored: dict[str, _Stored], progress: Progress | None) -> None:
    state = model.state_dict()
    total = sum(stored[name].num_bytes for name in plan.targets)
    done = 0
    for path in dict.fromkeys(tensor.path for tensor in stored.values()):
        for names in _portions(path, plan, stored):
            # Pages of a mapped file count as this process's memory until it is closed.
            with _open(path) as file:
                for name in names:
                    source = file.get_tensor(name)
                    for place in plan.targets[name]:
                        _copy(source, state[place.parameter][place.start : place.stop], f"{name} in {path}")
                    del source
                    done += stored[name].num_bytes
                    if progress is not None:
                        progress(done, total)


def _portions(path: Path, plan: _Plan, stored: dict[str, _Stored]) -> Iterator[list[str]]:
    """Wanted tensors of a file, in its order so that a disk reads forward, about _PORTION_BYTES at a time."""
    with _open(path) as file:
        wanted = [name for name in file.offset_keys() if name in plan.targets and stored[name].path == path]
    portion: list[str] = []
    for name in wanted:
        portion.append(name)
        if sum(stored[held].num_bytes for held in portion) >= _PORTION_BYTES:
            yield portion
            portion = []
    if portion:
        yield portion


def _copy(source: Tensor, target: Tensor, what: str) -> None:
    target.copy_(source)
    if is_finite(target):
        return
    if not is_finite(source):
        raise CheckpointError(f"{what} holds NaN or infinity; the file is damaged or its training diverged")
    dtype = str(target.dtype).removeprefix("torch.")
    raise CheckpointError(f"{what} has values that {dtype} cannot hold; load it as bfloat16 or float32")
