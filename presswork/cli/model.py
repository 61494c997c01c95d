"""From a verb's flags to an engine: parameters are checked first, because reading weights can take minutes."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from presswork.engine.engine import Engine
from presswork.engine.loader import load, read_settings
from presswork.engine.params import SamplingParams, defaults_from_checkpoint
from presswork.errors import ConfigError, OutOfMemoryError
from presswork.settings import Settings
from presswork.weights.hub import resolve
from presswork.weights.load import Progress

_WORTH_A_BAR_BYTES = 1 << 28


def open_engine(
    settings: Settings,
    model: str,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    adapters: Sequence[str] = (),
    **limits: Any,
) -> Engine:
    """Load a model for a verb. Mutates torch's thread count where the settings say so.

    Args:
        settings: the process's.
        model, device, dtype: as flags give them.
        sampling: parameters that are to be valid for this model.
        adapters: NAME=FOLDER each; requests are under the only one, or under the one that MODEL:NAME says.
        limits: fields of EngineConfig.
    Raises: ModelNotFoundError, CheckpointError, ConfigError, RequestError; OutOfMemoryError when it does not fit.
    """
    apply_threads(settings)
    folders = dict(map(_named_folder, adapters))
    base, _, chosen = model.rpartition(":")
    model, chosen = (base, chosen) if base and chosen in folders else (model, None)
    check_sampling(model, sampling or {})
    try:
        with loading_bar(model) as progress:
            engine = load(model, device=device, dtype=dtype, progress=progress, **limits)
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        raise OutOfMemoryError(
            f"{model} does not fit the memory of {device}; `presswork doctor {model}` says what it needs"
        ) from error
    for name, folder in folders.items():
        engine.load_adapter(name, folder)
    if chosen is None and len(folders) == 1:
        chosen = next(iter(folders))
    engine.defaults = engine.defaults.changed(adapter=chosen)
    return engine


def _named_folder(text: str) -> tuple[str, Path]:
    """(name, folder) of NAME=FOLDER; a folder alone goes by its own name."""
    name, _, folder = text.partition("=")
    if Path(text).is_dir():
        name, folder = Path(text).resolve().name, text
    if not name or not folder:
        raise ConfigError(f"--adapter takes NAME=FOLDER, got {text!r}")
    return name, Path(folder)


def check_sampling(model: str, sampling: Mapping[str, Any]) -> SamplingParams:
    """A model's sampling defaults with these changes. Raises RequestError before anything heavy has happened."""
    return defaults_from_checkpoint(read_settings(resolve(model))).changed(**sampling)


def apply_threads(settings: Settings) -> None:
    import torch

    if settings.threads is None:
        return
    try:
        torch.set_num_threads(settings.threads)
    except RuntimeError as error:
        raise ConfigError(f"{settings.threads} threads cannot be had: {error}") from error


def num_threads() -> int:
    """Threads of tensor work."""
    import torch

    return torch.get_num_threads()


@contextmanager
def loading_bar(model: str) -> Iterator[Progress | None]:
    """A bar on standard error that appears for large models on a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    bar = Progress(TextColumn("loading {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                   console=Console(stderr=True), transient=True)  # fmt: skip
    task = bar.add_task(model, total=None)

    def report(done: int, total: int) -> None:
        if total >= _WORTH_A_BAR_BYTES:
            bar.start()
            bar.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        bar.stop()


def _is_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text
