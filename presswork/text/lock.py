"""Files that one process at a time writes to."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from presswork.errors import DataError


@contextmanager
def kept_from_others(file: Path, by: str = "run", instead: str = "another file") -> Iterator[FileIO]:
    """A file opened to be read and appended to, unbuffered, and held, so that no second process writes to it.

    Unbuffered: what could not be written is not tried again when the file is closed.

    Args: by, instead: for the messages, what writes to such files, and what to give when this one cannot be had.
    Raises: DataError where another does, or the file cannot be opened.
    """
    try:
        opened = file.open("a+b", buffering=0)
    except OSError as error:
        raise _unwritable(file, error, instead) from error
    with opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another {by} holds {file}; wait for it, or give {instead}") from error
        except OSError as error:
            raise _unwritable(file, error, instead) from error
        yield opened


def _unwritable(file: Path, error: OSError, instead: str) -> DataError:
    return DataError(f"{file} cannot be written: {error}; give {instead}")
