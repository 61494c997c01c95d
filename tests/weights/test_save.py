"""Saving: what is written loads back bit-equal, and a failed save leaves what was there."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from presswork.config import ModelConfig
from presswork.errors import CheckpointError, ConfigError
from presswork.testing import fixture_config, fixture_model, tiny_config
from presswork.weights.config_files import read_config, read_generation_config
from presswork.weights.initialise import random_model
from presswork.weights.load import load_model
from presswork.weights.names import DECODER, ENCODER
from presswork.weights.save import save_model
from tests.weights.folders import assert_same_weights, named_tensors

UNTIED = tiny_config(tie_word_embeddings=False)


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("config", [fixture_config(), UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_saved_model_loads_back_bit_equal(tmp_path: Path, config: ModelConfig, dtype: torch.dtype) -> None:
    model = fixture_model(config).to(dtype)
    save_model(model, tmp_path / "deep" / "new")
    assert_same_weights(load_model(tmp_path / "deep" / "new"), model)
    assert read_config(tmp_path / "deep" / "new") == config
    assert _files(tmp_path / "deep") == {"new"}


def test_names_are_the_released_ones_without_aliases(tmp_path: Path) -> None:
    save_model(fixture_model(), tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    assert metadata == {"format": "pt"}
    encoder = {name for name in names if not name.startswith(DECODER)}
    assert encoder == {f"{ENCODER}layers.{i}.layer_scalar" for i in range(4)}
    # transformers saves 127 tensors for this model; 31 of them are its image tower's.
    assert len(names) == 96


@pytest.mark.parametrize("max_shard_bytes", [1, 2000, 20_000])
def test_shards_respect_the_limit_and_load_back(tmp_path: Path, max_shard_bytes: int) -> None:
    model = fixture_model(UNTIED)
    save_model(model, tmp_path, max_shard_bytes=max_shard_bytes)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    tensors = named_tensors(model)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for shard in shards:
        held = [tensors[name].nbytes for name, where in index["weight_map"].items() if where == shard]
        assert sum(held) <= max_shard_bytes or len(held) == 1
    assert _files(tmp_path) == {"config.json", "model.safetensors.index.json", *shards}
    assert_same_weights(load_model(tmp_path), model)


def test_saving_again_in_another_layout_leaves_no_old_weights(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    for seed, limit in enumerate((1e9, 5000, 3000, 1e9, 5000)):
        model = random_model(fixture_config(), seed=seed)
        save_model(model, tmp_path, max_shard_bytes=limit)
        assert_same_weights(load_model(tmp_path), model)
        weights = {name for name in _files(tmp_path) if name.endswith(".safetensors")}
        assert ("model.safetensors" in weights) == (limit == 1e9)
        assert len({name.split("-of-")[-1] for name in weights}) == 1
    assert (tmp_path / "README.md").read_text() == "mine"


def test_generation_config_and_extra_files_are_written_beside(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    folder = tmp_path / "model"
    save_model(fixture_model(), folder, generation_config={"entropy_bound": 0.2, "t_max": 0.9}, extra=[tokenizer])
    assert read_generation_config(folder) == {"entropy_bound": 0.2, "t_max": 0.9}
    assert (folder / "tokenizer.json").read_text() == "{}"
    save_model(fixture_model(), folder)
    assert read_generation_config(folder) == {"entropy_bound": 0.2, "t_max": 0.9}


def test_files_can_be_read_by_others_as_usual(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    save_model(fixture_model(), tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        assert path.stat().st_mode == plain.stat().st_mode, path.name


def test_a_diverged_model_does_not_replace_a_good_one(tmp_path: Path) -> None:
    good = fixture_model()
    save_model(good, tmp_path)
    bad = fixture_model()
    bad.decoder.norm[3] = torch.nan
    with pytest.raises(CheckpointError, match=r"not saved to .*: model.decoder.norm.weight holds NaN"):
        save_model(bad, tmp_path)
    assert_same_weights(load_model(tmp_path), good)


def test_a_save_that_fails_early_changes_nothing(tmp_path: Path) -> None:
    good = fixture_model()
    save_model(good, tmp_path / "model")
    before = _files(tmp_path / "model")
    other = random_model(fixture_config())
    with pytest.raises(CheckpointError, match=r"nowhere.*the files there are unchanged"):
        save_model(other, tmp_path / "model", extra=[tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="top_p"):
        save_model(other, tmp_path / "model", generation_config={"top_p": 1})
    assert _files(tmp_path / "model") == before
    assert_same_weights(load_model(tmp_path / "model"), good)


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        save_model(fixture_model(), tmp_path / "new", extra=[tmp_path / "nowhere"])
    assert _files(tmp_path) == set()


@contextmanager
def _largest_file(num_bytes: int) -> Iterator[None]:
    resource = pytest.importorskip("resource", reason="file size limits are a POSIX feature")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("max_shard_bytes", [1e9, 30_000])
def test_a_full_disk_leaves_the_old_files(tmp_path: Path, max_shard_bytes: float) -> None:
    # A limit on file sizes stands in for the disk: the system refuses a write half-way. The embedding alone is over
    # it, so that with small shards others were written before.
    config = fixture_config(vocab_size=2000)
    good, other = fixture_model(config), random_model(config)
    save_model(good, tmp_path / "model")
    before = _files(tmp_path / "model")
    full = pytest.raises(CheckpointError, match=r"File too large.*the files there are unchanged")
    with full, _largest_file(300_000):
        save_model(other, tmp_path / "model", max_shard_bytes=max_shard_bytes)
    assert _files(tmp_path / "model") == before
    assert_same_weights(load_model(tmp_path / "model"), good)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot save to .*file/model: .*; the files there are unchanged"):
        save_model(fixture_model(), tmp_path / "file" / "model")
    with pytest.raises(CheckpointError, match=r"cannot save to .*file: "):
        save_model(fixture_model(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("num_moved", range(4))
def test_a_crash_while_files_move_never_leaves_a_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_moved: int
) -> None:
    config = tiny_config(vocab_size=1000)
    old, new = random_model(config, seed=1), random_model(config, seed=2)
    save_model(old, tmp_path, max_shard_bytes=70_000)
    num_calls = len(_files(tmp_path))
    replace, moved = os.replace, []

    def replace_some(source: Path, target: Path) -> None:
        # JSON files are also put in place by a replace while they are written aside.
        if Path(source).name != Path(target).name:
            replace(source, target)
            return
        if len(moved) == num_moved:
            raise OSError("power cut")
        moved.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_some)
    assert num_calls > num_moved
    with pytest.raises(CheckpointError, match="power cut; some files there are already new: save again"):
        save_model(new, tmp_path, max_shard_bytes=70_000)
    with pytest.raises(CheckpointError, match="has neither"):
        load_model(tmp_path)
