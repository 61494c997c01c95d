"""`presswork eval`, one module a task."""

import typer

from presswork.cli.verbs.eval.code import code
from presswork.cli.verbs.eval.decide import decide
from presswork.cli.verbs.eval.edit import edit
from presswork.cli.verbs.eval.fill import fill
from presswork.cli.verbs.eval.molecules import molecules
from presswork.cli.verbs.eval.structure import structure
from presswork.cli.verbs.eval.sudoku import sudoku

app = typer.Typer(add_completion=False, rich_markup_mode=None)
for task in (sudoku, molecules, code, structure, fill, edit, decide):
    app.command()(task)


@app.callback()
def evaluate() -> None:
    """Measure how well a model does a task.

    \b
    Examples:
      presswork eval sudoku --num 1000 --clues 30-45 --seed 1 --json
      presswork eval molecules --num 256 --best-of 4
      presswork eval code --validation data/code/validation.npz
      presswork eval sudoku --help
    """
