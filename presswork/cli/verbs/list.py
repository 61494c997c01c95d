"""`presswork list`."""

from typing import Annotated

import typer

from presswork.cli.output import format_bytes, print_columns, print_json

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False) -> None:
    """List the models that load without a download: embedded ones and complete ones in the Hub cache.

    \b
    Examples:
      presswork list
      presswork list --json
    """
    from presswork.weights.hub import list_models

    models = list_models()
    if as_json:
        print_json([
            {"name": m.name, "kind": m.kind, "size_bytes": m.size_bytes, "path": str(m.path)} for m in models
        ])  # fmt: skip
        return
    if not models:
        typer.echo("no models here; fetch one: presswork pull ORG/NAME", err=True)
        return
    print_columns([("NAME", "KIND", "SIZE"), *((m.name, m.kind, format_bytes(m.size_bytes)) for m in models)])
