"""Adapter folders that cannot be used give one error that says why; what peft makes of good ones is in tests/parity."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from presswork.errors import CheckpointError
from presswork.models.adapters import LoraConfig
from presswork.testing import tiny_config
from presswork.weights.lora import new_adapter
from presswork.weights.peft_files import CONFIG_FILE, WEIGHTS_FILE, load_adapter, save_adapter

LORA = LoraConfig(rank=2, alpha=4, targets=("*_proj",))
KEY = "base_model.model.model.decoder.layers.0.self_attn.q_proj.lora_A.weight"
OTHER_LAYER, OTHER_KIND = KEY.replace("layers.0", "layers.9"), KEY.replace("lora_A", "lora_magnitude_vector")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_adapter(new_adapter(tiny_config(), LORA), tmp_path, tiny_config(), LORA, "base")
    return tmp_path


def test_a_saved_adapter_comes_back(folder: Path) -> None:
    made, back = new_adapter(tiny_config(), LORA), load_adapter(folder, tiny_config())
    assert back.is_shared
    found = dict(back.named_parameters())
    assert all(torch.equal(found[name], parameter) for name, parameter in made.named_parameters())
    assert not any(parameter.requires_grad for parameter in found.values())


def with_settings(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / CONFIG_FILE
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def with_tensors(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_FILE)
        change(tensors)
        save_file(tensors, folder / WEIGHTS_FILE)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / CONFIG_FILE).unlink(), "it has no adapter_config.json"),
        (lambda folder: (folder / CONFIG_FILE).write_text("{"), "cannot read .*adapter_config.json"),
        (lambda folder: (folder / WEIGHTS_FILE).unlink(), "no adapter_model.safetensors in"),
        (lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"abc"), "is cut short or not a safetensors file"),
        (with_settings(peft_type="IA3"), "peft_type must be LORA, got 'IA3'"),
        (with_settings(use_dora=True), "use_dora is not supported"),
        (with_settings(alora_invocation_tokens=[5, 6]), "alora_invocation_tokens is not supported"),
        (with_settings(bias="all"), "bias is not supported"),
        (with_settings(modules_to_save=["lm_head"]), "modules_to_save is not supported"),
        (with_settings(init_lora_weights="pissa"), "'pissa' changes the model's own weights"),
        (with_settings(lora_alpha="much"), "lora_alpha must be a number, got 'much'"),
        (with_tensors(lambda t: t.pop(KEY)), "holds lora_B of .*q_proj without its other"),
        (with_tensors(lambda t: t.update({KEY: torch.full((2, 16), float("nan"))})), f"{KEY} in .* holds NaN"),
        (with_tensors(lambda t: t.update({KEY: torch.zeros(2, 17)})), r"\[2, 17\] and \[16, 2\], .* another model"),
        (with_tensors(lambda t: t.update({OTHER_LAYER: t[KEY].clone()})), "layers.9.self_attn.q_proj, which"),
        (with_tensors(lambda t: t.update({OTHER_KIND: t[KEY].clone()})), "no factor of a"),
        (with_tensors(lambda t: t.clear()), "holds no factors"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_adapter(folder, tiny_config())
    assert "\n" not in str(caught.value)


def test_factors_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    adapter = new_adapter(tiny_config(), LORA)
    next(adapter.parameters()).data.fill_(float("inf"))
    with pytest.raises(CheckpointError, match="holds NaN or infinity"):
        save_adapter(adapter, tmp_path, tiny_config(), LORA)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prefix", ["model.language_model.", "model.", "language_model."])
def test_an_adapter_of_the_autoregressive_model_serves_both_modes(folder: Path, prefix: str) -> None:
    """Named as its modules are there; without self-conditioning, which it does not have."""
    tensors = {
        name.replace("model.decoder.", prefix): tensor
        for name, tensor in load_file(folder / WEIGHTS_FILE).items()
        if ".encoder." not in name and "self_conditioning" not in name
    }
    save_file(tensors, folder / WEIGHTS_FILE)
    adapter = load_adapter(folder, tiny_config())
    assert adapter.is_shared and adapter.self_conditioning is None
