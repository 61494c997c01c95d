"""Reads and writes config.json and generation_config.json in the upstream formats.

Two kinds of model folder are read: diffusion models, and autoregressive mixture-of-experts models of the same
architecture, from which a diffusion model can start.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from presswork.config import LayerConfig, LayerKind, ModelConfig, RopeConfig
from presswork.errors import ConfigError
from presswork.weights.files import CONFIG_FILE, GENERATION_CONFIG_FILE, read_json, write_json
from presswork.weights.names import Layout
from presswork.weights.section import Section

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_KINDS: dict[str, LayerKind] = {"sliding_attention": "sliding", "full_attention": "full"}
_LAYOUTS: dict[str, Layout] = {
    "diffusion_gemma": "diffusion", "gemma4": "autoregressive", "gemma4_text": "autoregressive",
}  # fmt: skip
_DEFAULT_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
}
_FULL_EVERY = 6

# transformers builds a vision tower whatever the folder holds; this is about the smallest it accepts.
_NO_VISION = {
    "model_type": "gemma4_vision", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "patch_size": 2, "pooling_kernel_size": 2,
    "position_embedding_size": 4,
}  # fmt: skip

GENERATION_FIELDS = (
    "max_new_tokens", "max_length", "max_denoising_steps", "entropy_bound", "t_min", "t_max", "stability_threshold",
    "confidence_threshold", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
_SAMPLER = "EntropyBoundSamplerConfig"
_FLOAT_FIELDS = ("entropy_bound", "t_min", "t_max", "confidence_threshold")


def read_config(folder: str | Path) -> ModelConfig:
    """The architecture in a model folder's config.json, in any of the forms in circulation.

    Raises:
        CheckpointError: the file is missing or malformed, or asks for something this package does not have.
    Source: spec of the released model, section 1; transformers' `diffusion_gemma` and `gemma4`.
    """
    top, text, layout = _open(Path(folder))
    _refuse_unsupported(top, text, layout)
    try:
        return _model_config(top, text, layout)
    except ConfigError as error:
        raise text.fail(str(error)) from error


def read_layout(folder: str | Path) -> Layout:
    """Whether a folder holds a diffusion model or an autoregressive one to start from.

    Raises:
        CheckpointError: config.json is missing, malformed, or of another family.
    """
    return _open(Path(folder))[2]


def _open(folder: Path) -> tuple[Section, Section, Layout]:
    top = Section(values=read_json(folder / CONFIG_FILE), where=str(folder / CONFIG_FILE))
    model_type = top.values.get("model_type")
    if not isinstance(model_type, str) or model_type not in _LAYOUTS:
        raise top.fail(f"model_type {model_type!r} is not supported; accepted: {', '.join(_LAYOUTS)}")
    text = top if model_type == "gemma4_text" else top.section("text_config")
    return top, text, _LAYOUTS[model_type]


def _refuse_unsupported(top: Section, text: Section, layout: Layout) -> None:
    for section in (top, text):
        if section.values.get("quantization_config") is not None:
            raise section.fail("quantization_config: quantised checkpoints are not supported yet; use the original one")
    activation = text.values.get("hidden_activation", "gelu_pytorch_tanh")
    if activation != "gelu_pytorch_tanh":
        raise text.fail(f"hidden_activation must be 'gelu_pytorch_tanh', got {activation!r}")
    if text.values.get("use_bidirectional_attention") not in (None, "vision"):
        got = text.values["use_bidirectional_attention"]
        raise text.fail(f"use_bidirectional_attention must be null or 'vision', got {got!r}")
    if text.flag("attention_bias", False):
        raise text.fail("attention_bias true is not supported; accepted: false")
    if layout == "autoregressive":
        _refuse_unsupported_autoregressive(text)
    if text.values.get("num_experts") is None:
        raise text.fail("num_experts is missing; every layer of the architecture has experts")


def _refuse_unsupported_autoregressive(text: Section) -> None:
    # Missing keys take upstream's defaults, which for these models are not what we need.
    if not text.flag("enable_moe_block", False):
        raise text.fail("enable_moe_block must be true: only mixture-of-experts models can become a diffusion model")
    if text.integer("hidden_size_per_layer_input", 256) != 0:
        raise text.fail("hidden_size_per_layer_input must be 0: per-layer inputs are not supported")
    if text.integer("num_kv_shared_layers", 0) != 0:
        raise text.fail("num_kv_shared_layers must be 0: layers that share keys and values are not supported")
    if text.flag("use_double_wide_mlp", False):
        raise text.fail("use_double_wide_mlp true is not supported; accepted: false")
    if not text.flag("attention_k_eq_v", False):
        raise text.fail("attention_k_eq_v must be true: full attention layers with own values are not supported")
    if text.values.get("final_logit_softcapping") is None:
        raise text.fail("final_logit_softcapping is missing; a model without a cap on its logits is not supported")


def _model_config(top: Section, text: Section, layout: Layout) -> ModelConfig:
    layers = _layers(text, _layer_kinds(text))
    if text.values.get("final_logit_softcapping", 30.0) is None:
        raise text.fail("final_logit_softcapping must be a number, got null")
    kinds = {layer.kind for layer in layers}
    return ModelConfig(
        vocab_size=text.integer("vocab_size", 262144),
        hidden_size=text.integer("hidden_size", 2304),
        intermediate_size=text.integer("intermediate_size", 9216),
        num_attention_heads=text.integer("num_attention_heads", 8),
        layers=layers,
        num_experts=text.integer("num_experts"),
        top_k_experts=text.integer("top_k_experts"),
        moe_intermediate_size=text.integer("moe_intermediate_size"),
        sliding_window=text.integer("sliding_window", 512),
        canvas_length=top.integer("canvas_length", 256) if layout == "diffusion" else 256,
        sliding_rope=_rope(text, "sliding_attention", "sliding" in kinds),
        full_rope=_rope(text, "full_attention", "full" in kinds),
        rms_norm_eps=text.number("rms_norm_eps", 1e-6),
        final_logit_softcapping=text.number("final_logit_softcapping", 30.0),
        max_position_embeddings=text.integer("max_position_embeddings", 131072),
        # The outer flag undoes every tie, the inner one is not read: upstream's way.
        tie_word_embeddings=top.flag("tie_word_embeddings", True),
        initializer_range=text.number("initializer_range", 0.02),
        pad_token_id=text.token_id("pad_token_id", 0),
        eos_token_id=text.token_id("eos_token_id", 1),
        bos_token_id=text.token_id("bos_token_id", 2),
    )


def _layer_kinds(text: Section) -> list[LayerKind]:
    num_layers = text.integer("num_hidden_layers", 30)
    if num_layers < 1:
        raise text.fail(f"num_hidden_layers must be positive, got {num_layers}")
    names = text.values.get("layer_types")
    if names is None:
        names = ["sliding_attention" if (i + 1) % _FULL_EVERY else "full_attention" for i in range(num_layers)]
    if not isinstance(names, list) or len(names) != num_layers:
        raise text.fail(f"layer_types must list num_hidden_layers ({num_layers}) names, got {names!r}")
    for name in names:
        if name not in list(_KINDS):
            raise text.fail(f"layer_types must hold {' or '.join(_KINDS)}, got {name!r}")
    kinds: list[LayerKind] = [_KINDS[name] for name in names]
    if kinds[-1] != "full":
        logger.warning("%s: the last layer must be a full attention layer; it is read as one", text.where)
        kinds[-1] = "full"
    return kinds


def _layers(text: Section, kinds: list[LayerKind]) -> tuple[LayerConfig, ...]:
    head_dim, num_heads = text.integer("head_dim", 256), text.integer("num_key_value_heads", 4)
    if text.values.get("per_layer_config") is not None:
        overrides = _overrides(text, len(kinds))
    else:
        full = {
            "head_dim": text.integer("global_head_dim", 512),
            "num_key_value_heads": text.integer("num_global_key_value_heads", num_heads),
        }
        overrides = {i: full for i, kind in enumerate(kinds) if kind == "full"}
    shared = {"head_dim": head_dim, "num_key_value_heads": num_heads}
    return tuple(LayerConfig(kind=kind, **{**shared, **overrides.get(i, {})}) for i, kind in enumerate(kinds))


def _overrides(text: Section, num_layers: int) -> dict[int, dict[str, int]]:
    per_layer = text.section("per_layer_config", {})
    overrides: dict[int, dict[str, int]] = {}
    for key in per_layer.values:
        if not str(key).isdecimal() or int(key) >= num_layers:
            raise per_layer.fail(f"keys must be layer indices below {num_layers}, got {key!r}")
        layer = per_layer.section(key)
        for name in layer.values:
            if name not in ("head_dim", "num_key_value_heads"):
                raise layer.fail(f"{name} cannot differ by layer; accepted: head_dim, num_key_value_heads")
        overrides[int(key)] = {name: layer.integer(name) for name in layer.values}
    return overrides


def _rope(text: Section, layer_type: str, is_used: bool) -> RopeConfig:
    ropes = text.section("rope_parameters", _DEFAULT_ROPES)
    rope = ropes.section(layer_type, None if is_used else _DEFAULT_ROPES[layer_type])
    rope_type = rope.values.get("rope_type", "default")
    if rope_type not in ("default", "linear", "proportional"):
        raise rope.fail(f"rope_type must be default, linear or proportional, got {rope_type!r}")
    factor = rope.number("factor", 1.0)
    if rope_type == "default" and factor != 1:
        raise rope.fail(f"a factor needs rope_type linear or proportional, got factor {factor} with default")
    return RopeConfig(
        theta=rope.number("rope_theta"),
        proportional=rope_type == "proportional",
        rotary_fraction=rope.number("partial_rotary_factor", 1.0),
        factor=factor,
    )


def write_config(config: ModelConfig, folder: str | Path, dtype: "torch.dtype", layout: Layout = "diffusion") -> None:
    """Write config.json in the released file's form, so that transformers loads the folder too.

    Args:
        dtype: storage dtype of the weights beside it.
        layout: an autoregressive folder's file does not say the canvas's length.
    """
    if layout == "autoregressive":
        content = {
            **_text_config(config), "model_type": "gemma4_text", "architectures": ["Gemma4ForCausalLM"],
            "dtype": str(dtype).removeprefix("torch."), "enable_moe_block": True, "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0, "attention_k_eq_v": True,
        }  # fmt: skip
        write_json(Path(folder) / CONFIG_FILE, content)
        return
    content = {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "model_type": "diffusion_gemma",
        "dtype": str(dtype).removeprefix("torch."),
        "canvas_length": config.canvas_length,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "text_config": _text_config(config),
        "vision_config": _NO_VISION,
    }
    write_json(Path(folder) / CONFIG_FILE, content)


def _text_config(config: ModelConfig) -> dict[str, Any]:
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_experts", "top_k_experts",
            "moe_intermediate_size", "sliding_window", "rms_norm_eps", "final_logit_softcapping",
            "max_position_embeddings", "tie_word_embeddings", "initializer_range", "pad_token_id", "eos_token_id",
            "bos_token_id")  # fmt: skip
    names = {kind: name for name, kind in _KINDS.items()}
    return {
        "model_type": "diffusion_gemma_text",
        **{name: getattr(config, name) for name in same},
        **_layer_shapes(config),
        "num_hidden_layers": config.num_layers,
        "layer_types": [names[layer.kind] for layer in config.layers],
        "rope_parameters": {
            "sliding_attention": _rope_parameters(config.sliding_rope),
            "full_attention": _rope_parameters(config.full_rope),
        },
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "use_bidirectional_attention": "vision",
    }


def _layer_shapes(config: ModelConfig) -> dict[str, Any]:
    """The released file's two pairs of keys where they can say it, else one entry a layer."""
    full = config.layers[-1]
    sliding = next((layer for layer in config.layers if not layer.is_full), full)
    shapes: dict[str, Any] = {"head_dim": sliding.head_dim, "num_key_value_heads": sliding.num_key_value_heads}
    if len(set(config.layers)) == len({layer.kind for layer in config.layers}):
        same_heads = full.num_key_value_heads == sliding.num_key_value_heads
        num_global = None if same_heads else full.num_key_value_heads
        return {**shapes, "global_head_dim": full.head_dim, "num_global_key_value_heads": num_global}
    shapes["per_layer_config"] = {
        str(i): {"head_dim": layer.head_dim, "num_key_value_heads": layer.num_key_value_heads}
        for i, layer in enumerate(config.layers)
    }
    return shapes


def _rope_parameters(rope: RopeConfig) -> dict[str, Any]:
    written: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.factor != 1:
        written |= {"rope_type": "linear", "factor": rope.factor}
    if rope.proportional:
        written |= {"rope_type": "proportional", "partial_rotary_factor": rope.rotary_fraction}
    return written


def read_generation_config(folder: str | Path) -> dict[str, Any]:
    """The sampling defaults in a folder's generation_config.json; empty where there is no such file.

    Returns: the fields of GENERATION_FIELDS that are set, the sampler's settings among them.
    Raises:
        CheckpointError: the file is malformed, a value has the wrong type, or the sampler is unknown.
    """
    path = Path(folder) / GENERATION_CONFIG_FILE
    if not path.is_file():
        return {}
    top = Section(values=read_json(path), where=str(path))
    sampler = top.section("sampler_config", {})
    if sampler.values and sampler.values.get("_cls_name") != _SAMPLER:
        raise sampler.fail(f"the sampler must be {_SAMPLER}, got {sampler.values.get('_cls_name')!r}")
    values = Section(values={**top.values, "entropy_bound": sampler.values.get("entropy_bound")}, where=str(path))
    ignored = sorted(set(top.values) - {*GENERATION_FIELDS, "sampler_config"})
    logger.debug("%s: not a diffusion model's settings, ignored: %s", path, ", ".join(ignored))
    return {name: _generation_value(values, name) for name in GENERATION_FIELDS if values.values.get(name) is not None}


def read_end_ids(folder: str | Path) -> list[int]:
    """The tokens that end a reply, sorted: generation_config.json's, else those config.json names anywhere.

    Raises:
        CheckpointError: a file is malformed, or a value is neither a token id nor a list of some.
    """
    chosen = read_generation_config(folder).get("eos_token_id")
    if chosen is not None:
        return chosen
    path = Path(folder) / CONFIG_FILE
    top = Section(values=read_json(path), where=str(path))
    sections = [top, *([top.section("text_config")] if top.values.get("text_config") is not None else [])]
    found = {token for section in sections for token in section.token_ids("eos_token_id", [])}
    return sorted(found) or [top.token_id("eos_token_id", 1)]


def _generation_value(values: Section, name: str) -> Any:
    if name == "eos_token_id":
        return values.token_ids(name)
    return values.number(name) if name in _FLOAT_FIELDS else values.integer(name)


def write_generation_config(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Write generation_config.json in the upstream form.

    Args:
        settings: fields of GENERATION_FIELDS; None leaves one out.
    Raises:
        ConfigError: as check_generation_settings.
    """
    check_generation_settings(settings)
    # transformers rejects whole numbers written as integers where it wants a float.
    content = {
        name: float(value) if name in _FLOAT_FIELDS else value for name, value in settings.items() if value is not None
    }
    if "entropy_bound" in content:
        content["sampler_config"] = {"_cls_name": _SAMPLER, "entropy_bound": content.pop("entropy_bound")}
    write_json(Path(folder) / GENERATION_CONFIG_FILE, content)


def check_generation_settings(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for a value of another type than its field's, or an unknown name.

    transformers would refuse to load a folder with a name that a diffusion model has no use for.
    """
    unknown = sorted(set(settings) - set(GENERATION_FIELDS))
    if unknown:
        accepted = ", ".join(GENERATION_FIELDS)
        raise ConfigError(f"unknown generation setting {', '.join(unknown)}; accepted: {accepted}")
    for name, value in settings.items():
        kinds = (int, float) if name in _FLOAT_FIELDS else (int,)
        listed = value if name == "eos_token_id" and isinstance(value, list | tuple) else [value]
        if value is not None and not all(isinstance(one, kinds) and not isinstance(one, bool) for one in listed):
            wanted = "a number" if name in _FLOAT_FIELDS else "a whole number"
            wanted += ", or a list of some" if name == "eos_token_id" else ""
            raise ConfigError(f"generation setting {name} must be {wanted}, got {value!r}")
