"""Telling files apart by what they hold."""

import zlib
from pathlib import Path

from presswork.errors import DataError

_PIECE_BYTES = 1 << 20


def check_sum(file: Path, *, only_ends: bool = False) -> int:
    """CRC-32 of a file's contents.

    Args: only_ends: of its first and last million bytes or so, for files that take long to read.
    Raises: DataError for a file that cannot be read.
    """
    found = 0
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            while piece := opened.read(_PIECE_BYTES):
                found = zlib.crc32(piece, found)
                if only_ends and opened.tell() < size - _PIECE_BYTES:
                    opened.seek(size - _PIECE_BYTES)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    return found
