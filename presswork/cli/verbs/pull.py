"""`presswork pull`."""

from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="A Hub id: ORG/NAME.", metavar="ID")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
) -> None:
    """Fetch a model from the Hub into its local cache; a broken download goes on where it stopped.

    Prints the folder it lies in. With HF_HUB_OFFLINE=1 nothing is fetched.

    \b
    Examples:
      presswork pull google/diffusiongemma-26b-a4b-it
      presswork doctor "$(presswork pull google/diffusiongemma-26b-a4b-it)"
    """
    from presswork.weights.hub import pull as fetch

    typer.echo(str(fetch(model, revision=revision)))
