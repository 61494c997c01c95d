"""Folders travel both ways between this package and transformers without changing what the model says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from presswork.cache.contiguous import SequenceCache
from presswork.config import LayerConfig, ModelConfig, RopeConfig
from presswork.models.transformer import Transformer
from presswork.testing import fixture_config, fixture_model, fixture_value, tiny_config
from presswork.weights.config_files import (
    read_config,
    read_end_ids,
    read_layout,
    write_config,
    write_generation_config,
)
from presswork.weights.load import load_model
from presswork.weights.save import save_model
from tests.models.passes import canvas, capped_logits, ids, prefill, run
from tests.parity.oracle import Oracle, transformers, upstream_config

TOLERANCE = 1e-5
UNTIED = fixture_config(tie_word_embeddings=False)
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
TEXT = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 1,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 6, "num_experts": 6,
    "top_k_experts": 2, "moe_intermediate_size": 24, "max_position_embeddings": 512,
    "use_bidirectional_attention": "vision",
}  # fmt: skip
AUTOREGRESSIVE_TEXT = {
    **TEXT, "enable_moe_block": True, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True,
    "final_logit_softcapping": 30.0,
}  # fmt: skip
VISION = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 12, "patch_size": 4, "pooling_kernel_size": 2,
    "position_embedding_size": 32, "standardize": True,
}  # fmt: skip


class LoadedOracle(Oracle):
    """transformers with a model it holds already, instead of one built from ours."""

    def __init__(self, theirs: Any, config: ModelConfig):
        self.model, self.config = theirs.eval().requires_grad_(False), config


def _theirs(config: ModelConfig) -> Any:
    """A transformers model whose every value is away from where it starts."""
    upstream = upstream_config(config)
    upstream._attn_implementation = upstream._experts_implementation = "eager"
    return _filled(transformers.DiffusionGemmaForBlockDiffusion(upstream))


def _filled(theirs: Any) -> Any:
    theirs.eval().requires_grad_(False)
    for name, tensor in theirs.state_dict().items():
        tensor.copy_(fixture_value(name, tuple(tensor.shape)))
    return theirs


def _assert_same_answers(model: Transformer, oracle: Oracle) -> None:
    """A prompt past the window, then a canvas without and one with a belief."""
    tokens, first, second = ids(9, 1), ids(8, 2), ids(8, 3)
    their_cache = oracle.new_cache()
    cache, hidden = prefill(model, tokens)
    _assert_close(hidden, oracle.encode(tokens, their_cache))
    expected = oracle.denoise(first, their_cache)
    _assert_close(capped_logits(model, run(model, [canvas(model, cache, first)])), expected)
    belief = expected / 0.7
    expected = oracle.denoise(second, their_cache, belief)
    _assert_close(capped_logits(model, run(model, [canvas(model, cache, second, belief)])), expected)


def _assert_close(ours: Tensor, theirs: Tensor) -> None:
    # Relative to the largest value: rounding noise alone reaches 3e-5 on values of 4, on both sides of float64.
    assert (ours - theirs).abs().max().item() < TOLERANCE * theirs.abs().max().clamp(min=1).item()


@pytest.mark.parametrize("config", [fixture_config(), UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("max_shard_bytes", [1e9, 30_000])
def test_transformers_loads_what_we_save(tmp_path: Path, config: ModelConfig, max_shard_bytes: float) -> None:
    model = fixture_model(config)
    save_model(model, tmp_path, max_shard_bytes=max_shard_bytes, generation_config={"entropy_bound": 0.3, "t_max": 1})
    upstream: Any = transformers.DiffusionGemmaForBlockDiffusion
    theirs, report = upstream.from_pretrained(tmp_path, output_loading_info=True, **EAGER)
    # The image tower is the one thing a text folder lacks.
    assert {name.split(".")[2] for name in report["missing_keys"]} == {"vision_tower", "embed_vision"}
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert sum(weight.numel() for weight in theirs.model.encoder.vision_tower.parameters()) < 2000
    assert theirs.generation_config.sampler_config.entropy_bound == 0.3
    assert theirs.generation_config.t_max == 1.0
    _assert_same_answers(model, LoadedOracle(theirs, config))


@pytest.mark.parametrize("config", [fixture_config(), UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("max_shard_size", ["1GB", "30KB"])
def test_we_load_what_transformers_saves(tmp_path: Path, config: ModelConfig, max_shard_size: str) -> None:
    theirs = _theirs(config)
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors").exists() == (max_shard_size == "1GB")
    ours = load_model(tmp_path)
    assert ours.config == config
    _assert_same_answers(ours, LoadedOracle(theirs, config))


@pytest.mark.parametrize("config", [fixture_config(), UNTIED], ids=["tied", "untied"])
def test_we_load_a_full_state_dict_of_transformers(tmp_path: Path, config: ModelConfig) -> None:
    theirs = _theirs(config)
    theirs.config.save_pretrained(tmp_path)
    tensors = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    assert "lm_head.weight" in tensors
    save_file(tensors, tmp_path / "model.safetensors")
    _assert_same_answers(load_model(tmp_path), LoadedOracle(theirs, config))


def test_a_folder_survives_the_way_through_transformers(tmp_path: Path) -> None:
    model = fixture_model()
    save_model(model, tmp_path / "ours")
    theirs = transformers.DiffusionGemmaForBlockDiffusion.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back = load_model(tmp_path / "theirs").state_dict()
    for name, tensor in model.state_dict().items():
        assert back[name].equal(tensor), name


def _causal(config: Any) -> tuple[Any, Any]:
    model = _filled(transformers.Gemma4ForCausalLM._from_config(config, attn_implementation="eager"))
    return model, model.model


def _conditional(config: Any) -> tuple[Any, Any]:
    whole = transformers.Gemma4Config(text_config=config, vision_config=VISION)
    whole._experts_implementation = "eager"
    model = _filled(transformers.Gemma4ForConditionalGeneration._from_config(whole, attn_implementation="eager"))
    return model, model.model.language_model


@pytest.mark.parametrize("build", [_causal, _conditional], ids=["text only", "with images"])
def test_an_autoregressive_model_becomes_the_encoder(tmp_path: Path, build: Any) -> None:
    config = transformers.Gemma4TextConfig(**AUTOREGRESSIVE_TEXT)
    config._experts_implementation = "eager"
    theirs, stack = build(config)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.config == fixture_config(canvas_length=256)
    tokens = ids(13, 4)
    expected = stack(input_ids=tokens[None]).last_hidden_state[0]
    assert expected.std() > 0.1
    _assert_close(prefill(ours, tokens)[1], expected)
    # The same arithmetic on the weights we loaded: no rounding between the two.
    oracle = Oracle(ours)
    assert oracle.encode(tokens, oracle.new_cache()).equal(expected)


def test_transformers_loads_what_is_saved_as_an_autoregressive_model(tmp_path: Path) -> None:
    ours = fixture_model()
    save_model(ours, tmp_path, layout="autoregressive", generation_config={"eos_token_id": [1, 9]})
    theirs, report = transformers.Gemma4ForCausalLM.from_pretrained(tmp_path, output_loading_info=True, **EAGER)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    tokens = ids(13, 4)
    expected = theirs.eval()(input_ids=tokens[None]).logits[0]
    _assert_close(capped_logits(ours, prefill(ours, tokens)[1]), expected)
    back = load_model(tmp_path)
    assert back.config == replace(ours.config, canvas_length=256)
    assert torch.equal(back.encoder_scalars, ours.encoder_scalars)
    assert read_layout(tmp_path) == "autoregressive" and read_end_ids(tmp_path) == [1, 9]


def test_a_fresh_decoder_ignores_the_belief(tmp_path: Path) -> None:
    theirs, _ = _causal(transformers.Gemma4TextConfig(**AUTOREGRESSIVE_TEXT))
    theirs.save_pretrained(tmp_path)
    ours, tokens = load_model(tmp_path), ids(8, 5)
    cache = SequenceCache(ours.config)
    plain = run(ours, [canvas(ours, cache, tokens)])
    assert run(ours, [canvas(ours, cache, tokens, torch.randn(8, 64))]).equal(plain)


CONFIGS = {
    "fixture": fixture_config(),
    "untied": UNTIED,
    "same heads": tiny_config(),
    "no sliding layers": tiny_config(layers=(LayerConfig(kind="full", head_dim=6, num_key_value_heads=2),) * 2),
    "scaled rope": tiny_config(
        sliding_rope=RopeConfig(theta=50.0, factor=4.0),
        full_rope=RopeConfig(theta=9e4, proportional=True, rotary_fraction=0.5, factor=3.0),
    ),
    "own numbers": tiny_config(
        rms_norm_eps=1e-5, final_logit_softcapping=7.5, canvas_length=5, sliding_window=3, initializer_range=0.1,
        pad_token_id=7, eos_token_id=8, bos_token_id=9,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_survives_the_way_through_transformers(tmp_path: Path, name: str) -> None:
    write_config(CONFIGS[name], tmp_path / "ours", torch.float32)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    resaved = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert "global_head_dim" not in resaved["text_config"]
    assert read_config(tmp_path / "theirs") == CONFIGS[name]


def test_a_default_config_reads_as_transformers_defaults(tmp_path: Path) -> None:
    text = transformers.DiffusionGemmaTextConfig(num_experts=4, top_k_experts=2, moe_intermediate_size=8)
    transformers.DiffusionGemmaConfig(text_config=text).save_pretrained(tmp_path / "resaved")
    minimal = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 8}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "diffusion_gemma", "text_config": minimal}))
    assert read_config(tmp_path) == read_config(tmp_path / "resaved")


def test_transformers_reads_our_generation_settings(tmp_path: Path) -> None:
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import DiffusionGemmaGenerationConfig

    settings = {
        "max_new_tokens": 32, "max_length": 99, "max_denoising_steps": 6, "entropy_bound": 1, "t_min": 0, "t_max": 1,
        "stability_threshold": 2, "confidence_threshold": 1, "bos_token_id": 2, "eos_token_id": [1, 5],
        "pad_token_id": 0,
    }  # fmt: skip
    write_generation_config(tmp_path, settings)
    theirs: Any = DiffusionGemmaGenerationConfig.from_pretrained(tmp_path)
    assert theirs.sampler_config.entropy_bound == 1.0
    for name in settings.keys() - {"entropy_bound"}:
        assert getattr(theirs, name) == settings[name], name
