"""`presswork eval structure`."""

from typing import Annotated, Any

import typer

from presswork.cli.model import open_engine
from presswork.cli.options import DeviceOption, DtypeOption, JsonOption, ModelOption
from presswork.cli.output import note, print_columns, print_json
from presswork.cli.progress import counting_bar
from presswork.cli.verbs.eval.journal import JournalOption, journal_of
from presswork.cli.verbs.eval.modes import chosen_modes
from presswork.engine.params import Mode
from presswork.errors import RequestError
from presswork.weights.hub import DEFAULT_MODEL

_SHOWN = 3  # free replies that are not valid

_Steps = Annotated[
    int | None,
    typer.Option(help="Step budget of a canvas; 1, 2, 4, 8 and 16 in turn by default.", min=1, show_default=False),
]
_Free = Annotated[
    bool, typer.Option("--free", help="Write each without its language too, to see what keeping to it changes.")
]


def structure(
    context: typer.Context,
    model: ModelOption = DEFAULT_MODEL,
    schemas: Annotated[int, typer.Option(help="Random JSON schemas.", min=0)] = 1000,
    regexes: Annotated[int, typer.Option(help="Random regexes.", min=0)] = 500,
    seed: Annotated[int, typer.Option(help="Of the languages and of the requests.", min=0)] = 0,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Draw the weights anew: validity must not depend on them.")
    ] = False,
    steps: _Steps = None,
    free: _Free = False,
    mode: Annotated[str, typer.Option(metavar="both|diffusion|ar", help="What to run.")] = "diffusion",
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    journal: JournalOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep replies to random languages, in 1 to 16 steps, and let independent libraries judge them.

    JSON is judged by jsonschema, regexes by Python's re. Every reply must be valid; those that are not are listed, and
    the exit code is 1. Free ones may be what they are.

    \b
    Examples:
      presswork eval structure --json
      presswork eval structure --schemas 100 --regexes 50 --random-weights --mode both
      presswork eval structure --schemas 100 --regexes 50 --steps 16 --free
    """
    from presswork.tasks.structure.evaluate import STEPS, evaluate, regex_tasks, schema_tasks
    from presswork.weights.initialise import fill_random

    modes = chosen_modes(mode)
    if not schemas and not regexes:
        raise RequestError("--schemas and --regexes are both 0; give at least one of them")
    tasks = [*(schema_tasks(schemas, seed) if schemas else ()), *regex_tasks(regexes, seed)]
    engine = open_engine(context.obj, model, device=device, dtype=dtype)
    if random_weights:
        fill_random(engine.model, seed)
    budgets = STEPS if steps is None else (steps,)
    ways: dict[str, tuple[Mode, bool]] = {name: (name, False) for name in modes}
    if free:
        ways["free"] = (modes[0], True)
    parts = {}
    with journal_of(context, engine, journal) as done:
        for name, (own, is_free) in ways.items():
            with counting_bar(f"writing ({name})", len(tasks)) as count:
                parts[name] = evaluate(
                    engine, tasks, seed, mode=own, budgets=budgets, is_free=is_free, on_progress=count, journal=done
                )
    if free:
        parts["free"]["invalid"] = parts["free"]["invalid"][:_SHOWN]
    if as_json:
        first, *others = parts
        print_json(
            {"model": model, "random_weights": random_weights, **parts[first], **{name: parts[name] for name in others}}
        )
    else:
        _print_structure(parts)
    if any(parts[name]["invalid"] for name in modes):
        raise typer.Exit(1)


def _print_structure(parts: dict[str, dict[str, Any]]) -> None:
    rows = [("MODE", "KIND", "NUM", "VALID", "ENDED", "STEPS", "SECONDS")]
    for name, part in parts.items():
        for kind in ("schema", "regex"):
            if kind in part:
                found = part[kind]
                num, valid, ended = (str(found[key]) for key in ("num", "valid", "ended"))
                steps, seconds = f"{part['mean_steps']:.1f}", f"{part['wall_s']:.1f}"
                rows.append((name, kind, num, valid, ended, steps, seconds))
        for failed in part["invalid"] if name != "free" else ():
            note(f"invalid {failed['kind']} {failed['source']}: {failed['text']!r}")
    print_columns(rows)
