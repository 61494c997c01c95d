"""Training state on disk: written beside the old one, then swapped in, so that a crash leaves one good file."""

import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from presswork.errors import CheckpointError

STATE_FILE = "training_state.pt"


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


def load_state(folder: Path) -> dict[str, Any] | None:
    """The saved state, or None where there is none. Raises CheckpointError when the file cannot be read."""
    target = folder / STATE_FILE
    if not target.exists():
        return None
    try:
        return torch.load(target, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"cannot read {target}: {reason}; remove it to start over") from error
