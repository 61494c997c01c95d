"""`presswork bench`: a model in this process, or a server under load."""

import typer
from typer.core import TyperGroup

from presswork.cli.verbs.bench.offline import offline
from presswork.cli.verbs.bench.serve import serve

_HELP = ("-h", "--help")


class _Bench(TyperGroup):
    """What is no command is a model's name for the first of them."""

    def parse_args(self, ctx, args):
        if not args or (args[0] not in self.commands and args[0] not in _HELP):
            args = ["offline", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_Bench, add_completion=False, rich_markup_mode=None)
app.command()(offline)
app.command()(serve)


@app.callback()
def bench() -> None:
    """Measure speed: of a model in this process, or of a server under load.

    \b
    Examples:
      presswork bench sudoku --runs 9
      presswork bench serve http://127.0.0.1:8000 --concurrency 8
      presswork bench offline --help
    """
