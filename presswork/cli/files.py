"""Text files that verbs read and write."""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from presswork.errors import RequestError


def read_text(file: Path, name: str = "text") -> str:
    """A file's text, line ends as they are; - is standard input.

    Args: name: what the messages call it.
    Raises: RequestError.
    """
    origin = "standard input" if str(file) == "-" else str(file)
    try:
        return (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"the {name} in {origin} cannot be read: byte {error.start} is not UTF-8") from error
    except OSError as error:
        raise RequestError(f"the {name} cannot be read: {error}; give a text file") from error


def check_can_apply(file: Path) -> None:
    """Raises RequestError where --apply has no file to write to, before there is anything to write."""
    if str(file) == "-":
        raise RequestError("--apply writes to the file, and standard input is none; leave it out")
    try:
        with tempfile.TemporaryFile(dir=file.resolve().parent):
            pass
    except OSError as error:
        raise RequestError(f"{file} cannot be written: {error}; leave --apply out") from error


def write_atomically(file: Path, text: str, *, over: str) -> None:
    """Put a text in a file's place, with its permissions: all of it, or nothing.

    Args: over: what the file held when it was read.
    Raises: RequestError where it holds something else by now, or cannot be written.
    """
    try:
        # Through a link, so that what it points to is written and the link stays.
        target = file.resolve()
        if target.read_bytes() != over.encode():
            raise RequestError(f"{file} has changed since it was read; it is left as it is, run the command again")
        descriptor, part = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(text.encode())
                opened.flush()
                os.fsync(opened.fileno())
            if target.exists():
                os.chmod(part, target.stat().st_mode & 0o7777)
            os.replace(part, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
    except OSError as error:
        raise RequestError(f"{file} cannot be written: {error}; it is as it was") from error
