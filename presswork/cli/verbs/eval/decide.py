"""`presswork eval decide`."""

from typing import Annotated

import typer

from presswork.cli.model import open_engine
from presswork.cli.options import DeviceOption, DtypeOption, JsonOption, RequiredModelOption, TextsArgument
from presswork.cli.output import print_facts, print_json
from presswork.cli.progress import counting_bar


def decide(
    context: typer.Context,
    model: RequiredModelOption,
    files: TextsArgument,
    num: Annotated[int, typer.Option(help="Decisions, drawn by the seed.", min=1)] = 200,
    style: Annotated[str, typer.Option(metavar="letters|texts", help="How options are read.")] = "letters",
    steps: Annotated[int, typer.Option(help="Denoise passes.", min=1, max=2)] = 2,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Compare with the answers to no state.")] = False,
    seed: Annotated[int, typer.Option(help="Of what is drawn and of the noise.", min=0)] = 0,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide labelled questions, or which of four lines comes next in a text.

    A labelled line of a .jsonl file is {"state": ..., "questions": {...}, "answers": {name: option}}. Reports how often
    the likeliest option is the right one, beside chance, and how far the model is as sure as it is right.

    \b
    Examples:
      presswork eval decide labelled.jsonl --model FOLDER
      presswork eval decide src/*.py --model FOLDER --style texts --calibrate --json
    """
    from presswork.tasks.canvas.decide import evaluate_decide, read_decisions

    decisions = read_decisions(files, num, seed)
    engine = open_engine(context.obj, model, device=device, dtype=dtype)
    with counting_bar("deciding", len(decisions)) as count:
        found = evaluate_decide(
            engine, decisions, style=style, steps=steps, calibrate=calibrate, seed=seed, on_progress=count
        )
    if as_json:
        print_json({"model": model, "seed": seed, "style": style, "steps": steps, "calibrate": calibrate, **found})
        return
    print_facts({name: f"{value:.3f}" if isinstance(value, float) else value for name, value in found.items()})
