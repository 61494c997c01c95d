"""From a name, folder or Hub id to an engine."""

from pathlib import Path
from typing import Any

import torch

from presswork.engine.engine import Engine, EngineConfig
from presswork.engine.params import defaults_from_checkpoint
from presswork.errors import CheckpointError, ConfigError, RequestError
from presswork.text.chat import ChatTemplate
from presswork.text.tokenizer import Tokenizer
from presswork.weights.config_files import read_config, read_end_ids, read_generation_config, read_layout
from presswork.weights.files import GENERATION_CONFIG_FILE
from presswork.weights.hub import resolve
from presswork.weights.load import Progress, load_model

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def load(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    config: EngineConfig | None = None,
    may_pull: bool = True,
    progress: Progress | None = None,
    name: str | None = None,
    **limits: Any,
) -> Engine:
    """Load a model and everything it needs to generate.

    A checkpoint of the autoregressive family generates in mode "ar" unless a request says otherwise: its canvases are
    untrained.

    Args:
        source: an embedded model's name, a folder, or a Hub id; a Hub id that is not cached is pulled.
        device: where the model runs.
        dtype: "bfloat16" or "float32"; None is the checkpoint's.
        config: the engine's limits; single ones may be given as keywords instead.
        may_pull: False refuses to download.
        name: what messages call the model; None is the source.
        progress: called with (bytes done, bytes in all) while tensors are read.
    Raises: ModelNotFoundError, CheckpointError, ConfigError.
    """
    if limits and config is not None:
        raise ConfigError("give either config or single limits as keywords, not both")
    try:
        config = config or EngineConfig(**limits)
    except TypeError as error:
        raise ConfigError(f"unknown engine setting: {error}; see EngineConfig") from error
    folder = resolve(str(source), may_pull=may_pull)
    # Small files first: reading weights can take minutes.
    has_tokenizer = (folder / "tokenizer.json").is_file()
    tokenizer = Tokenizer.from_folder(folder) if has_tokenizer else None
    template = None if tokenizer is None else ChatTemplate.from_folder(folder, tokenizer)
    settings = read_settings(folder)
    vocab_size, layout = read_config(folder).vocab_size, read_layout(folder)
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} has {tokenizer.vocab_size} tokens and the model {vocab_size}; they do not "
            "belong together, download the model again"
        )
    model = load_model(folder, device=as_device(device), dtype=as_dtype(dtype), progress=progress)
    return Engine(
        model,
        tokenizer=tokenizer,
        template=template,
        generation_config=settings,
        config=config,
        name=name or str(source),
        mode="ar" if layout == "autoregressive" else "diffusion",
    )


def read_settings(folder: Path) -> dict[str, Any]:
    """The sampling defaults and end tokens in a folder. Raises CheckpointError for values no request could have."""
    settings = read_generation_config(folder) | {"eos_token_id": read_end_ids(folder)}
    try:
        defaults_from_checkpoint(settings)
    except RequestError as error:
        raise CheckpointError(f"{folder / GENERATION_CONFIG_FILE}: {error}") from error
    return settings


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The torch dtype of that name; None stays None. Raises ConfigError."""
    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise ConfigError(f"dtype must be {' or '.join(_DTYPES)}, got {dtype!r}")
        return _DTYPES[dtype]
    return dtype


def as_device(device: str | torch.device) -> torch.device:
    """The device of that name. Raises ConfigError where torch does not know it or cannot reach it."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is not known to torch; use 'cpu' or 'cuda'") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {str(found)!r} was asked for, but torch sees no CUDA device; use 'cpu'")
    return found
