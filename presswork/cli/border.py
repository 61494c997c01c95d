"""Where errors end: one line on standard error and an exit code.

Codes:
    0    done
    1    failed while it ran, or `doctor` found that a model does not fit
    2    a wrong flag, value, prompt, environment variable or data file
    3    no such model
    4    a checkpoint that cannot be used
    130  Ctrl-C
    141  whoever read the output stopped reading
"""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import typer

from presswork.errors import CheckpointError, ConfigError, DataError, ModelNotFoundError, PressworkError, RequestError

_CODES: tuple[tuple[type[PressworkError], int], ...] = (
    (ModelNotFoundError, 3), (CheckpointError, 4), (ConfigError, 2), (RequestError, 2),
    (DataError, 2), (PressworkError, 1),
)  # fmt: skip
_INTERRUPTED, _BROKEN_PIPE = 130, 141
# The base of what the flag parser raises has no public name in every version of the library.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def guarded(call: Callable[[], object]) -> int:
    """Run a command and return its exit code; what goes wrong on purpose is told in one line.

    Other exceptions are bugs and pass through.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  (as long as we live)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows a mark; it is no reason to fail.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
        call()
        sys.stdout.flush()
    except typer.Exit as stop:
        return _flushed(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _told("interrupted", _INTERRUPTED)
    except BrokenPipeError:
        return _silenced()
    except _UsageError as error:
        return _told(_usage(error), 2)
    except PressworkError as error:
        return _told(str(error), next(code for kind, code in _CODES if isinstance(error, kind)))
    except OSError as error:
        return _told(str(error), 1)
    return 0


def _told(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"presswork: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return _flushed(code)


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _silenced()
    return code


def _silenced() -> int:
    """Point standard output at nothing, or the interpreter complains about the rest of it when it ends."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)
    return _BROKEN_PIPE


def _usage(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    path = "presswork" if context is None else context.command_path
    text = error.format_message() if hasattr(error, "format_message") else str(error)  # type: ignore[attr-defined]
    return f"{text.rstrip('.')}; see {path} --help"
