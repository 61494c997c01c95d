"""An autoregressive folder becomes a diffusion model that still is what it was in causal mode."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from presswork.cache.contiguous import SequenceCache
from presswork.errors import CheckpointError, ConfigError
from presswork.models.transformer import Transformer
from presswork.testing import run_segment, tiny_model
from presswork.weights.config_files import read_generation_config, read_layout
from presswork.weights.convert import convert
from presswork.weights.load import load_model
from tests.weights.folders import write_autoregressive


@pytest.fixture
def model() -> Transformer:
    return tiny_model()


@pytest.fixture
def source(tmp_path: Path, model: Transformer) -> Path:
    """The tiny model's weights as an autoregressive folder, with a file beside them."""
    folder = write_autoregressive(tmp_path / "source", model)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_causal_mode_is_unchanged_and_the_belief_is_silent(tmp_path: Path, source: Path) -> None:
    convert(source, tmp_path / "new", canvas_length=8, extra=[source / "tokenizer.json"])
    assert read_layout(source) == "autoregressive" and read_layout(tmp_path / "new") == "diffusion"
    before, made = load_model(source), load_model(tmp_path / "new")
    assert made.config == replace(before.config, canvas_length=8)
    ids = torch.tensor([3, 9, 27, 4])
    rows = [run_segment(m, m.embed_prompt(ids), SequenceCache(m.config), is_canvas=False) for m in (before, made)]
    assert torch.equal(*rows)
    belief = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.embed_canvas(ids, belief), made.embed_canvas(ids, None))
    assert (tmp_path / "new" / "tokenizer.json").read_text() == "{}"
    settings = read_generation_config(tmp_path / "new")
    assert settings["max_denoising_steps"] == 48 and settings["entropy_bound"] == 0.1


def test_what_cannot_be_converted(tmp_path: Path, source: Path) -> None:
    convert(source, tmp_path / "new")
    with pytest.raises(ConfigError, match="is a diffusion model already"):
        convert(tmp_path / "new", tmp_path / "again")
    with pytest.raises(CheckpointError, match="is there and not an empty folder"):
        convert(source, tmp_path / "new")
    with pytest.raises(ConfigError, match="canvas_length must be a positive integer, got 0"):
        convert(source, tmp_path / "third", canvas_length=0)
    assert not (tmp_path / "third").exists()
