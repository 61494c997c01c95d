"""Where each tensor of a checkpoint file lives in our model. The only module that knows upstream names.

D model width, I dense width, f expert width, E experts, H heads, n KV heads, h head width, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from presswork.config import LayerConfig, ModelConfig

DECODER = "model.decoder."
ENCODER = "model.encoder.language_model."
HEAD = "lm_head.weight"
VISION_PREFIXES = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")

AUTOREGRESSIVE = "model.language_model."
AUTOREGRESSIVE_TEXT_ONLY = "model."
AUTOREGRESSIVE_VISION_PREFIXES = ("model.vision_tower.", "model.embed_vision.")
AUTOREGRESSIVE_AUDIO_PREFIXES = ("model.audio_tower.", "model.embed_audio.")

Layout = Literal["diffusion", "autoregressive"]
"""How a folder names its tensors: a diffusion model's way, or that of the autoregressive model it can start from."""

Mode = Literal["decoder", "encoder"]
"""Canvas passes and causal passes; upstream these are two modules with the same weights."""

MODE_PREFIXES: dict[Mode, str] = {"decoder": DECODER, "encoder": ENCODER}

_NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_output_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm_1": "mlp_output_norm",
    "pre_feedforward_layernorm_2": "experts_norm",
    "post_feedforward_layernorm_2": "experts_output_norm",
    "post_feedforward_layernorm": "output_norm",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A file tensor's target: rows start .. stop - 1 of one of our parameters or buffers.

    Args:
        parameter: name in our state dict.
        start, stop: rows along the first axis.
        shape: the tensor's shape in the file.
    """

    parameter: str
    start: int
    stop: int
    shape: tuple[int, ...]


def stack_places(config: ModelConfig, stack: str) -> Iterator[tuple[str, Place]]:
    """(name relative to the stack's prefix, place) for one stack's embedding, layers and final norm."""
    hidden = config.hidden_size
    yield "embed_tokens.weight", _whole(f"{stack}.embedding", config.vocab_size, hidden)
    yield "norm.weight", _whole(f"{stack}.norm", hidden)
    for i, layer in enumerate(config.layers):
        for name, place in _layer_places(config, layer, f"{stack}.layers.{i}"):
            yield f"layers.{i}.{name}", place


def _layer_places(config: ModelConfig, layer: LayerConfig, ours: str) -> Iterator[tuple[str, Place]]:
    hidden, experts, width = config.hidden_size, config.num_experts, config.moe_intermediate_size
    yield from _attention_places(config, layer, f"{ours}.attention")
    for theirs, norm in _NORMS.items():
        yield f"{theirs}.weight", _whole(f"{ours}.{norm}", hidden)
    yield from _mlp_places(hidden, config.intermediate_size, "mlp", f"{ours}.mlp")
    yield "router.proj.weight", _whole(f"{ours}.experts.router", experts, hidden)
    yield "router.scale", _whole(f"{ours}.experts.router_scale", hidden)
    yield "router.per_expert_scale", _whole(f"{ours}.experts.per_expert_scale", experts)
    yield "experts.gate_up_proj", _whole(f"{ours}.experts.gate_up", experts, 2 * width, hidden)
    yield "experts.down_proj", _whole(f"{ours}.experts.down", experts, hidden, width)


def _attention_places(config: ModelConfig, layer: LayerConfig, ours: str) -> Iterator[tuple[str, Place]]:
    hidden, head_dim = config.hidden_size, layer.head_dim
    parts = {"q": config.num_attention_heads, "k": layer.num_key_value_heads}
    if not layer.is_full:
        parts["v"] = layer.num_key_value_heads
    start = 0
    for part, num_heads in parts.items():
        stop = start + num_heads * head_dim
        yield f"self_attn.{part}_proj.weight", _rows(f"{ours}.qkv", start, stop, hidden)
        start = stop
    yield "self_attn.o_proj.weight", _whole(f"{ours}.output", hidden, config.num_attention_heads * head_dim)
    yield "self_attn.q_norm.weight", _whole(f"{ours}.q_norm", head_dim)
    yield "self_attn.k_norm.weight", _whole(f"{ours}.k_norm", head_dim)


def _mlp_places(hidden: int, width: int, theirs: str, ours: str) -> Iterator[tuple[str, Place]]:
    yield f"{theirs}.gate_proj.weight", _rows(f"{ours}.gate_up", 0, width, hidden)
    yield f"{theirs}.up_proj.weight", _rows(f"{ours}.gate_up", width, 2 * width, hidden)
    yield f"{theirs}.down_proj.weight", _whole(f"{ours}.down", hidden, width)


def self_conditioning_places(config: ModelConfig) -> Iterator[tuple[str, Place]]:
    """(name relative to the decoder prefix, place) of the four self-conditioning tensors."""
    ours = "self_conditioning"
    yield f"{ours}.pre_norm.weight", _whole(f"{ours}.norm", config.hidden_size)
    yield from _mlp_places(config.hidden_size, config.intermediate_size, ours, f"{ours}.mlp")


def scalar_places(config: ModelConfig, parameter: str) -> Iterator[tuple[str, Place]]:
    """(name relative to a stack's prefix, place) of one mode's layer scalars."""
    for i in range(config.num_layers):
        yield f"layers.{i}.layer_scalar", Place(parameter=parameter, start=i, stop=i + 1, shape=(1,))


def checkpoint_places(config: ModelConfig) -> dict[str, Place]:
    """Every tensor of a canonical text checkpoint: decoder names, encoder scalars; both stacks where untied."""
    places = {DECODER + name: place for name, place in stack_places(config, "decoder")}
    places |= {DECODER + name: place for name, place in self_conditioning_places(config)}
    places |= {DECODER + name: place for name, place in scalar_places(config, "decoder_scalars")}
    places |= {ENCODER + name: place for name, place in scalar_places(config, "encoder_scalars")}
    if not config.tie_word_embeddings:
        places |= {ENCODER + name: place for name, place in stack_places(config, "own_encoder")}
        places[HEAD] = _whole("own_head", config.vocab_size, config.hidden_size)
    return places


def source_names(config: ModelConfig, layout: Layout) -> dict[str, tuple[str, ...]]:
    """For each canonical name the file names that may hold it, best first; none where the layout has no such tensor."""
    find = _autoregressive_sources if layout == "autoregressive" else _diffusion_sources
    return {name: find(name, config.tie_word_embeddings) for name in checkpoint_places(config)}


def product_places(config: ModelConfig) -> dict[str, Place]:
    """The weights that rows are multiplied with, by their names relative to the decoder's prefix."""
    places = (*stack_places(config, "decoder"), *self_conditioning_places(config))
    return {name: place for name, place in places if len(place.shape) > 1 and not name.startswith("embed_tokens")}


def module_modes(module: str) -> tuple[tuple[Mode, ...], str]:
    """(modes whose passes run an upstream module, its name relative to their prefix); no modes for an unknown one."""
    full = module if module.startswith("model.") else f"model.{module}"
    modes: tuple[tuple[str, tuple[Mode, ...]], ...] = (
        (DECODER, ("decoder",)),
        (ENCODER, ("encoder",)),
        (AUTOREGRESSIVE, ("decoder", "encoder")),
        (AUTOREGRESSIVE_TEXT_ONLY + "layers.", ("decoder", "encoder")),
    )
    for prefix, found in modes:
        if full.startswith(prefix):
            return found, full.removeprefix(prefix.removesuffix("layers."))
    return (), module


def autoregressive_name(name: str) -> str | None:
    """A canonical tensor's name in an autoregressive text model's file, whose layer scalars are the encoder's.

    None for what such a file does not hold.
    """
    relative = name.removeprefix(DECODER).removeprefix(ENCODER)
    is_canvas_only = relative.startswith("self_conditioning.") or (name.startswith(DECODER) and "layer_scalar" in name)
    return None if is_canvas_only else AUTOREGRESSIVE_TEXT_ONLY + relative


def is_skipped(name: str) -> bool:
    """Whether a file tensor belongs to a part we do not have (images, sound) and is never read."""
    prefixes = VISION_PREFIXES + AUTOREGRESSIVE_VISION_PREFIXES + AUTOREGRESSIVE_AUDIO_PREFIXES
    return name.startswith(prefixes)


def _diffusion_sources(name: str, is_tied: bool) -> tuple[str, ...]:
    # A full state dict lists every tied tensor under both prefixes; some fine-tunes keep only one of the two.
    if name.startswith(ENCODER) and name.endswith("layer_scalar"):
        return name, DECODER + name.removeprefix(ENCODER)
    if name.startswith(DECODER) and is_tied:
        return name, ENCODER + name.removeprefix(DECODER)
    return (name,)


def _autoregressive_sources(name: str, is_tied: bool) -> tuple[str, ...]:
    if name == HEAD:
        return (HEAD,)
    relative = name.removeprefix(DECODER).removeprefix(ENCODER)
    if relative.startswith("self_conditioning."):
        return ()
    return AUTOREGRESSIVE + relative, AUTOREGRESSIVE_TEXT_ONLY + relative


def _whole(parameter: str, *shape: int) -> Place:
    return Place(parameter=parameter, start=0, stop=shape[0], shape=shape)


def _rows(parameter: str, start: int, stop: int, width: int) -> Place:
    return Place(parameter=parameter, start=start, stop=stop, shape=(stop - start, width))
