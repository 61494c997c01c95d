"""What a long evaluation has found so far, kept in a file, so that one that broke off goes on where it was.

    {"about": {"model": "code", "seed": 0, ...}}
    {"part": "infill diffusion HumanEval/0/0", "found": {...}}
    {"part": "infill diffusion HumanEval/0/1", "found": {...}}

A line is written when its part is done. A last line that broke off is cut, and its part is done again.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from presswork.errors import DataError
from presswork.text.lock import kept_from_others

Found = dict[str, Any]
"""What one part of an evaluation found, as JSON has it."""

_BEGINNING = b'{"about": '


class Journal:
    """Parts of an evaluation that are done; without a file, none are."""

    def __init__(self, found: Mapping[str, Found] | None = None, opened: FileIO | None = None):
        """Args: found: by part. opened: file that further parts go to, unbuffered."""
        self._found, self._opened = dict(found or {}), opened

    def once(self, part: str, work: Callable[[], Found]) -> Found:
        """What a part found: from the file where that has it, else by doing it. Mutates the file.

        Raises: DataError when the file cannot be written; what it has stays.
        """
        if part in self._found:
            return self._found[part]
        found = work()
        if self._opened is not None:
            _write(self._opened, {"part": part, "found": found})
        return found


NO_JOURNAL = Journal()


@contextmanager
def open_journal(file: Path, about: Mapping[str, Any]) -> Iterator[Journal]:
    """A journal in a file, begun or gone on with.

    Args: about: what an evaluation depends on; a file whose evaluation depended on something else is refused.
    Raises: DataError for that, for a file that is no journal, that another process writes to, or that cannot be used.
    """
    if file.exists() and not file.is_file():
        raise DataError(f"{file} cannot be used as a journal: it is no file; give another one")
    with kept_from_others(file, by="evaluation") as opened:
        try:
            found = _begin(file, opened, json.loads(json.dumps(about)))
        except OSError as error:
            raise DataError(
                f"{file} cannot be used as a journal: {error.strerror or error}; give another file"
            ) from error
        yield Journal(found, opened)


def _begin(file: Path, opened: FileIO, about: Mapping[str, Any]) -> dict[str, Found]:
    """What a file has; its first line is written where it has nothing. Mutates the file."""
    opened.seek(0)
    data = opened.read()
    whole = data[: data.rfind(b"\n") + 1]
    if not whole and not _BEGINNING.startswith(data[: len(_BEGINNING)]):
        raise DataError(f"{file} is no journal of an evaluation; give another file")
    theirs, found = _read(file, whole)
    known = about if theirs is None else theirs
    differing = [name for name in {**known, **about} if known.get(name) != about.get(name)]
    if differing:
        name = differing[0]
        raise DataError(
            f"{file} is the journal of another evaluation: {name} was {known.get(name)!r} there and is "
            f"{about.get(name)!r} now; give another file"
        )
    os.ftruncate(opened.fileno(), len(whole))
    if theirs is None:
        _write(opened, {"about": about})
    return found


def _read(file: Path, whole: bytes) -> tuple[dict[str, Any] | None, dict[str, Found]]:
    """(what a journal is about, None where it has no line; its parts)."""
    about: dict[str, Any] | None = None
    found: dict[str, Found] = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            record = json.loads(line)
            if about is None:
                about = dict(record["about"])
            else:
                found[record["part"]] = record["found"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}, line {number}: not of a journal of an evaluation; give another file") from error
    return about, found


def _write(opened: FileIO, record: Mapping[str, Any]) -> None:
    data = json.dumps(record).encode() + b"\n"
    try:
        if opened.write(data) != len(data):
            raise OSError("only part of a line was taken")
    except OSError as error:
        raise DataError(
            f"{opened.name} cannot be written: {error.strerror or error}; make room, then run again to go on"
        ) from error
