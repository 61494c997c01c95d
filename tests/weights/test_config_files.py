"""config.json and generation_config.json: every form in circulation is read, what we cannot honour is refused."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from presswork.config import LayerConfig, RopeConfig
from presswork.errors import CheckpointError, ConfigError
from presswork.testing import fixture_config, tiny_config
from presswork.weights.config_files import (
    read_config,
    read_generation_config,
    read_layout,
    write_config,
    write_generation_config,
)

RELEASED_TEXT: dict[str, Any] = {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2, "eos_token_id": 1,
    "final_logit_softcapping": 30.0, "global_head_dim": 512, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2816, "initializer_range": 0.02,
    "intermediate_size": 2112, "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
    "max_position_embeddings": 262144, "model_type": "diffusion_gemma_text", "moe_intermediate_size": 704,
    "num_attention_heads": 16, "num_experts": 128, "num_global_key_value_heads": 2, "num_hidden_layers": 30,
    "num_key_value_heads": 8, "pad_token_id": 0, "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "sliding_window": 1024, "tie_word_embeddings": True, "top_k_experts": 8,
    "use_bidirectional_attention": "vision", "vocab_size": 262144,
}  # fmt: skip
AUTOREGRESSIVE_TEXT = {
    **RELEASED_TEXT, "model_type": "gemma4_text", "attention_k_eq_v": True, "enable_moe_block": True,
    "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "use_double_wide_mlp": False,
}  # fmt: skip


def _without(section: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in names}


def _folder(path: Path, text: dict[str, Any], **top: Any) -> Path:
    content = {"model_type": "diffusion_gemma", "canvas_length": 256, "eos_token_id": [1, 106], "text_config": text}
    (path / "config.json").write_text(json.dumps({**content, **top}))
    return path


def test_the_released_file_is_the_released_model(tmp_path: Path) -> None:
    config = read_config(_folder(tmp_path, RELEASED_TEXT))
    sliding = LayerConfig(kind="sliding", head_dim=256, num_key_value_heads=8)
    full = LayerConfig(kind="full", head_dim=512, num_key_value_heads=2)
    assert config.layers == ((sliding,) * 5 + (full,)) * 5
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (262144, 2816, 2112)
    assert (config.num_experts, config.top_k_experts, config.moe_intermediate_size) == (128, 8, 704)
    assert (config.num_attention_heads, config.sliding_window, config.canvas_length) == (16, 1024, 256)
    assert config.sliding_rope == RopeConfig(theta=1e4)
    assert config.full_rope == RopeConfig(theta=1e6, proportional=True, rotary_fraction=0.25)
    assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == (0, 1, 2)
    assert (config.final_logit_softcapping, config.max_position_embeddings) == (30.0, 262144)
    assert config.tie_word_embeddings


def test_a_resaved_file_says_the_same_as_the_released_one(tmp_path: Path) -> None:
    # transformers writes string indices, padded to equal length, and leaves the softcap out.
    released = read_config(_folder(tmp_path, RELEASED_TEXT))
    resaved = _without(
        RELEASED_TEXT, "global_head_dim", "num_global_key_value_heads", "final_logit_softcapping", "layer_types"
    )
    resaved["per_layer_config"] = {f"{i:02d}": {"head_dim": 512, "num_key_value_heads": 2} for i in range(5, 30, 6)}
    assert read_config(_folder(tmp_path, resaved)) == released


def test_per_layer_config_wins_over_the_legacy_keys(tmp_path: Path) -> None:
    text = {**RELEASED_TEXT, "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    config = read_config(_folder(tmp_path, {**text, "per_layer_config": {"1": {"head_dim": 64}}}))
    assert config.layers[1] == LayerConfig(kind="full", head_dim=64, num_key_value_heads=8)
    config = read_config(_folder(tmp_path, {**text, "per_layer_config": {}}))
    assert config.layers[1] == LayerConfig(kind="full", head_dim=256, num_key_value_heads=8)


def test_missing_keys_take_the_defaults_of_the_reference(tmp_path: Path) -> None:
    text = {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 16}
    config = read_config(_folder(tmp_path, text))
    assert [i for i, layer in enumerate(config.layers) if layer.is_full] == [5, 11, 17, 23, 29]
    assert config.layers[0] == LayerConfig(kind="sliding", head_dim=256, num_key_value_heads=4)
    assert config.layers[5] == LayerConfig(kind="full", head_dim=512, num_key_value_heads=4)
    assert (config.hidden_size, config.intermediate_size, config.num_attention_heads) == (2304, 9216, 8)
    assert (config.sliding_window, config.max_position_embeddings, config.rms_norm_eps) == (512, 131072, 1e-6)
    assert config.full_rope == RopeConfig(theta=1e6, proportional=True, rotary_fraction=0.25)


def test_a_sliding_last_layer_is_read_as_full_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = {**RELEASED_TEXT, "num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]}
    with caplog.at_level(logging.WARNING):
        config = read_config(_folder(tmp_path, text))
    assert config.layers[1] == LayerConfig(kind="full", head_dim=512, num_key_value_heads=2)
    assert "last layer" in caplog.text


def test_rope_types_and_factors(tmp_path: Path) -> None:
    ropes = {
        "sliding_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 8.0},
        "full_attention": {"rope_type": "proportional", "rope_theta": 1e5, "partial_rotary_factor": 0.5, "factor": 2},
    }
    config = read_config(_folder(tmp_path, {**RELEASED_TEXT, "rope_parameters": ropes}))
    assert config.sliding_rope == RopeConfig(theta=500.0, factor=8.0)
    assert config.full_rope == RopeConfig(theta=1e5, proportional=True, rotary_fraction=0.5, factor=2.0)


def test_a_model_of_full_layers_needs_no_sliding_rope(tmp_path: Path) -> None:
    text = {**RELEASED_TEXT, "num_hidden_layers": 1, "layer_types": ["full_attention"]}
    text["rope_parameters"] = {"full_attention": {"rope_type": "default", "rope_theta": 77.0}}
    assert read_config(_folder(tmp_path, text)).full_rope == RopeConfig(theta=77.0)


def test_the_outer_tie_flag_rules_as_upstream(tmp_path: Path) -> None:
    assert not read_config(_folder(tmp_path, RELEASED_TEXT, tie_word_embeddings=False)).tie_word_embeddings
    untied_inside = {**RELEASED_TEXT, "tie_word_embeddings": False}
    assert read_config(_folder(tmp_path, untied_inside, tie_word_embeddings=True)).tie_word_embeddings


def test_an_autoregressive_model_reads_as_the_same_architecture(tmp_path: Path) -> None:
    released = read_config(_folder(tmp_path, RELEASED_TEXT))
    assert read_layout(tmp_path) == "diffusion"
    assert read_config(_folder(tmp_path, AUTOREGRESSIVE_TEXT, model_type="gemma4")) == released
    assert read_layout(tmp_path) == "autoregressive"
    (tmp_path / "config.json").write_text(json.dumps(AUTOREGRESSIVE_TEXT))
    assert read_config(tmp_path) == released
    assert read_layout(tmp_path) == "autoregressive"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention.*'all'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"num_experts": None}, "num_experts is missing"),
        ({"top_k_experts": None}, "top_k_experts is missing"),
        ({"top_k_experts": 200}, "top_k_experts must lie in"),
        ({"hidden_activation": "silu"}, "hidden_activation.*'silu'"),
        ({"final_logit_softcapping": None}, "final_logit_softcapping"),
        ({"hidden_size": "2816"}, "hidden_size must be an integer, got '2816'"),
        ({"hidden_size": 2816.5}, "hidden_size must be an integer"),
        ({"hidden_size": True}, "hidden_size must be an integer"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a number"),
        ({"attention_bias": "no"}, "attention_bias must be true or false"),
        ({"layer_types": ["full_attention"]}, "layer_types must list num_hidden_layers"),
        ({"layer_types": ["full_attention", [1]], "num_hidden_layers": 2}, "layer_types must hold"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be positive"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "sliding_attention is missing"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}}, "rope_type.*'yarn'"),
        ({"rope_parameters": {"sliding_attention": {"rope_theta": 9.0, "factor": 2}}}, "factor"),
        ({"rope_parameters": {"sliding_attention": {"rope_theta": 9.0, "partial_rotary_factor": 0.5}}}, "rotary"),
        ({"rope_parameters": {"sliding_attention": {}}}, "sliding_attention: rope_theta is missing"),
        ({"per_layer_config": {"30": {"head_dim": 64}}}, "keys must be layer indices below 30, got '30'"),
        ({"per_layer_config": {"sliding_attention": {}}}, "keys must be layer indices"),
        ({"per_layer_config": {"5": {"sliding_window": 3}}}, "sliding_window cannot differ by layer"),
        ({"per_layer_config": {"5": {"skip": ["mlp"]}}}, "skip cannot differ by layer"),
        ({"per_layer_config": {"5": {"head_dim": 64}}}, "all full layers must share one head_dim"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised checkpoints are not supported yet"),
    ],
)
def test_what_we_cannot_honour_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = _folder(tmp_path, {**RELEASED_TEXT, **changes})
    with pytest.raises(CheckpointError, match=message) as caught:
        read_config(folder)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enable_moe_block", False),
        ("hidden_size_per_layer_input", 256),
        ("num_kv_shared_layers", 4),
        ("use_double_wide_mlp", True),
        ("attention_k_eq_v", False),
        ("final_logit_softcapping", None),
    ],
)
def test_autoregressive_features_we_lack_are_refused_by_name(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=name):
        read_config(_folder(tmp_path, {**AUTOREGRESSIVE_TEXT, name: value}, model_type="gemma4"))


@pytest.mark.parametrize("name", ["enable_moe_block", "hidden_size_per_layer_input", "attention_k_eq_v"])
def test_a_missing_autoregressive_key_means_upstreams_default(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=name):
        read_config(_folder(tmp_path, _without(AUTOREGRESSIVE_TEXT, name), model_type="gemma4"))


@pytest.mark.parametrize("model_type", ["llama", "gemma4_unified", None, ["gemma4"]])
def test_other_families_are_refused_with_the_accepted_ones(tmp_path: Path, model_type: Any) -> None:
    with pytest.raises(CheckpointError, match="accepted: diffusion_gemma, gemma4, gemma4_text"):
        read_config(_folder(tmp_path, RELEASED_TEXT, model_type=model_type))


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        read_config(tmp_path)
    for content, message in (("{", "not valid JSON"), ("[1]", "must hold a JSON object, got list"), ("\xff", "JSON")):
        (tmp_path / "config.json").write_text(content, encoding="latin-1")
        with pytest.raises(CheckpointError, match=message):
            read_config(tmp_path)
    with pytest.raises(CheckpointError, match="text_config must be an object"):
        read_config(_folder(tmp_path, [1, 2]))  # type: ignore[arg-type]


CONFIGS = {
    "fixture": fixture_config(),
    "untied": tiny_config(tie_word_embeddings=False),
    "unlike": tiny_config(
        sliding_rope=RopeConfig(theta=50.0, factor=4.0),
        full_rope=RopeConfig(theta=9e4, proportional=True, rotary_fraction=0.5, factor=3.0),
        rms_norm_eps=1e-5, final_logit_softcapping=7.5, canvas_length=5, sliding_window=3, initializer_range=0.1,
        pad_token_id=7, eos_token_id=8, bos_token_id=9, max_position_embeddings=99,
    ),
    "full only": tiny_config(layers=(LayerConfig(kind="full", head_dim=6, num_key_value_heads=2),)),
    "heads by layer": tiny_config(
        layers=tuple(LayerConfig(kind="full", head_dim=6, num_key_value_heads=heads) for heads in (1, 2))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    write_config(CONFIGS[name], tmp_path / "new", torch.bfloat16)
    assert read_config(tmp_path / "new") == CONFIGS[name]
    assert json.loads((tmp_path / "new" / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_released_generation_defaults_are_read_flat(tmp_path: Path) -> None:
    released = {
        "confidence_threshold": 0.005, "eos_token_id": [1, 106, 50], "max_denoising_steps": 48, "max_new_tokens": 256,
        "pad_token_id": 0, "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
        "stability_threshold": 1, "t_max": 0.8, "t_min": 0.4, "transformers_version": "5.8.0.dev0",
    }  # fmt: skip
    (tmp_path / "generation_config.json").write_text(json.dumps(released))
    assert read_generation_config(tmp_path) == {
        "confidence_threshold": 0.005, "eos_token_id": [1, 106, 50], "max_denoising_steps": 48, "max_new_tokens": 256,
        "pad_token_id": 0, "entropy_bound": 0.1, "stability_threshold": 1, "t_max": 0.8, "t_min": 0.4,
    }  # fmt: skip


def test_no_generation_config_means_no_defaults(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == {}


def test_unset_and_foreign_generation_fields_are_left_out(tmp_path: Path) -> None:
    content = {"t_min": None, "sampler_config": None, "temperature": 1.0, "do_sample": True, "t_max": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert read_generation_config(tmp_path) == {"t_max": 1.0}


@pytest.mark.parametrize(
    "content",
    [
        {"sampler_config": {"_cls_name": "Other", "entropy_bound": 0.1}},
        {"sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": "much"}},
        {"max_new_tokens": 2.5},
        {"eos_token_id": [1, "2"]},
    ],
)
def test_malformed_generation_fields_are_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"generation_config.json"):
        read_generation_config(tmp_path)


def test_generation_settings_survive_a_round_trip(tmp_path: Path) -> None:
    settings = {"entropy_bound": 1, "t_min": 0, "t_max": 0.5, "max_denoising_steps": 7, "eos_token_id": [3, 4]}
    write_generation_config(tmp_path, {**settings, "max_length": None})
    assert read_generation_config(tmp_path) == settings
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert isinstance(written["sampler_config"]["entropy_bound"], float)


def test_an_unknown_generation_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown generation setting top_p.*accepted: max_new_tokens"):
        write_generation_config(tmp_path, {"top_p": 0.9})
    assert list(tmp_path.iterdir()) == []
