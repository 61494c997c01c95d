"""Loading: every layout of a folder gives the same model, every fault is one line that names tensor and file."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from presswork.errors import CheckpointError, ConfigError
from presswork.models.transformer import Transformer
from presswork.testing import fixture_model, tiny_config
from presswork.weights import load
from presswork.weights.initialise import random_model
from presswork.weights.load import is_finite, load_model
from presswork.weights.names import DECODER, ENCODER
from presswork.weights.save import save_model
from tests.weights.folders import assert_same_weights, edit_json, named_tensors, write_folder, write_shards

UNTIED = tiny_config(tie_word_embeddings=False)
EMBEDDING = "model.decoder.embed_tokens.weight"
NORM = "model.decoder.norm.weight"


@pytest.fixture(scope="module")
def model() -> Transformer:
    return fixture_model(tiny_config())


@pytest.fixture(scope="module")
def tensors(model: Transformer) -> dict[str, Tensor]:
    return named_tensors(model)


def _aliases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tied tensor also under the encoder's prefix and as the head, as in a full state dict."""
    shared = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith(DECODER) and "self_conditioning" not in name and "layer_scalar" not in name
    }
    aliases = {ENCODER + name.removeprefix(DECODER): tensor.clone() for name, tensor in shared.items()}
    return {**tensors, **aliases, "lm_head.weight": tensors[EMBEDDING].clone()}


def _autoregressive(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        prefix + name.removeprefix(DECODER): tensor
        for name, tensor in tensors.items()
        if name.startswith(DECODER) and "self_conditioning" not in name
    }


def _make_autoregressive(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="gemma4")
    edit_json(
        folder / "config.json", section="text_config", enable_moe_block=True, hidden_size_per_layer_input=0,
        attention_k_eq_v=True,
    )  # fmt: skip


def test_a_loaded_model_is_bit_equal_frozen_and_in_eval_mode(
    tmp_path: Path, model: Transformer, tensors: dict[str, Tensor]
) -> None:
    loaded = load_model(write_folder(tmp_path, model.config, tensors))
    assert_same_weights(loaded, model)
    assert loaded.config == model.config
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_an_untied_folder_fills_both_stacks_and_the_head(tmp_path: Path) -> None:
    untied = fixture_model(UNTIED)
    loaded = load_model(write_folder(tmp_path, UNTIED, named_tensors(untied)))
    assert_same_weights(loaded, untied)
    assert loaded.own_encoder is not None
    assert not loaded.own_encoder.embedding.equal(loaded.decoder.embedding)


def test_shards_load_like_one_file(tmp_path: Path, model: Transformer, tensors: dict[str, Tensor]) -> None:
    names = sorted(tensors)
    parts = {f"model-{i + 1:05d}-of-00003.safetensors": {name: tensors[name] for name in names[i::3]} for i in range(3)}
    assert_same_weights(load_model(write_shards(tmp_path, model.config, parts)), model)


def test_the_single_file_wins_over_an_index_as_upstream(
    tmp_path: Path, model: Transformer, tensors: dict[str, Tensor]
) -> None:
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    write_shards(tmp_path, model.config, {"model-00001-of-00001.safetensors": other})
    assert_same_weights(load_model(write_folder(tmp_path, model.config, tensors)), model)


def test_a_full_state_dict_with_aliases_loads(tmp_path: Path, model: Transformer, tensors: dict[str, Tensor]) -> None:
    assert_same_weights(load_model(write_folder(tmp_path, model.config, _aliases(tensors))), model)


def test_encoder_names_stand_in_for_decoder_names(
    tmp_path: Path, model: Transformer, tensors: dict[str, Tensor]
) -> None:
    # Only the self-conditioning and the decoder's scalars have no twin on the encoder's side.
    renamed = {
        name: tensor
        for name, tensor in _aliases(tensors).items()
        if name.startswith(ENCODER) or "self_conditioning" in name or "layer_scalar" in name
    }
    assert EMBEDDING not in renamed
    assert_same_weights(load_model(write_folder(tmp_path, model.config, renamed)), model)


def test_the_decoder_name_wins_over_the_encoder_name(
    tmp_path: Path, model: Transformer, tensors: dict[str, Tensor]
) -> None:
    both = _aliases(tensors)
    both[ENCODER + "norm.weight"] = both[ENCODER + "norm.weight"] + 1
    assert_same_weights(load_model(write_folder(tmp_path, model.config, both)), model)


@pytest.mark.parametrize("config", [tiny_config(), UNTIED], ids=["tied", "untied"])
def test_missing_encoder_scalars_are_the_decoders(tmp_path: Path, config) -> None:
    source = fixture_model(config)
    assert not source.encoder_scalars.equal(source.decoder_scalars)
    kept = {name: tensor for name, tensor in named_tensors(source).items() if not _is_encoder_scalar(name)}
    loaded = load_model(write_folder(tmp_path, config, kept))
    assert loaded.encoder_scalars.equal(source.decoder_scalars)
    assert loaded.decoder_scalars.equal(source.decoder_scalars)


def _is_encoder_scalar(name: str) -> bool:
    return name.startswith(ENCODER) and name.endswith("layer_scalar")


@pytest.mark.parametrize("prefix", ["model.language_model.", "model."])
def test_an_autoregressive_folder_starts_both_modes_from_its_weights(
    tmp_path: Path, model: Transformer, tensors: dict[str, Tensor], prefix: str
) -> None:
    folder = write_folder(tmp_path, model.config, _autoregressive(tensors, prefix))
    _make_autoregressive(folder)
    loaded, again = load_model(folder), load_model(folder)
    assert_same_weights(loaded, again)
    assert loaded.encoder_scalars.equal(model.decoder_scalars)
    for name, tensor in model.state_dict().items():
        if name.startswith("decoder"):
            assert loaded.state_dict()[name].equal(tensor), name
    fresh = loaded.self_conditioning
    assert fresh.norm.eq(1).all()
    assert fresh.mlp.down.eq(0).all()
    assert fresh.mlp.gate_up.std().item() == pytest.approx(model.config.initializer_range, rel=0.1)


def test_an_untied_autoregressive_folder_fills_both_stacks(tmp_path: Path) -> None:
    source = fixture_model(UNTIED)
    tensors = named_tensors(source)
    renamed = {**_autoregressive(tensors, "model.language_model."), "lm_head.weight": tensors["lm_head.weight"]}
    folder = write_folder(tmp_path, UNTIED, renamed)
    _make_autoregressive(folder)
    loaded = load_model(folder)
    assert loaded.own_encoder is not None and loaded.own_head is not None
    assert loaded.own_encoder.embedding.equal(source.decoder.embedding)
    assert loaded.own_head.equal(source.head)


@pytest.mark.parametrize(
    "prefix", ["model.encoder.vision_tower.", "model.encoder.embed_vision.", "model.vision_tower."]
)
def test_image_tensors_are_never_read(
    tmp_path: Path, model: Transformer, tensors: dict[str, Tensor], prefix: str
) -> None:
    # Integers and NaN would be refused if anything looked at them.
    extra = {prefix + "a.weight": torch.full((3,), torch.nan), prefix + "b.weight": torch.ones(3, dtype=torch.int8)}
    assert_same_weights(load_model(write_folder(tmp_path, model.config, {**tensors, **extra})), model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_checkpoints_dtype_is_kept(tmp_path: Path, model: Transformer, dtype: torch.dtype) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in named_tensors(model).items()}
    loaded = load_model(write_folder(tmp_path, model.config, stored))
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {dtype}
    assert loaded.decoder.embedding.equal(model.decoder.embedding.to(dtype))


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_what_a_folder_takes_in_memory_is_known_before(tmp_path: Path, model: Transformer, dtype) -> None:
    save_model(fixture_model(model.config).bfloat16(), tmp_path)
    loaded = load_model(tmp_path, dtype=dtype).state_dict().values()
    held = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in loaded}
    assert load.loaded_bytes(tmp_path, dtype) == sum(held.values())


def test_mixed_dtypes_become_the_embeddings(tmp_path: Path, model: Transformer, tensors: dict[str, Tensor]) -> None:
    mixed = {**tensors, EMBEDDING: tensors[EMBEDDING].bfloat16()}
    loaded = load_model(write_folder(tmp_path, model.config, mixed))
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.bfloat16}
    assert loaded.decoder.norm.equal(model.decoder.norm.bfloat16())


def test_a_wanted_dtype_is_honoured(tmp_path: Path, model: Transformer, tensors: dict[str, Tensor]) -> None:
    folder = write_folder(tmp_path, model.config, tensors)
    assert_same_weights(load_model(folder, dtype=torch.bfloat16), fixture_model(model.config).bfloat16())
    with pytest.raises(ConfigError, match=r"got torch.int8"):
        load_model(folder, dtype=torch.int8)


def test_progress_grows_to_the_bytes_of_the_weights(
    tmp_path: Path, model: Transformer, tensors: dict[str, Tensor]
) -> None:
    seen: list[tuple[int, int]] = []
    image = {"model.encoder.vision_tower.x": torch.zeros(1000)}
    load_model(
        write_folder(tmp_path, model.config, {**tensors, **image}), progress=lambda done, all: seen.append((done, all))
    )
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert len(seen) == len(tensors)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (total, total)


Tensors = dict[str, Tensor]
FAULTS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "missing": (lambda t: {k: v for k, v in t.items() if k != NORM}, rf"model.safetensors lacks {NORM}$"),
    "unexpected": (
        lambda t: {**t, **{f"model.decoder.layers.9.x{i}": torch.zeros(1) for i in range(7)}},
        r"model.safetensors holds model.decoder.layers.9.x0, .*x1, .*x2 and 4 more",
    ),
    "renamed": (
        lambda t: {("oops" if k == NORM else k): v for k, v in t.items()},
        rf"lacks {NORM}; .*model.safetensors holds oops",
    ),
    "wrong shape": (
        lambda t: {**t, NORM: torch.ones(17)},
        rf"{NORM} in .*model.safetensors has shape \[17\], config.json asks for \[16\]",
    ),
    "transposed": (
        lambda t: {k: v.T.contiguous() if k.endswith("0.mlp.down_proj.weight") else v for k, v in t.items()},
        r"layers.0.mlp.down_proj.weight in .* has shape \[24, 16\], config.json asks for \[16, 24\]",
    ),
    "integers": (lambda t: {**t, NORM: torch.ones(16, dtype=torch.int8)}, f"{NORM} in .* is I8; .*quantised"),
    "fp8": (lambda t: {**t, NORM: torch.ones(16).to(torch.float8_e4m3fn)}, f"{NORM} in .* is F8_E4M3; .*quantised"),
    "nan": (lambda t: {**t, NORM: torch.ones(16).index_fill_(0, torch.tensor(3), torch.nan)}, f"{NORM} in .*NaN"),
    "infinity": (lambda t: {**t, NORM: torch.ones(16).index_fill_(0, torch.tensor(3), -torch.inf)}, f"{NORM} in .*inf"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_tensor_is_named_with_its_file(
    tmp_path: Path, model: Transformer, tensors: dict[str, Tensor], fault: str
) -> None:
    change, message = FAULTS[fault]
    folder = write_folder(tmp_path, model.config, change(tensors))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_narrower_dtype_that_overflows_is_not_blamed_on_the_file(
    tmp_path: Path, model: Transformer, tensors: dict[str, Tensor]
) -> None:
    folder = write_folder(tmp_path, model.config, {**tensors, NORM: torch.full((16,), 1e6)})
    load_model(folder)
    with pytest.raises(CheckpointError, match=f"{NORM} in .* has values that float16 cannot hold"):
        load_model(folder, dtype=torch.float16)


def test_finite_values_whose_sum_overflows_are_finite() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        largest = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
        assert is_finite(largest)
        largest[500] = torch.inf
        assert not is_finite(largest)
        largest[501] = -torch.inf
        assert not is_finite(largest)


def _fail(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_config_or_weight_file_is_named(tmp_path: Path, model: Transformer) -> None:
    _fail(tmp_path / "nowhere", "nowhere does not exist")
    _fail(tmp_path, "has no config.json")
    folder = write_folder(tmp_path, model.config, {"x": torch.zeros(1)})
    (folder / "model.safetensors").unlink()
    _fail(folder, "has neither model.safetensors nor model.safetensors.index.json; download")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf", "consolidated.00.pth"])
def test_other_weight_formats_are_refused_by_name(tmp_path: Path, model: Transformer, name: str) -> None:
    folder = write_folder(tmp_path, model.config, {"x": torch.zeros(1)})
    (folder / "model.safetensors").rename(folder / name)
    _fail(folder, f"{name} is .*, which is not read: convert to safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_cut_short_anywhere_is_named(
    tmp_path: Path, model: Transformer, tensors: dict[str, Tensor], keep: int
) -> None:
    folder = write_folder(tmp_path, model.config, tensors)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:keep])
    _fail(folder, "model.safetensors is cut short or not a safetensors file")


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04" + b"x" * 100, b"<html>" * 20, b"\x10" + b"\0" * 7 + b"not json header!"]
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, model: Transformer, content: bytes) -> None:
    folder = write_folder(tmp_path, model.config, {"x": torch.zeros(1)})
    (folder / "model.safetensors").write_bytes(content)
    _fail(folder, "model.safetensors is cut short or not a safetensors file")


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The superuser may read anything, so the refusal is staged.
    def refuse(path: Path, framework: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    folder = write_folder(tmp_path, model.config, {"x": torch.zeros(1)})
    monkeypatch.setattr(load, "safe_open", refuse)
    _fail(folder, "cannot read .*model.safetensors: .*Permission denied")


def test_a_git_lfs_pointer_is_called_that(tmp_path: Path, model: Transformer) -> None:
    folder = write_folder(tmp_path, model.config, {"x": torch.zeros(1)})
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    _fail(folder, "model.safetensors is a Git LFS pointer")


def test_faults_of_shards_and_their_index_are_named(
    tmp_path: Path, model: Transformer, tensors: dict[str, Tensor]
) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    rest = {name: tensor for name, tensor in tensors.items() if name != NORM}
    folder = write_shards(tmp_path, model.config, {first: {NORM: tensors[NORM]}, second: rest})
    save_file(rest, folder / first)
    _fail(folder, f"{first} lacks {NORM}, which model.safetensors.index.json says it holds")
    (folder / first).unlink()
    _fail(folder, f"{first} is missing but model.safetensors.index.json names it")
    index = folder / "model.safetensors.index.json"
    for wrong in (5, {}, {NORM: "../outside.safetensors"}, {NORM: "/etc/passwd"}, {NORM: 3}, {NORM: ""}):
        index.write_text(json.dumps({"weight_map": wrong}))
        _fail(folder, "index.json (must hold a weight_map|gives .* the file)")
    index.write_text("{")
    _fail(folder, "index.json is not valid JSON")


def test_a_tensor_the_index_leaves_out_is_missing_from_the_index(
    tmp_path: Path, model: Transformer, tensors: dict[str, Tensor]
) -> None:
    folder = write_shards(tmp_path, model.config, {"model-00001-of-00001.safetensors": tensors})
    edit_json(folder / "model.safetensors.index.json", section="weight_map", drop=(NORM,))
    _fail(folder, f"index.json lacks {NORM}")


MEASURE = """
import sys, threading
from presswork.weights import load
from presswork.weights.initialise import random_model
from presswork.weights.load import load_model
from presswork.weights.config_files import read_config

def resident():
    with open("/proc/self/status") as status:
        values = dict(line.split(":", 1) for line in status)
    return [int(values[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")]

peak = before = resident()
def watch(done, total):
    global peak
    peak = list(map(max, peak, resident()))
stop = threading.Event()
def sample():
    while not stop.wait(0.001):
        watch(0, 0)
threading.Thread(target=sample, daemon=True).start()
model = load_model(sys.argv[1], progress=watch)
stop.set()
size = sum(t.nbytes for t in model.state_dict().values())
watch(0, 0)
print(*[(high - low) / size for high, low in zip(peak, before)], size)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which Linux alone has")
@pytest.mark.slow
def test_loading_needs_the_memory_of_one_copy(tmp_path: Path) -> None:
    # One tensor of 200 MB and many small ones: a second copy of either would show.
    config = tiny_config(vocab_size=400_000, hidden_size=256, intermediate_size=40_000)
    folder = write_folder(tmp_path, config, named_tensors(random_model(config, dtype=torch.bfloat16)))
    done = subprocess.run([sys.executable, "-c", MEASURE, str(folder)], capture_output=True, text=True, check=True)
    anonymous, mapped, size = map(float, done.stdout.split())
    assert size > 3e8
    assert anonymous < 1.1
    # The largest tensor and a portion of the file; the pages of all of it would be 1.
    assert mapped < 0.85
