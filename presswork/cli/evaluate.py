"""`presswork eval`: scores of a model on a task, from puzzles drawn by a seed."""

from typing import Annotated, Any

import typer

from presswork.cli.options import DEFAULT_MODEL, DeviceOption, DtypeOption, JsonOption, open_engine, print_json


def register(app: typer.Typer) -> None:
    """Add the verb; each task is a command of its own."""
    tasks = typer.Typer(help="Score a model on a task.", no_args_is_help=True)
    tasks.command("sudoku")(sudoku)
    app.add_typer(tasks, name="eval")


def sudoku(
    num: Annotated[int, typer.Option(min=1, help="How many fresh puzzles.")] = 1000,
    clues: Annotated[str, typer.Option(help="minimal, mixed, or a range such as 30-45.")] = "30-45",
    seed: Annotated[int, typer.Option(min=0, help="Draws the puzzles and the noise.")] = 0,
    puzzles: Annotated[str | None, typer.Option(help="A file of puzzles instead, 81 characters a line.")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Embedded name, folder or Hub id.")] = DEFAULT_MODEL,
    ar: Annotated[bool, typer.Option(help="Solve them in ar mode too.")] = True,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    json: JsonOption = False,
) -> None:
    """Share of puzzles solved exactly, cells right, denoise steps and speed; the same weights in ar mode beside it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from presswork.tasks.sudoku.evaluate import evaluate_puzzles, load_puzzles
    from presswork.tasks.sudoku.generate import generate, parse_clues

    if puzzles is None:
        wanted = parse_clues(clues)
        grids, solutions = generate(num, seed, wanted)
        source: dict[str, Any] = {"clues": str(wanted)}
    else:
        grids, solutions = load_puzzles(puzzles)
        source = {"puzzles": puzzles}
    engine = open_engine(model, device=device, dtype=dtype)
    columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bars = {
            mode: progress.add_task(mode, total=len(grids)) for mode in (("diffusion", "ar") if ar else ("diffusion",))
        }
        report = source | evaluate_puzzles(
            engine, grids, solutions, seed, with_ar=ar,
            on_progress=lambda mode, done: progress.update(bars[mode], completed=done),
        )  # fmt: skip
    if json:
        print_json(report)
        return
    for mode in bars:
        row = report if mode == "diffusion" else report["ar"]
        print(
            f"{mode:<10} solved {row['solved']:.3f}  cells {row['cells']:.4f}  steps {row['mean_steps']:.1f}  "
            f"{row['tokens_per_s']:.0f} tokens/s"
        )
