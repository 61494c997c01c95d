"""The `presswork` command.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such model, 4 bad checkpoint, 130 Ctrl-C, 141 broken pipe.
"""

import logging
import signal
import sys
from typing import Annotated

import typer

from presswork import __version__
from presswork.errors import (
    CheckpointError,
    ConfigError,
    ModelNotFoundError,
    PressworkError,
    RequestError,
)
from presswork.settings import Settings

# typer may bring its own copy of click; this is the base of all its usage errors either way.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]
_EXIT_CODES = ((ModelNotFoundError, 3), (CheckpointError, 4), (ConfigError, 2), (RequestError, 2), (PressworkError, 1))


def build_app() -> typer.Typer:
    """All verbs; each module imports what is heavy inside its command."""
    from presswork.cli import bench, chat, doctor, evaluate, models, run

    app = typer.Typer(
        name="presswork",
        help="Generate with block-diffusion language models.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        add_completion=False,
    )
    app.callback()(_root)
    for module in (run, chat, models, doctor, bench, evaluate):
        module.register(app)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"presswork {__version__}")
        raise typer.Exit()


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Takes the options that stand before a verb."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every failure is one line on stderr and a proper exit code."""
    if hasattr(signal, "SIGPIPE"):
        # `presswork ... | head` ends quietly, as other commands do.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(_run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: list[str]) -> int:
    try:
        _configure(Settings.from_env())
        result = build_app()(arguments, standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except _UsageError as error:
        return _explain(error)
    except (typer.Abort, KeyboardInterrupt):
        print("presswork: interrupted", file=sys.stderr)
        return 130
    except PressworkError as error:
        print(f"presswork: {error}", file=sys.stderr)
        return next(code for kind, code in _EXIT_CODES if isinstance(error, kind))


def _explain(error: Exception) -> int:
    """One line for a wrong flag, argument or verb; the help page where a verb is missing."""
    text = error.format_message()  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(text, file=sys.stderr)
    else:
        place = "presswork" if context is None else context.command_path.replace("python -m presswork", "presswork")
        print(f"presswork: {text.rstrip('.')}; see {place} --help", file=sys.stderr)
    return 2


def _configure(settings: Settings) -> None:
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    if settings.threads is not None:
        import torch

        torch.set_num_threads(settings.threads)
