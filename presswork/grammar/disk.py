"""Prepared languages kept in files, because a large one over a large vocabulary takes seconds to prepare."""

import contextlib
import hashlib
import logging
import os
import tempfile
import zipfile
import zlib
from dataclasses import fields
from pathlib import Path

import numpy as np

from presswork.grammar.token_automaton import TokenAutomaton

_log = logging.getLogger(__name__)

_FORMAT = 3  # part of each name; raise it when the same language would be prepared differently
MAX_FILES = 512  # the oldest go first; a file has some ten to some hundred kilobytes


def name_of(language: str, vocabulary: str) -> str:
    """The file name of a language over a vocabulary, from the keys of both."""
    return (
        hashlib.sha256(f"{_FORMAT}\n{vocabulary}\n{language}".encode("utf-8", "surrogatepass")).hexdigest()[:40]
        + ".npz"
    )


def read(file: Path) -> TokenAutomaton | None:
    """What a file holds; None where there is none, or it cannot be used."""
    try:
        # Opened here, because numpy leaves a damaged file open.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
        num_classes = int(held.pop("num_classes"))
        automaton = TokenAutomaton(num_classes=num_classes, **held)
        if not _is_sound(automaton):
            raise ValueError("its numbers do not fit together")
    except FileNotFoundError:
        return None
    except (
        OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, NotImplementedError, zlib.error,
        zipfile.BadZipFile,
    ) as problem:  # fmt: skip
        _log.warning("%s cannot be used (%s); it is prepared anew", file, problem)
        return None
    with contextlib.suppress(OSError):
        os.utime(file)
    return automaton


def _is_sound(automaton: TokenAutomaton) -> bool:
    """Whether every number stays within what it counts: compiled loops do not check."""
    states, groups = len(automaton.accepts), len(automaton.group_starts) - 1

    def within(values: np.ndarray, low: int, high: int) -> bool:
        return values.dtype.kind == "i" and (values.size == 0 or (values.min() >= low and values.max() < high))

    def starts(values: np.ndarray, num: int, total: int) -> bool:
        is_rising = len(values) == num + 1 and bool((np.diff(values) >= 0).all())
        return is_rising and values[0] == 0 and values[-1] == total

    return (
        states > 0
        and automaton.accepts.dtype == bool
        and starts(automaton.edge_starts, states, len(automaton.edge_to))
        and starts(automaton.group_starts, groups, len(automaton.group_classes))
        and len(automaton.edge_group) == len(automaton.edge_to)
        and len(automaton.fewest) == len(automaton.most) == states
        and within(automaton.edge_to, 0, states)
        and within(automaton.edge_group, 0, groups)
        and within(automaton.group_classes, 0, automaton.num_classes)
        and within(automaton.class_of, -1, automaton.num_classes)
        and bool((np.diff(automaton.group_starts) > 0).all())
    )


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
