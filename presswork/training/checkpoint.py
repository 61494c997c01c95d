"""Training state on disk: written beside the old one, then swapped in, so that a crash leaves one good file."""

import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from presswork.errors import CheckpointError

STATE_FILE = "training_state.pt"
PART_FOLDERS = ("training_state.parts-0", "training_state.parts-1")
"""Where several processes write their tensors, in turn (training/sharded_state.py)."""
# torch unpickles whatever is there.
_UNREADABLE = (
    OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, pickle.UnpicklingError,
)  # fmt: skip


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the state atomically. A full disk raises CheckpointError and keeps the previous file."""
    target = folder / STATE_FILE
    partial = target.with_suffix(".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            partial.unlink()
        raise CheckpointError(f"cannot write {target}: {error}; the previous state is kept") from error


def remove_parts(folder: Path, *, but: str | None = None) -> None:
    """Remove what several processes wrote, except one folder of it."""
    for name in PART_FOLDERS:
        if name != but:
            shutil.rmtree(folder / name, ignore_errors=True)


def load_state(folder: Path, *, is_mapped: bool = False) -> dict[str, Any] | None:
    """The saved state, or None where there is none. Raises CheckpointError when the file cannot be read.

    Args:
        is_mapped: tensors stay on the disk until they are read.
    """
    target = folder / STATE_FILE
    if not target.exists():
        return None
    try:
        return torch.load(target, map_location="cpu", weights_only=True, mmap=is_mapped)
    except _UNREADABLE as error:
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise CheckpointError(f"cannot read {target}: {reason}; remove it to start over") from error
