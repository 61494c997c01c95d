"""A run's figures: one JSON line a report, and TensorBoard's event file where tensorboard is installed."""

import json
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from presswork.errors import TrainingError

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"


class MetricsLog:
    """Appends figures to a run's folder; a context manager, which closes the files."""

    def __init__(self, folder: Path, name: str = METRICS_FILE, *, first_step: int = 0):
        """Open the files; TensorBoard forgets what it had from first_step on."""
        self._path = folder / name
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.info("no TensorBoard file: tensorboard is not installed; in the checkout, pip install -e '.[train]'")
        else:
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step or None)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    def write(self, step: int, figures: dict[str, float | None]) -> None:
        """One line, and one point of every curve; figures that are None have none."""
        try:
            with self._path.open("a+b") as file:
                # A crash may have left half a line.
                is_torn = file.tell() > 0 and _last_byte(file) != b"\n"
                file.write((b"\n" if is_torn else b"") + json.dumps(figures).encode() + b"\n")
        except OSError as error:
            raise TrainingError(
                f"cannot write {self._path}: {error}; run again to go on from the last state"
            ) from error
        if self._board is not None:
            for name, value in figures.items():
                if value is not None and name != "step":
                    self._board.add_scalar(name, value, step)


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def read_metrics(folder: Path, name: str = METRICS_FILE) -> list[dict[str, float | None]]:
    """The figures of a run, oldest first, torn lines left out.

    Where it went on from an earlier step, after a crash or from the start, what it had written behind that one does not
    count.
    """
    path = folder / name
    if not path.exists():
        return []
    found: list[tuple[int, dict[str, float | None]]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            figures = json.loads(line)
            step = int(figures["step"])
        except (ValueError, TypeError, KeyError):
            continue
        while found and found[-1][0] >= step:
            found.pop()
        found.append((step, figures))
    return [figures for _, figures in found]
