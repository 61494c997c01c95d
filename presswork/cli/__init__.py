"""The command line: `presswork VERB`, one module a verb, imported when the verb is used.

Results go to standard output, everything about them to standard error. Exit codes are in `presswork.cli.border`.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from presswork import __version__
from presswork.cli.border import guarded
from presswork.settings import Settings

# Said here and not read from the modules, so that listing the verbs imports none of them.
VERBS = {
    "run": "Generate from a prompt.",
    "chat": "Talk with a model.",
    "serve": "Serve models over HTTP.",
    "batch": "Answer a file of requests.",
    "fill": "Fill gaps in a text.",
    "edit": "Change a text in place.",
    "decide": "Answer questions with given options.",
    "train": "Train a model by a recipe.",
    "eval": "Measure how well a model does a task.",
    "bench": "Measure the speed of a model, or of a server under load.",
    "doctor": "Say whether a model fits this machine, and how fast it is.",
    "show": "Describe a model without loading it.",
    "list": "List the models that load without a download.",
    "convert": "Make a diffusion model out of an autoregressive one.",
    "merge": "Add an adapter to a model's weights.",
    "pull": "Fetch a model from the Hub.",
}


class _LazyVerb(TyperCommand):
    """Stands for a verb in listings and hands over to its module when it is called."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        app: typer.Typer = import_module(f"presswork.cli.verbs.{self.name}").app
        return typer.main.get_command(app).make_context(info_name, args, parent, **extra)


class _Presswork(TyperGroup):
    """The group of verbs; its errors become exit codes."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        return _LazyVerb(name=cmd_name, help=VERBS[cmd_name], callback=None, rich_markup_mode=None)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:
        import sys

        given = list(sys.argv[1:] if args is None else args)

        def call() -> None:
            # The library's own main would turn errors into several lines, and a broken pipe into a plain failure.
            with self.make_context("presswork", given) as context:
                self.invoke(context)

        raise SystemExit(guarded(call))


app = typer.Typer(
    cls=_Presswork,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"presswork {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _presswork(
    context: typer.Context,
    threads: Annotated[int | None, typer.Option(help="CPU threads; also PRESSWORK_THREADS.")] = None,
    log: Annotated[str | None, typer.Option(help="debug, info, warning or error; also PRESSWORK_LOG.")] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """An engine for block-diffusion language models of the DiffusionGemma family.

    \b
    Examples:
      presswork run                             write an example function with an embedded model
      presswork run --model sudoku --watch      see a Sudoku canvas settle
      presswork run "Why is the sky blue?" --model FOLDER --watch
      presswork doctor FOLDER                   say whether a model fits, and how fast it is
      presswork VERB --help                     a verb's options and examples
    """
    flags = {name: value for name, value in (("threads", threads), ("log", log and log.lower())) if value is not None}
    settings = replace(Settings.from_env(), **flags)
    logging.basicConfig(level=settings.log.upper(), format="%(levelname)s %(name)s: %(message)s")
    context.obj = settings
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """The `presswork` command; ends the process with an exit code."""
    app()


__all__ = ["app", "main"]
