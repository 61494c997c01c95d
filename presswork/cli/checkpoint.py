"""What a model folder says of itself without being loaded: sizes from headers, and the memory it will take."""

from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from presswork.config import ModelConfig
from presswork.errors import CheckpointError, ConfigError
from presswork.weights.config_files import read_config, read_layout
from presswork.weights.files import one_line, weight_map
from presswork.weights.hub import resolve
from presswork.weights.names import checkpoint_places, is_skipped, source_names

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# What a pass needs beside weights and keys: activations of a chunk and a canvas, tiles, fused buffers.
_WORKING_BYTES = 300 * 10**6
# Buffers of keys grow by half when they are full, and while they do the old one still exists.
_GROWTH = 1.5
_WINDOW_SLACK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model folder as its configuration and headers describe it.

    Args:
        dtype: of the embedding, in which the model is loaded unless another is asked for.
        layout: "diffusion", or "autoregressive": a model whose self-conditioning starts fresh.
        stored_bytes: of the tensors that are read. file_bytes: of all files in the folder.
        num_parameters: of the model; num_active: those that the pass of one token reads.
    """

    name: str
    folder: Path
    config: ModelConfig
    layout: str
    dtype: str
    stored_bytes: int
    file_bytes: int
    num_parameters: int
    num_active: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Memory of one request on one copy of the weights, in bytes.

    Args:
        kv_bytes_per_token: while the context is within the window; beyond it only full layers grow.
        kv_bytes_at_max_context: stored keys and values of a full context, growth of their buffers not included.
        working_bytes: an allowance for what a pass computes.
        peak_bytes: weights, buffers of a full context, and working memory.
        max_context: positions the model knows; fitting_context: how many of them fit what is available.
    """

    dtype: str
    weights_bytes: int
    kv_bytes_per_token: int
    kv_bytes_at_max_context: int
    working_bytes: int
    peak_bytes: int
    available_bytes: int
    max_context: int
    fitting_context: int

    @property
    def fits(self) -> bool:
        """Whether at least a canvas after a short prompt fits."""
        return self.fitting_context > 0

    @property
    def verdict(self) -> str:
        """One line for people."""
        if self.fitting_context >= self.max_context:
            return "fits, with its full context"
        if self.fits:
            return f"fits, with a context of up to {self.fitting_context:,} of {self.max_context:,} tokens"
        return "does not fit"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "fits": self.fits, "verdict": self.verdict}


def read_checkpoint(model: str) -> Checkpoint:
    """Describe a model by embedded name, folder or Hub id.

    Raises: ModelNotFoundError; CheckpointError when files are missing, cut short, or of another family.
    """
    folder = resolve(model, may_pull=False)
    config, layout = read_config(folder), read_layout(folder)
    stored = _headers(folder)
    sources = source_names(config, layout)
    read = [next((s for s in names if s in stored), None) for names in sources.values()]
    name = next(n for n, place in checkpoint_places(config).items() if place.parameter == "decoder.embedding")
    embedding = next((s for s in sources[name] if s in stored), None)
    if embedding is None:
        raise CheckpointError(f"{folder} has no embedding among its weights; it is not a whole model")
    num, num_active = count_parameters(config)
    return Checkpoint(
        name=model,
        folder=folder,
        config=config,
        layout=layout,
        dtype=_DTYPES.get(stored[embedding][0], stored[embedding][0]),
        stored_bytes=sum(stored[source][1] for source in set(read) if source is not None),
        file_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        num_parameters=num,
        num_active=num_active,
    )


def count_parameters(config: ModelConfig) -> tuple[int, int]:
    """(all parameters, those that one token's pass reads: of the experts only the ones it is routed to)."""
    num = num_active = 0.0
    for place in checkpoint_places(config).values():
        size = prod(place.shape)
        num += size
        is_expert = place.parameter.endswith(("experts.gate_up", "experts.down"))
        if not place.parameter.startswith("own_encoder"):
            num_active += size * (config.top_k_experts / config.num_experts if is_expert else 1)
    return int(num), round(num_active)


def plan_memory(checkpoint: Checkpoint, available_bytes: int, dtype: str | None = None) -> MemoryPlan:
    """What a checkpoint will need, before it is loaded. Raises ConfigError for an unknown dtype."""
    from presswork.engine.loader import as_dtype  # which takes seconds to import

    as_dtype(dtype)
    dtype = dtype or checkpoint.dtype
    if dtype not in _ITEM_BYTES:
        raise ConfigError(f"dtype must be one of {', '.join(_ITEM_BYTES)}, got {dtype!r}")
    config = checkpoint.config
    weights = checkpoint.num_parameters * _ITEM_BYTES[dtype]
    full, sliding = _kv_bytes(config, dtype)
    window = config.sliding_window - 1

    def peak(context: int) -> int:
        kept = min(_GROWTH * context, 2 * window + _WINDOW_SLACK)
        return int(weights + _WORKING_BYTES + full * _GROWTH * context + sliding * kept)

    return MemoryPlan(
        dtype=dtype,
        weights_bytes=weights,
        kv_bytes_per_token=full + sliding,
        kv_bytes_at_max_context=full * config.max_position_embeddings
        + sliding * min(config.max_position_embeddings, window),
        working_bytes=_WORKING_BYTES,
        peak_bytes=peak(config.max_position_embeddings),
        available_bytes=available_bytes,
        max_context=config.max_position_embeddings,
        fitting_context=_largest(lambda context: peak(context) <= available_bytes, config.max_position_embeddings),
    )


def _kv_bytes(config: ModelConfig, dtype: str) -> tuple[int, int]:
    import torch

    from presswork.cache.contiguous import bytes_per_position

    return bytes_per_position(config, getattr(torch, dtype))


def _largest(holds: Any, limit: int) -> int:
    """The largest number up to limit for which a monotone test holds, 0 where none does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _headers(folder: Path) -> dict[str, tuple[str, int]]:
    """(dtype, bytes) of every tensor that is not of a part we lack, from the files' headers."""
    found: dict[str, tuple[str, int]] = {}
    for path in weight_map(folder):
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118  (not a mapping)
                    if not is_skipped(name):
                        header = file.get_slice(name)
                        dtype = header.get_dtype()
                        item_bytes = _ITEM_BYTES.get(_DTYPES.get(dtype, ""), 1)
                        found[name] = (dtype, prod(header.get_shape()) * item_bytes)
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not a whole safetensors file ({one_line(error)}); fetch it again"
            ) from error
    return found
