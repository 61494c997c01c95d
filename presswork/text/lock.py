"""Files that one process at a time writes to."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from presswork.errors import DataError


@contextmanager
def kept_from_others(file: Path, by: str = "run") -> Iterator[FileIO]:
    """A file opened to be read and appended to, unbuffered, and held, so that no second process writes to it.

    Unbuffered: what could not be written is not tried again when the file is closed.

    Args: by: what writes to such files, for the message.
    Raises: DataError where another does, or the file cannot be opened.
    """
    try:
        opened = file.open("a+b", buffering=0)
    except OSError as error:
        raise _unwritable(file, error) from error
    with opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another {by} writes to {file}; wait for it, or give another file") from error
        except OSError as error:
            raise _unwritable(file, error) from error
        yield opened


def _unwritable(file: Path, error: OSError) -> DataError:
    return DataError(f"{file} cannot be written: {error}; give another file")
