"""The files of a model folder: JSON in and out, and which safetensors files hold the weights. Knows no tensors."""

import json
import os
from pathlib import Path
from typing import Any

from presswork.errors import CheckpointError

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_OTHER_FORMATS = {".bin": "pickled PyTorch", ".pt": "pickled PyTorch", ".pth": "pickled PyTorch", ".gguf": "GGUF"}


def one_line(error: BaseException) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is missing, unreadable, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path.parent.is_dir():
            raise CheckpointError(f"{path.parent} has no {path.name}; give the folder of a model") from None
        raise CheckpointError(f"model folder {path.parent} does not exist or is not a folder") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {one_line(error)}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({one_line(error)}); download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object; a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def weights_entry(folder: Path) -> Path:
    """The file that leads to a folder's weights: the single file, which wins as it does upstream, or the index.

    Raises:
        CheckpointError: there is neither.
    """
    for name in (WEIGHTS_FILE, INDEX_FILE):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(_no_weights(folder))


def weight_map(folder: Path) -> dict[Path, tuple[str, ...] | None]:
    """The weight files of a folder, with the tensor names the index promises of each; None for the single file.

    Raises:
        CheckpointError: there are no safetensors, a shard is missing, or the index is malformed.
    """
    entry = weights_entry(folder)
    if entry.name == WEIGHTS_FILE:
        return {entry: None}
    shards = _shards(entry)
    for path in shards:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing but {INDEX_FILE} names it; download the model again")
    return dict(shards)


def _shards(index: Path) -> dict[Path, tuple[str, ...]]:
    entries = read_json(index).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise CheckpointError(f"{index} must hold a weight_map of tensor names to file names")
    names: dict[str, list[str]] = {}
    for tensor, shard in entries.items():
        # A shard lies beside its index: a path could point anywhere on the machine.
        if not isinstance(shard, str) or not shard or Path(shard).name != shard:
            raise CheckpointError(f"{index} gives {tensor} the file {shard!r}; a plain file name is needed")
        names.setdefault(shard, []).append(tensor)
    return {index.parent / shard: tuple(tensors) for shard, tensors in sorted(names.items())}


def _no_weights(folder: Path) -> str:
    if not folder.is_dir():
        return f"model folder {folder} does not exist or is not a folder"
    wanted = f"{folder} has neither {WEIGHTS_FILE} nor {INDEX_FILE}"
    for path in sorted(folder.iterdir()):
        if path.suffix in _OTHER_FORMATS:
            return f"{wanted}; {path.name} is {_OTHER_FORMATS[path.suffix]}, which is not read: convert to safetensors"
    return f"{wanted}; download the weights"
