"""Finds models by name: embedded ones, folders, and the Hub with its local cache."""

import difflib
import errno
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants, scan_cache_dir, snapshot_download
from huggingface_hub.errors import (
    CacheNotFound,
    GatedRepoError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # re-exported from whichever HTTP library is in use
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm

from presswork.errors import CheckpointError, ModelNotFoundError, PressworkError
from presswork.weights.config_files import read_config
from presswork.weights.files import CONFIG_FILE, one_line, weight_map

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).resolve().parents[1] / "assets"
DEFAULT_MODEL = "code"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_WANTED = ("*.json", "*.jinja", "model*.safetensors", "tokenizer*")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A model that can be loaded without a network.

    Args:
        name: what `resolve` takes.
        size_bytes: all of its files.
    """

    name: str
    kind: Literal["embedded", "hub"]
    path: Path
    size_bytes: int


def resolve(source: str | Path, *, may_pull: bool = True) -> Path:
    """The folder of a model given by embedded name, folder, or Hub id, looked up in that order.

    Args:
        may_pull: fetch a Hub model that is not in the local cache; otherwise that is an error.
    Raises:
        ModelNotFoundError: nothing answers to the name.
        CheckpointError: the Hub has it but it cannot be fetched or is not a model of this family.
    """
    name = str(source)
    folder = _here(name)
    if folder is not None:
        return folder
    cached = _cached(name)
    if cached is not None:
        return cached
    if not may_pull:
        raise ModelNotFoundError(
            f"{name} is neither a folder nor in the local Hub cache; fetch it: presswork pull {name}"
        )
    return pull(name)


def check_name(source: str) -> None:
    """Raises ModelNotFoundError where a name is none of an embedded model, a folder, and what the Hub may have."""
    _here(source)


def _here(name: str) -> Path | None:
    """An embedded model's folder, or the folder of that name; None for what the Hub may have."""
    embedded = _embedded()
    folder = embedded[name] if name in embedded else _existing(name)
    if folder is None and not _is_hub_id(name):
        raise ModelNotFoundError(_unknown(name, list(embedded)))
    return folder


def pull(repo_id: str, *, revision: str | None = None, progress: bool = True) -> Path:
    """Fetch a model from the Hub into its local cache, or the files a broken download lacks; the folder it lies in.

    The configuration comes first: a model of another family is refused before its weights are fetched.

    Args:
        revision: branch, tag or commit; None means the main branch.
        progress: show bars on a terminal.
    Raises:
        ModelNotFoundError: no such model or revision, or the Hub cannot be reached and the cache lacks it.
        CheckpointError: no access, no space, a broken transfer, or not a model of this family.
    """
    if not _is_hub_id(repo_id):
        raise ModelNotFoundError(f"{repo_id!r} is not a Hub id; accepted: org/name")
    folder = _fetch(repo_id, revision, (CONFIG_FILE,), progress=False)
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{repo_id} has no {CONFIG_FILE} on the Hub: it is not a model that can be loaded")
    read_config(folder)
    folder = _fetch(repo_id, revision, _WANTED, progress=progress)
    weight_map(folder)
    return folder


def list_models() -> list[LocalModel]:
    """Every embedded model and every complete, readable one in the Hub cache, by name."""
    embedded = (
        LocalModel(name=name, kind="embedded", path=path, size_bytes=_size(path)) for name, path in _embedded().items()
    )
    return sorted(
        (model for source in (embedded, _in_hub_cache()) for model in source if _is_usable(model.path)),
        key=lambda model: (model.kind, model.name),
    )


def embedded_names() -> list[str]:
    """Names of the embedded models, the default first."""
    return sorted(_embedded(), key=lambda name: (name != DEFAULT_MODEL, name))


def _embedded() -> dict[str, Path]:
    if not ASSETS.is_dir():
        return {}
    return {path.name: path for path in sorted(ASSETS.iterdir()) if (path / CONFIG_FILE).is_file()}


def _existing(name: str) -> Path | None:
    if not name:
        return None
    try:
        folder = Path(name).expanduser()
        if folder.is_file():
            raise ModelNotFoundError(f"{name} is a file; give the folder that holds {CONFIG_FILE} and the weights")
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError):
        return None


def _is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None and ".." not in name


def _unknown(name: str, embedded: list[str]) -> str:
    close = difflib.get_close_matches(name, embedded, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    names = f"an embedded model ({', '.join(embedded)})" if embedded else "an embedded model (none in this build)"
    return f"no model {name!r}{hint}; accepted: {names}, a folder, or a Hub id such as org/name"


def _cached(repo_id: str) -> Path | None:
    try:
        folder = Path(_snapshot(repo_id, None, _WANTED, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return folder if _is_usable(folder) else None


def _is_usable(folder: Path) -> bool:
    try:
        read_config(folder)
        weight_map(folder)
    except CheckpointError as error:
        logger.debug("%s is passed over: %s", folder, error)
        return False
    return True


def _in_hub_cache() -> Iterator[LocalModel]:
    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return
    for repo in repos:
        if repo.repo_type == "model" and repo.revisions:
            newest = max(repo.revisions, key=lambda revision: ("main" in revision.refs, revision.last_modified))
            yield LocalModel(name=repo.repo_id, kind="hub", path=newest.snapshot_path, size_bytes=newest.size_on_disk)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class _NoBar(tqdm):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "disable": True})


def _snapshot(repo_id: str, revision: str | None, patterns: Sequence[str], **options: Any) -> str:
    wanted = list(patterns)
    return snapshot_download(repo_id, revision=revision, allow_patterns=wanted, ignore_patterns="*/*", **options)


def _fetch(repo_id: str, revision: str | None, patterns: Sequence[str], *, progress: bool) -> Path:
    options = {} if progress else {"tqdm_class": _NoBar}
    try:
        return Path(_snapshot(repo_id, revision, patterns, **options))
    except (OSError, RuntimeError, ValueError, HTTPError) as error:
        raise _explained(repo_id, revision, error) from error


def _explained(repo_id: str, revision: str | None, error: Exception) -> PressworkError:
    """Our error for one of the Hub client's; it tells the classes apart in an order that puts the narrow first."""
    if isinstance(error, GatedRepoError):
        return CheckpointError(
            f"{repo_id} is gated: accept its terms on its Hub page, then log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFoundError(f"{repo_id} has no revision {revision!r} on the Hub")
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return ModelNotFoundError(
            f"the Hub has no model {repo_id}, or it is private; check the name, or log in with `hf auth login`"
        )
    if isinstance(error, LocalEntryNotFoundError):
        return ModelNotFoundError(_unreachable(repo_id, error))
    # The transfer library reports a full disk as a RuntimeError with the system's text in it.
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return CheckpointError(f"no space left on the disk for {repo_id}; free some and try again")
    return CheckpointError(f"could not fetch {repo_id}: {one_line(error)}; try again, finished files are kept")


def _unreachable(repo_id: str, error: LocalEntryNotFoundError) -> str:
    missing = f"{repo_id} is no folder here and not complete in the local Hub cache"
    if constants.HF_HUB_OFFLINE:
        return f"{missing} and HF_HUB_OFFLINE is set; unset it, or fetch the model on another machine"
    reason = f" ({one_line(error.__cause__)})" if error.__cause__ is not None else ""
    return f"{missing} and the Hub cannot be reached{reason}; check the network and try again"
