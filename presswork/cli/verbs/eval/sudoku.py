"""`presswork eval sudoku`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from presswork.cli.model import open_engine
from presswork.cli.options import DeviceOption, DtypeOption, JsonOption, ModelOption, StepsOption, only_given
from presswork.cli.output import note, print_columns, print_json
from presswork.cli.progress import progress_bar
from presswork.cli.sudoku import is_sudoku
from presswork.cli.verbs.eval.journal import JournalOption, journal_of
from presswork.cli.verbs.eval.modes import chosen_modes
from presswork.engine.params import Mode
from presswork.errors import UnsupportedError
from presswork.tasks.sudoku.evaluate import evaluate_puzzles, load_puzzles
from presswork.tasks.sudoku.generate import generate, parse_clues

_NUM = 1000
_Tries = Annotated[
    int, typer.Option(help="Canvases a puzzle may take, each under another symmetry; the rules judge.", min=1)
]


def sudoku(
    context: typer.Context,
    num: Annotated[
        int | None, typer.Option(help="Puzzles to draw (default: 1000), or to take from the file (all).", min=1)
    ] = None,
    clues: Annotated[str, typer.Option(help="A range such as 30-45, minimal, or mixed (22-59).")] = "30-45",
    seed: Annotated[int, typer.Option(help="Of the puzzles and of the requests.", min=0)] = 0,
    puzzles: Annotated[Path | None, typer.Option(help="Take puzzles from a file, one a line.")] = None,
    steps: StepsOption = None,
    tries: _Tries = 1,
    is_kept: Annotated[bool, typer.Option("--keep", help="Keep the canvas to nine lines of digits.")] = False,
    is_held: Annotated[
        bool, typer.Option("--hold", help="Hold the clues in the canvas too, and keep it to nine lines of digits.")
    ] = False,
    mode: Annotated[str, typer.Option(metavar="both|diffusion|ar", help="What to run.")] = "both",
    model: ModelOption = "sudoku",
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    journal: JournalOption = None,
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
    modes = chosen_modes(mode)
    sampling = only_given(max_denoising_steps=steps)
    wanted = parse_clues(clues)
    if puzzles is not None:
        grids, solutions = (part[:num] for part in load_puzzles(puzzles))
    engine = open_engine(context.obj, model, device=device, dtype=dtype, sampling={"seed": seed, **sampling})
    if not is_sudoku(engine):
        raise UnsupportedError(f"{model} does not read puzzles; give a model with the Sudoku vocabulary")
    if puzzles is None:
        grids, solutions = generate(num or _NUM, seed, wanted)
    with journal_of(context, engine, journal) as kept, progress_bar("solving", len(modes) * len(grids)) as advance:
        done = {"diffusion": 0, "ar": 0}

        def on_progress(of: Mode, count: int) -> None:
            advance(count - done[of])
            done[of] = count

        report = evaluate_puzzles(
            engine, grids, solutions, seed, with_diffusion=mode != "ar", with_ar=mode != "diffusion",
            tries=tries, is_kept=is_kept, is_held=is_held, on_progress=on_progress, journal=kept, **sampling,
        )  # fmt: skip
    source = {"clues": str(wanted)} if puzzles is None else {"puzzles": str(puzzles)}
    form = {"held": True} if is_held else {"kept": True} if is_kept else {}
    report = {"model": model, **source, **form, **report}
    if as_json:
        print_json(report)
    else:
        _print_report(report)


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
