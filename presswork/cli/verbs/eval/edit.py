"""`presswork eval edit`."""

from typing import Annotated

import typer

from presswork.cli.model import open_engine
from presswork.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    StepsOption,
    TextsArgument,
    only_given,
)
from presswork.cli.output import print_facts, print_json
from presswork.cli.progress import counting_bar
from presswork.weights.hub import DEFAULT_MODEL


def edit(
    context: typer.Context,
    files: TextsArgument,
    model: ModelOption = DEFAULT_MODEL,
    num: Annotated[int, typer.Option(help="Texts to damage, drawn by the seed.", min=1)] = 200,
    span_tokens: Annotated[int, typer.Option(help="Most tokens of a damaged part.", min=1)] = 8,
    damage: Annotated[float, typer.Option(help="Share of its characters that are replaced.", min=0, max=1)] = 0.1,
    strength: Annotated[
        float, typer.Option(help="Of the edit: share of tokens that start as noise.", min=0, max=1)
    ] = 0.3,
    max_changes: Annotated[
        int | None, typer.Option(help="Tokens that may change, each for one other.", min=0, show_default=False)
    ] = None,
    candidates: Annotated[int, typer.Option(help="Ways to write each part, the likeliest counts.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="Of what is drawn and of the requests.", min=0)] = 0,
    steps: StepsOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace characters in a part of each text and edit that part.

    Reports the share of texts that are again what they were, and of those in which nothing around the part changed.

    \b
    Examples:
      presswork eval edit src/*.py --num 100
      presswork eval edit texts.jsonl --damage 0.2 --strength 0.5 --json
    """
    from presswork.tasks.canvas.edit import evaluate_edit
    from presswork.tasks.canvas.texts import cut_tasks

    sampling = only_given(max_denoising_steps=steps)
    engine = open_engine(context.obj, model, device=device, dtype=dtype, sampling=sampling)
    tasks = cut_tasks(engine, files, num, seed, max_tokens=span_tokens)
    with counting_bar("editing", num) as count:
        found = evaluate_edit(
            engine, tasks, seed, share=damage, strength=strength, max_changes=max_changes, num_candidates=candidates,
            on_progress=count, **sampling,
        )  # fmt: skip
    if as_json:
        print_json({"model": model, "seed": seed, "span_tokens": span_tokens, **found})
        return
    print_facts({name: f"{value:.3f}" if isinstance(value, float) else value for name, value in found.items()})
