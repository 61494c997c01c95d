"""Makes a checkpoint out of another: of an autoregressive one, or of one with an adapter beside it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from presswork.errors import CheckpointError, ConfigError
from presswork.weights.config_files import read_config, read_end_ids, read_layout
from presswork.weights.load import Progress, load_model
from presswork.weights.lora import merge_adapter
from presswork.weights.peft_files import load_adapter
from presswork.weights.save import save_model

RELEASED_GENERATION = {
    "max_denoising_steps": 48,
    "entropy_bound": 0.1,
    "t_min": 0.4,
    "t_max": 0.8,
    "stability_threshold": 1,
    "confidence_threshold": 0.005,
}
"""Sampling defaults of the released model."""


def convert(
    source: Path, target: Path, *, canvas_length: int = 256, extra: Sequence[Path] = (),
    max_shard_bytes: float = 5e9, progress: Progress | None = None,
) -> None:  # fmt: skip
    """Write a diffusion model with an autoregressive model's weights and end tokens.

    Both modes share the weights; self-conditioning is fresh and contributes nothing until it is trained. In mode "ar"
    the result is the model it was made of; its canvases are untrained.

    Args:
        canvas_length: the new model's canvas.
        extra: files to copy beside the weights, such as the tokenizer's.
        progress: told the bytes read and the bytes to read.

    Raises:
        ConfigError: the source is a diffusion model already.
        CheckpointError: the source cannot be used, the target is not an empty folder, or it cannot be written.
    """
    if read_layout(source) != "autoregressive":
        raise ConfigError(f"{source} is a diffusion model already; convert takes an autoregressive one")
    # What is wrong is told before minutes of reading.
    replace(read_config(source), canvas_length=canvas_length)
    _require_free(target)
    model = load_model(source, progress=progress)
    model.config = replace(model.config, canvas_length=canvas_length)
    ends = {"eos_token_id": read_end_ids(source), "pad_token_id": model.config.pad_token_id}
    settings = {**RELEASED_GENERATION, **ends}
    save_model(model, target, max_shard_bytes=max_shard_bytes, generation_config=settings, extra=extra)


def merge(
    source: Path, adapter: Path, target: Path, *, extra: Sequence[Path] = (), max_shard_bytes: float = 5e9,
    progress: Progress | None = None,
) -> None:  # fmt: skip
    """Write a model with an adapter added to its weights, in the model's dtype.

    Args:
        extra: files to copy beside the weights, such as the tokenizer's and the sampling defaults.
        progress: told the bytes read and the bytes to read.

    Raises:
        ConfigError: the source is an autoregressive model, or the adapter cannot be merged.
        CheckpointError: the source or the adapter cannot be used, the target is not an empty folder, or it cannot be
            written.
    """
    if read_layout(source) == "autoregressive":
        raise ConfigError(f"{source} is an autoregressive model; make it a diffusion model first, with convert")
    # What is wrong is told before minutes of reading.
    factors = load_adapter(adapter, read_config(source))
    _require_free(target)
    model = load_model(source, progress=progress)
    merge_adapter(model, factors)
    save_model(model, target, max_shard_bytes=max_shard_bytes, extra=extra)


def _require_free(target: Path) -> None:
    """Make the folder. Raises CheckpointError where that cannot be, or where it holds something."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        is_free = not any(target.iterdir())
    except FileExistsError:
        is_free = False
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error.strerror}; give another place") from error
    if not is_free:
        raise CheckpointError(f"{target} is there and not an empty folder; give another place")
