"""`presswork convert`."""

from pathlib import Path
from typing import Annotated

import typer

from presswork.cli.model import apply_threads, loading_bar
from presswork.cli.options import ModelArgument
from presswork.cli.output import note

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def convert(
    context: typer.Context,
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="The new model's folder.", metavar="FOLDER")],
    canvas: Annotated[int, typer.Option(help="Tokens of its canvas.", min=1)] = 256,
) -> None:
    """Make a diffusion model out of an autoregressive one of the same architecture, to be trained further.

    Both modes get its weights, and self-conditioning starts silent: in mode "ar" the new model is the old one, and its
    canvases are untrained until a recipe has trained them.

    \b
    Examples:
      presswork convert google/gemma-4-26b-a4b-it runs/start --canvas 64
      presswork train recipes/adapt.py --set start.model=runs/start
    """
    from presswork.text.tokenizer import tokenizer_files
    from presswork.weights.convert import convert as write
    from presswork.weights.hub import resolve

    apply_threads(context.obj)
    folder = resolve(model)
    with loading_bar(model) as progress:
        write(folder, out, canvas_length=canvas, extra=tokenizer_files(folder), progress=progress)
    note(f"wrote {out}; train it with a recipe that starts from it")
