"""`presswork merge`."""

from pathlib import Path
from typing import Annotated

import typer

from presswork.cli.model import apply_threads, loading_bar
from presswork.cli.options import ModelArgument
from presswork.cli.output import note

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def merge(
    context: typer.Context,
    model: ModelArgument,
    adapter: Annotated[Path, typer.Argument(help="The adapter's folder.", metavar="ADAPTER")],
    out: Annotated[Path, typer.Argument(help="The new model's folder.", metavar="FOLDER")],
) -> None:
    """Add an adapter to a model's weights and write the result, which needs no adapter.

    Sums are taken in float32 and rounded once, to the model's dtype.

    \b
    Examples:
      presswork merge google/diffusiongemma-26b-a4b-it runs/lora/adapter runs/merged
      presswork run "Hello" --model runs/merged
    """
    from presswork.text.tokenizer import tokenizer_files
    from presswork.weights.convert import merge as write
    from presswork.weights.files import GENERATION_CONFIG_FILE
    from presswork.weights.hub import resolve

    apply_threads(context.obj)
    folder = resolve(model)
    defaults = folder / GENERATION_CONFIG_FILE
    others = [*tokenizer_files(folder), *([defaults] if defaults.is_file() else [])]
    with loading_bar(model) as progress:
        write(folder, adapter, out, extra=others, progress=progress)
    note(f"wrote {out}; try: presswork run --model {out}")
