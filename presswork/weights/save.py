"""Saves a model as a folder that this package and transformers load."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from presswork.config import require
from presswork.errors import CheckpointError
from presswork.models.transformer import Transformer
from presswork.weights.config_files import write_config, write_generation_config
from presswork.weights.files import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, one_line, write_json
from presswork.weights.load import is_finite
from presswork.weights.names import Layout, autoregressive_name, checkpoint_places

_SHARD_FILE = "model-{number:05d}-of-{total:05d}.safetensors"
_ANY_SHARD = "model-*-of-*.safetensors"


def save_model(
    model: Transformer, folder: str | Path, *, max_shard_bytes: float = 5e9,
    generation_config: Mapping[str, Any] | None = None, extra: Sequence[str | Path] = (),
    layout: Layout = "diffusion",
) -> None:  # fmt: skip
    """Write config.json and the weights under their upstream names, beside whatever else the folder holds.

    Everything is written aside first and moved into place at the end: a full disk leaves the old files. Image
    weights of a folder the model was loaded from are not kept.

    Args:
        max_shard_bytes: weights beyond this are split over several files; a larger tensor has a file of its own.
        generation_config: sampling defaults to write too, fields of GENERATION_FIELDS.
        extra: files to copy beside the weights, such as the tokenizer's.
        layout: "autoregressive" keeps what the causal mode needs, as transformers' Gemma4ForCausalLM has it.
    Raises:
        CheckpointError: a weight is NaN or infinite, an extra file is missing, or the folder cannot be written.
        ConfigError: an unknown field in generation_config, or an untied model as an autoregressive one.
    """
    folder = Path(folder)
    tensors = dict(_tensors(model, layout))
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise CheckpointError(f"not saved to {folder}: {name} holds NaN or infinity; the files there are unchanged")
    is_moving = False
    staged = (folder if folder.is_dir() else folder.parent) / f".{folder.name}.saving-{os.getpid()}"
    try:
        staged.mkdir(parents=True)
        for path in extra:
            shutil.copyfile(path, staged / Path(path).name)
        _write_weights(tensors, staged, max_shard_bytes)
        write_config(model.config, staged, model.dtype, layout)
        if generation_config is not None:
            write_generation_config(staged, generation_config)
        _settle(staged)
        is_moving = True
        _publish(staged, folder)
    except (OSError, SafetensorError) as error:
        state = "some files there are already new: save again" if is_moving else "the files there are unchanged"
        raise CheckpointError(f"cannot save to {folder}: {one_line(error)}; {state}") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _tensors(model: Transformer, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    if layout == "autoregressive":
        require(
            model.own_encoder is None, "an untied model has two stacks and cannot be saved as an autoregressive one"
        )
    state = model.state_dict()
    for name, place in checkpoint_places(model.config).items():
        written = name if layout == "diffusion" else autoregressive_name(name)
        if written is not None:
            yield written, state[place.parameter][place.start : place.stop]


def _write_weights(tensors: dict[str, Tensor], folder: Path, max_shard_bytes: float) -> None:
    shards = _split(tensors, max_shard_bytes)
    if len(shards) == 1:
        _write_shard(tensors, shards[0], folder / WEIGHTS_FILE)
        return
    names: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = _SHARD_FILE.format(number=number, total=len(shards))
        _write_shard(tensors, shard, folder / file)
        names |= dict.fromkeys(shard, file)
    total_size = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / INDEX_FILE, {"metadata": {"total_size": total_size}, "weight_map": names})


def _split(tensors: dict[str, Tensor], max_shard_bytes: float) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    num_bytes = 0
    for name, tensor in tensors.items():
        if shards[-1] and num_bytes + tensor.nbytes > max_shard_bytes:
            shards.append([])
            num_bytes = 0
        shards[-1].append(name)
        num_bytes += tensor.nbytes
    return shards


def _write_shard(tensors: dict[str, Tensor], names: list[str], path: Path) -> None:
    on_cpu = {name: tensors[name].detach().cpu().contiguous() for name in names}
    save_file(on_cpu, path, metadata={"format": "pt"})


def _settle(staged: Path) -> None:
    # safetensors makes its files private to their owner; they should be as readable as any other.
    mode = (staged / CONFIG_FILE).stat().st_mode
    for path in staged.iterdir():
        path.chmod(mode)
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _publish(staged: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(staged, folder)
        return
    new = {path.name for path in staged.iterdir()}
    # An index over shards of two models would load without complaint; no index at all is an error.
    (folder / INDEX_FILE).unlink(missing_ok=True)
    for name in sorted(new, key=lambda name: name == INDEX_FILE):
        os.replace(staged / name, folder / name)
    # Old weights under other names would be loaded instead of the new ones, or fill the disk.
    for path in (folder / WEIGHTS_FILE, *folder.glob(_ANY_SHARD)):
        if path.name not in new:
            path.unlink(missing_ok=True)
