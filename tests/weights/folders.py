"""Model folders for tests, written tensor by tensor: the saving code under test is not involved."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from presswork.config import ModelConfig
from presswork.models.transformer import Transformer
from presswork.weights.config_files import write_config
from presswork.weights.names import DECODER, checkpoint_places


def named_tensors(model: Transformer) -> dict[str, Tensor]:
    """A model's weights under their canonical file names, each with memory of its own."""
    state = model.state_dict()
    return {
        name: state[place.parameter][place.start : place.stop].clone()
        for name, place in checkpoint_places(model.config).items()
    }


def write_folder(folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Path:
    """A folder with config.json and one weight file."""
    dtype = next(iter(tensors.values())).dtype
    write_config(config, folder, dtype)
    save_file(dict(tensors), folder / "model.safetensors")
    return folder


def write_shards(folder: Path, config: ModelConfig, shards: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """A folder with config.json, one file for each entry, and an index."""
    write_config(config, folder, next(iter(next(iter(shards.values())).values())).dtype)
    for name, tensors in shards.items():
        save_file(dict(tensors), folder / name)
    index = {"metadata": {}, "weight_map": {tensor: name for name, tensors in shards.items() for tensor in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def edit_json(path: Path, *, section: str | None = None, drop: tuple[str, ...] = (), **changes: Any) -> None:
    """Change keys of a JSON file, or of one object inside it."""
    content = json.loads(path.read_text())
    target = content[section] if section is not None else content
    target.update(changes)
    for name in drop:
        del target[name]
    path.write_text(json.dumps(content))


def assert_same_weights(ours: Transformer, theirs: Transformer) -> None:
    """Every parameter and buffer is bit-equal."""
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        assert tensor.dtype == expected[name].dtype, name
        assert tensor.equal(expected[name]), name


def write_autoregressive(folder: Path, model: Transformer) -> Path:
    """A model's decoder weights as a folder of the autoregressive family of the same architecture, images and all."""
    folder.mkdir(exist_ok=True)
    tensors = {
        "model." + name.removeprefix(DECODER): tensor
        for name, tensor in named_tensors(model).items()
        if name.startswith(DECODER) and "self_conditioning" not in name
    }
    write_folder(folder, model.config, tensors)
    edit_json(folder / "config.json", model_type="gemma4")
    edit_json(
        folder / "config.json", section="text_config", enable_moe_block=True, hidden_size_per_layer_input=0,
        attention_k_eq_v=True,
    )  # fmt: skip
    return folder
