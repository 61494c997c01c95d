"""From a folder to an engine: what the small files decide, and that they are looked at before the weights."""

import json
from pathlib import Path

import pytest
import torch

import presswork
from presswork.errors import CheckpointError
from presswork.testing import tiny_model
from presswork.weights.save import save_model
from tests.weights.folders import edit_json


@pytest.fixture
def folder(tmp_path) -> Path:
    save_model(tiny_model().to(torch.bfloat16), tmp_path)
    return tmp_path


def load(folder: Path):
    """An engine, and how often weights were read."""
    reads: list[int] = []
    return presswork.load(folder, progress=lambda done, total: reads.append(done)), reads


@pytest.mark.parametrize(
    ("top", "text", "generation", "expected"),
    [
        ([1, 9], 1, None, {1, 9}), (None, [1, 7], None, {1, 7}), (5, [1, 7], None, {1, 5, 7}),
        ([1, 9], 1, [3, 4], {3, 4}), ([1, 9], 1, 6, {6}),
    ],
)  # fmt: skip
def test_end_tokens_come_from_the_generation_config_or_from_everywhere_else(folder, top, text, generation, expected):
    edit_json(folder / "config.json", eos_token_id=top)
    edit_json(folder / "config.json", section="text_config", eos_token_id=text)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert load(folder)[0].end_ids == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eos_token_id": []}, "eos_token_id must be a token id or a list of some"),
        ({"eos_token_id": [-3]}, "eos_token_id must be a token id or a list of some"),
        ({"t_min": 2.0}, "t_min must lie in"),
        ({"max_denoising_steps": 0}, "max_denoising_steps must be an integer of at least 1"),
    ],
)
def test_settings_no_request_could_have_are_the_files_fault(folder, settings, message):
    (folder / "generation_config.json").write_text(json.dumps(settings))
    reads: list[int] = []
    with pytest.raises(CheckpointError, match=f"generation_config.json: {message}"):
        presswork.load(folder, progress=lambda done, total: reads.append(done))
    assert not reads


def test_a_broken_tokenizer_is_found_before_the_weights_are_read(folder):
    (folder / "tokenizer.json").write_text("{")
    reads: list[int] = []
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        presswork.load(folder, progress=lambda done, total: reads.append(done))
    assert not reads


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(folder):
    presswork.load("sudoku").tokenizer._library.save(str(folder / "tokenizer.json"))  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match="has 832 tokens and the model 64"):
        presswork.load(folder)


def test_a_deeply_nested_file_is_not_valid_json(folder):
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="not valid JSON"):
        presswork.load(folder)


@pytest.mark.parametrize("value", [float("inf"), 10**400])
def test_numbers_must_be_finite(folder, value):
    edit_json(folder / "config.json", section="text_config", final_logit_softcapping=value)
    with pytest.raises(CheckpointError, match="final_logit_softcapping must be a finite number"):
        presswork.load(folder)


def test_a_null_per_layer_config_counts_as_missing(folder):
    edit_json(folder / "config.json", section="text_config", per_layer_config=None)
    assert load(folder)[0].model.config.layers[1].head_dim == 16


def test_an_alias_of_another_shape_is_refused(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros(2, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight .* has shape \[2\]"):
        presswork.load(folder)


def test_an_autoregressive_checkpoint_generates_in_ar_mode(folder, monkeypatch):
    monkeypatch.setattr("presswork.engine.loader.read_layout", lambda folder: "autoregressive")
    engine, _ = load(folder)
    assert engine.defaults.mode == "ar"
    assert engine.generate(prompt_token_ids=[2, 3], max_tokens=3, ignore_eos=True).stats.num_denoise_steps == 0
