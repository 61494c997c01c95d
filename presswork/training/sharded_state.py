"""A run's state written by several processes, each its parts; read by any number.

    training_state.pt         as one process writes it, but where a tensor would be it holds nothing
    training_state.parts-0    the tensors, by torch.distributed.checkpoint; or -1: the file says which

A save writes into the folder that the file does not name, then swaps the file: until then the last state is whole.
"""

import logging
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from presswork.errors import CheckpointError
from presswork.training.checkpoint import PART_FOLDERS, STATE_FILE, load_state, remove_parts, save_state
from presswork.training.layout import Layout
from presswork.training.optim import adamw_order
from presswork.training.sharding import Sharded

logger = logging.getLogger(__name__)

_Change = Callable[[str, str, Any], Any]
"""(kind, name of the parameter, tensor) -> what takes the tensor's place."""


def save_parts(folder: Path, state: dict[str, Any], layout: Sharded) -> None:
    """Write the state of all processes, each its parts; every process must call it.

    Raises:
        CheckpointError: on every process, where any of them cannot write; the previous state is kept.
    """
    parts: dict[str, Tensor] = {}

    def take(kind: str, name: str, tensor: Tensor) -> None:
        parts[f"{kind}/{name}"] = layout.spread(name, tensor)

    order = adamw_order(state["optimizer"]["masters"], state["optimizer"]["momenta"])
    rest = _changed(state, order, take)
    target = folder / layout.ranks.share(_unused(folder) if layout.ranks.is_first else None)
    layout.ranks.first_does(lambda: _clear(target))
    try:
        dcp.save(parts, storage_writer=dcp.FileSystemWriter(target))
    except CheckpointException as error:
        layout.ranks.first_does(lambda: shutil.rmtree(target, ignore_errors=True))
        raise CheckpointError(f"cannot write {target}: {_reason(error)}; the previous state is kept") from error

    def swap() -> None:
        save_state(folder, {**rest, "parts": target.name, "adamw_order": order})
        remove_parts(folder, but=target.name)

    layout.ranks.first_does(swap)


def load_parts(folder: Path, state: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """The state with its tensors, as far as this process holds them, whichever number of processes wrote it.

    Args:
        state: what the state's file holds.
    Raises:
        CheckpointError: the parts cannot be read.
    """
    if "parts" not in state:
        order = adamw_order(state["optimizer"]["masters"], state["optimizer"]["momenta"])
        return _changed(state, order, lambda kind, name, tensor: layout.part(name, tensor))
    source = folder / state["parts"]
    try:
        tensors = _read(source, layout)
    except (OSError, CheckpointException, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"cannot read {source}: {_reason(error)}; remove {STATE_FILE} to start over") from error
    return _changed(state, state["adamw_order"], lambda kind, name, _: tensors[f"{kind}/{name}"])


def _read(source: Path, layout: Layout) -> dict[str, Tensor]:
    reader = dcp.FileSystemReader(source)
    places: dict[str, Any] = {}
    for key, stored in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata)
        name = key.partition("/")[2]
        empty = torch.empty(stored.size, dtype=stored.properties.dtype, device="meta")
        part = torch.empty_like(layout.part(name, empty), device=layout.ranks.device)
        places[key] = layout.spread(name, part) if isinstance(layout, Sharded) else part
    with warnings.catch_warnings():
        # Says that there is one process, which is what was asked for.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(places, storage_reader=reader, no_dist=not isinstance(layout, Sharded))
    return {key: layout.local(tensor) for key, tensor in places.items()}


def _changed(state: Mapping[str, Any], order: list[str], change: _Change) -> dict[str, Any]:
    """The state of a trainer with every tensor of a parameter's shape changed.

    Args:
        order: names of the parameters in AdamW's state.
    """

    def each(kind: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {name: change(kind, name, tensor) for name, tensor in tensors.items()}

    optimizer, adamw = state["optimizer"], state["optimizer"]["adamw"]
    moments = {
        i: {kind: x if kind == "step" else change(kind, order[i], x) for kind, x in of_one.items()}
        for i, of_one in adamw["state"].items()
    }
    kinds = {kind: each(kind, optimizer[kind]) for kind in ("masters", "average", "momenta")}
    changed = {**optimizer, **kinds, "adamw": {**adamw, "state": moments}}
    return {**state, "optimizer": changed, "best": each("best", state["best"])}


def _unused(folder: Path) -> str:
    """The folder of parts that the present state does not lie in."""
    try:
        state = load_state(folder, is_mapped=True) or {}
    except CheckpointError as error:
        logger.warning("%s", error)
        state = {}
    return next(name for name in PART_FOLDERS if name != state.get("parts"))


def _clear(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error}; the previous state is kept") from error


def _reason(error: BaseException) -> str:
    failures = error.failures if isinstance(error, CheckpointException) else {}
    found = [f"process {rank}: {failure}" for rank, (failure, _) in failures.items()] or [str(error)]
    return found[0].partition("\n")[0]
