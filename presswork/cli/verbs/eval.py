"""`presswork eval`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from presswork.cli.model import open_engine
from presswork.cli.options import DeviceOption, DtypeOption, JsonOption, ModelOption
from presswork.cli.output import note, print_columns, print_facts, print_json
from presswork.cli.progress import progress_bar
from presswork.cli.sudoku import is_sudoku
from presswork.engine.params import Mode
from presswork.errors import RequestError, UnsupportedError
from presswork.tasks.sudoku.evaluate import evaluate_puzzles, load_puzzles
from presswork.tasks.sudoku.generate import generate, parse_clues

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_NUM = 1000


@app.callback()
def evaluate() -> None:
    """Measure how well a model does a task.

    \b
    Examples:
      presswork eval sudoku --num 1000 --clues 30-45 --seed 1 --json
      presswork eval molecules --model runs/molecules/model
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
            on_progress=on_progress, **sampling,
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
    steps: Annotated[int | None, typer.Option(help="Step budget of a canvas; the checkpoint's by default.")] = None,
    mode: Annotated[str, typer.Option(metavar="both|diffusion|ar", help="What to run.")] = "diffusion",
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Generate molecules from nothing and let RDKit judge them, as MOSES counts.

    Reports the shares that are valid, different and new, denoise steps a molecule, and tokens per second.

    \b
    Examples:
      presswork eval molecules --model runs/molecules/model --num 10000 --json
      presswork eval molecules --model runs/molecules/model --moses data/molsets-0.3.1-py3-none-any.whl
    """
    from presswork.tasks.molecules.evaluate import evaluate as judge
    from presswork.tasks.molecules.training import read_moses

    modes = _modes(mode)
    if modes == ["ar"] and steps is not None:
        raise RequestError("mode 'ar' takes no denoise steps: leave out --steps")
    known = [] if moses is None else read_moses(moses, "train")
    sampling = {} if steps is None else {"max_denoising_steps": steps}
    engine = open_engine(context.obj, model, device=device, dtype=dtype)
    parts = {}
    for name in modes:
        with progress_bar(f"writing molecules ({name})", num) as advance:
            done = 0

            def on_progress(count: int) -> None:
                nonlocal done
                advance(count - done)
                done = count

            given = sampling if name == "diffusion" else {}
            parts[name] = judge(engine, num, seed, mode=name, known=known, on_progress=on_progress, **given)
    report = {"model": model, **parts[modes[0]], **({"ar": parts["ar"]} if len(modes) > 1 else {})}
    if as_json:
        print_json(report)
        return
    for name, part in parts.items():
        note(f"{name}, {num} molecules from seed {seed}")
        print_facts({key: f"{value:.3f}" if isinstance(value, float) else value for key, value in part.items()})


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
