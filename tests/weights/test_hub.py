"""Names become folders: embedded models first, then folders, then the Hub's cache and the Hub itself."""

import errno
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from presswork.errors import CheckpointError, ModelNotFoundError, PressworkError
from presswork.testing import fixture_model
from presswork.weights import hub
from presswork.weights.hub import list_models, pull, resolve
from presswork.weights.load import load_model
from presswork.weights.save import save_model
from tests.weights.fake_hub import COMMIT, FakeHub, serve
from tests.weights.folders import assert_same_weights


@pytest.fixture(autouse=True)
def nothing_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No embedded models, an empty cache, and a Hub address where nobody listens."""
    monkeypatch.setattr(hub, "ASSETS", tmp_path / "no-assets")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    _use_hub(monkeypatch, "http://127.0.0.1:9")


def _use_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sharded model as the Hub would hold it, with files nobody needs."""
    folder = tmp_path_factory.mktemp("source")
    save_model(fixture_model(), folder, max_shard_bytes=300_000)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    unneeded = {
        "README.md": b"#",
        "pytorch_model.bin": b"x",
        "onnx/config.json": b"{}",
        "consolidated.safetensors": b"x",
    }
    return {**files, "tokenizer.json": b"{}", "chat_template.jinja": b"{{ x }}", **unneeded}


@pytest.fixture
def fake(model_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    models = {
        "acme/tiny": dict(model_files),
        "acme/llama": {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"x" * 1000},
        "acme/data": {"README.md": b"#"},
    }
    with serve(models) as running:
        _use_hub(monkeypatch, running.url)
        yield running


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two embedded models, and things beside them that are none."""
    folder = tmp_path / "assets"
    for name in ("sudoku", "molecules"):
        save_model(fixture_model(), folder / name)
    (folder / "notes").mkdir()
    (folder / "README.md").write_text("")
    monkeypatch.setattr(hub, "ASSETS", folder)
    return folder


def test_an_embedded_name_comes_before_a_folder(tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sudoku").mkdir()
    assert resolve("sudoku") == assets / "sudoku"
    assert resolve("./sudoku").resolve() == tmp_path / "sudoku"


def test_a_folder_is_itself_and_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme" / "tiny").mkdir(parents=True)
    assert resolve("acme/tiny") == Path("acme/tiny")
    assert resolve(tmp_path) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/acme") == tmp_path / "acme"


def test_a_misspelt_embedded_name_gets_a_suggestion(assets: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model 'sodoku'; did you mean sudoku\?.*molecules, sudoku"):
        resolve("sodoku")
    with pytest.raises(ModelNotFoundError, match=r"no model 'zzz'; accepted: an embedded model \(molecules, sudoku\)"):
        resolve("zzz")


@pytest.mark.parametrize(
    "name",
    ["", "notes", "README.md", "..", "../assets/sudoku", "sudoku/..", "a/../b", "/no/such", "a/b/c", "a//b", "-x/y",
     "a\0b", "~nobody-here/x", "x" * 5000, "org/na me", "org/ñ", "http://x/y"],
)  # fmt: skip
def test_nothing_else_is_a_name(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    if name in ("..", "../assets/sudoku"):
        assert resolve(name) == Path(name)  # an existing folder, given as one
        return
    with pytest.raises(ModelNotFoundError, match="no model"):
        resolve(name)


def test_a_file_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(ModelNotFoundError, match="is a file; give the folder"):
        resolve(tmp_path / "model.safetensors")


def test_pulling_fetches_what_is_needed_and_it_loads(fake: FakeHub) -> None:
    folder = pull("acme/tiny", progress=False)
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors.index.json"} < names
    assert not names & {"README.md", "pytorch_model.bin", "onnx", "consolidated.safetensors"}
    assert fake.fetched[0] == ("acme/tiny", "config.json")
    assert_same_weights(load_model(folder), fixture_model())


def test_resolving_pulls_once_and_then_needs_no_network(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve("acme/tiny")
    _use_hub(monkeypatch, "http://127.0.0.1:9")
    assert resolve("acme/tiny") == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("acme/tiny", may_pull=False) == folder
    assert pull("acme/tiny") == folder
    assert len(fake.fetched) == len(set(fake.fetched))


def test_a_revision_can_be_named(fake: FakeHub) -> None:
    assert pull("acme/tiny", revision=COMMIT, progress=False).name == COMMIT
    with pytest.raises(ModelNotFoundError, match="acme/tiny has no revision 'v9'"):
        pull("acme/tiny", revision="v9")


def test_another_architecture_is_refused_before_its_weights_are_fetched(fake: FakeHub) -> None:
    with pytest.raises(CheckpointError, match="'llama' is not supported"):
        pull("acme/llama")
    assert fake.fetched == [("acme/llama", "config.json")]
    with pytest.raises(CheckpointError, match=r"acme/data has no config.json on the Hub"):
        pull("acme/data")


def test_a_broken_download_is_neither_listed_nor_used_and_then_completed(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits before each of its retries
    broken = "model-00002-of-00003.safetensors"
    assert broken in fake.models["acme/tiny"]
    fake.broken_files.add(broken)
    with pytest.raises(CheckpointError, match=r"could not fetch acme/tiny: .*; try again, finished files are kept"):
        pull("acme/tiny", progress=False)
    assert list_models() == []
    with pytest.raises(ModelNotFoundError, match="fetch it: presswork pull acme/tiny"):
        resolve("acme/tiny", may_pull=False)
    fake.broken_files.clear()
    before = len(fake.fetched)
    assert_same_weights(load_model(resolve("acme/tiny")), fixture_model())
    assert ("acme/tiny", "model-00001-of-00003.safetensors") not in fake.fetched[before:]


@pytest.mark.parametrize(
    ("repo_id", "kind", "message"),
    [
        ("acme/none", ModelNotFoundError, "the Hub has no model acme/none, or it is private"),
        ("private/x", ModelNotFoundError, "the Hub has no model private/x, or it is private.*hf auth login"),
        ("gated/x", CheckpointError, "gated/x is gated: accept its terms .*hf auth login.*HF_TOKEN"),
        ("down/x", ModelNotFoundError, "the Hub cannot be reached .*503.*check the network"),
        ("acme/a--b", ModelNotFoundError, "the Hub has no model acme/a--b"),
        ("no-slash", ModelNotFoundError, "'no-slash' is not a Hub id; accepted: org/name"),
        ("../../etc", ModelNotFoundError, "is not a Hub id"),
    ],
)
def test_refusals_of_the_hub_are_one_line(
    fake: FakeHub, repo_id: str, kind: type[PressworkError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        pull(repo_id)
    assert "\n" not in str(caught.value)
    assert fake.fetched == []


def test_without_a_network_the_reason_is_given() -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"acme/x is no folder here and not complete .* cannot be reached \(.*refused.*\)"
    ) as caught:
        pull("acme/x")
    assert "\n" not in str(caught.value)


def test_offline_mode_is_honoured_and_named(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelNotFoundError, match=r"acme/tiny is no folder here and not complete .* and HF_HUB_OFFLINE is set; unset it"
    ):
        resolve("acme/tiny")
    assert fake.fetched == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk for acme/x"),
        (RuntimeError("Data error: No space left on device (os error 28)"), "no space left on the disk for acme/x"),
        (OSError(errno.EACCES, "Permission denied"), "could not fetch acme/x: .*Permission denied"),
        (RuntimeError("transfer\nbroke"), "could not fetch acme/x: transfer broke; try again"),
    ],
)
def test_trouble_of_the_transfer_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=message) as caught:
        pull("acme/x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("progress", [True, False])
def test_progress_can_be_silenced(fake: FakeHub, monkeypatch: pytest.MonkeyPatch, progress: bool) -> None:
    bars: list[type[Any] | None] = []
    fetch = hub.snapshot_download

    def recorded(*args: Any, **kwargs: Any) -> str:
        bars.append(kwargs.get("tqdm_class"))
        return fetch(*args, **kwargs)

    monkeypatch.setattr(hub, "snapshot_download", recorded)
    pull("acme/tiny", progress=progress)
    # The client shows bars on a terminal only, which a test is not; so the class it is handed is asked instead.
    for_config, for_weights = bars
    assert for_config is not None and for_config(total=3, disable=False).disable
    assert (for_weights is None) == progress


def test_embedded_and_cached_models_are_listed(fake: FakeHub, assets: Path) -> None:
    (assets / "damaged").mkdir()
    (assets / "damaged" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    folder = pull("acme/tiny", progress=False)
    with pytest.raises(CheckpointError):
        pull("acme/llama")
    found = list_models()
    assert [(model.kind, model.name) for model in found] == [
        ("embedded", "molecules"), ("embedded", "sudoku"), ("hub", "acme/tiny"),
    ]  # fmt: skip
    for model in found:
        assert model.size_bytes == sum(path.stat().st_size for path in model.path.iterdir())
        assert resolve(model.name).resolve() == model.path.resolve()
    assert found[2].path.resolve() == folder.resolve()


def test_nothing_is_listed_where_there_is_nothing() -> None:
    assert list_models() == []
