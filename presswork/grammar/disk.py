"""Prepared languages kept in files, because a large one over a large vocabulary takes seconds to prepare."""

import contextlib
import hashlib
import logging
import os
import tempfile
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np

from presswork.grammar.token_automaton import TokenAutomaton

_log = logging.getLogger(__name__)

_FORMAT = 1  # part of each name; raise it when the same language would be prepared differently
MAX_FILES = 512  # the oldest go first; a file has some ten to some hundred kilobytes


def name_of(language: str, vocabulary: str) -> str:
    """The file name of a language over a vocabulary, from the keys of both."""
    return hashlib.sha256(f"{_FORMAT}\n{vocabulary}\n{language}".encode()).hexdigest()[:40] + ".npz"


def read(file: Path) -> TokenAutomaton | None:
    """What a file holds; None where there is none, or it cannot be used."""
    try:
        # Opened here, because numpy leaves a damaged file open.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
        num_classes = int(held.pop("num_classes"))
        automaton = TokenAutomaton(num_classes=num_classes, **held)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as problem:
        _log.warning("%s cannot be used (%s); it is prepared anew", file, problem)
        return None
    with contextlib.suppress(OSError):
        os.utime(file)
    return automaton


def write(file: Path, automaton: TokenAutomaton) -> None:
    """Keep a prepared language; a disk that is full or cannot be written costs the file and nothing else."""
    arrays = {field.name: getattr(automaton, field.name) for field in fields(TokenAutomaton)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
            try:
                np.savez_compressed(part, **arrays)
                part.close()
                os.replace(part.name, file)
            except BaseException:
                Path(part.name).unlink(missing_ok=True)
                raise
        _drop_oldest(file.parent)
    except OSError as problem:
        _log.warning("%s cannot be written (%s); this language will be prepared again next time", file, problem)


def _drop_oldest(folder: Path) -> None:
    files = list(folder.glob("*.npz"))
    if len(files) > MAX_FILES:
        for file in sorted(files, key=lambda f: f.stat().st_mtime)[: len(files) - MAX_FILES]:
            file.unlink(missing_ok=True)
