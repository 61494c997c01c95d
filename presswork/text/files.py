"""Reading the small text files of a model folder, with one clear error when a file is missing or broken."""

import json
from pathlib import Path
from typing import Any

from presswork.errors import CheckpointError


def read_text(path: Path) -> str:
    """The file's text as UTF-8.

    Raises: CheckpointError naming the file when it cannot be opened or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); check the model folder") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 text (byte {error.start}); fetch the model again") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The file's JSON object, or an empty one when there is no such file.

    Raises: CheckpointError naming the file when it is not a JSON object.
    """
    if not path.exists():
        return {}
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); fetch the model again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: got a JSON {type(value).__name__}, expected an object; fetch the model again")
    return value
