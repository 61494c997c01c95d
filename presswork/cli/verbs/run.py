"""`presswork run`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from presswork.cli.model import open_engine
from presswork.cli.options import AdapterOption, DeviceOption, DtypeOption, JsonOption, ModelOption, sampling_flags
from presswork.cli.output import note, print_json, reply_json, write_text
from presswork.cli.progress import progress_bar
from presswork.cli.stream import can_draw, figures, watch, write_events
from presswork.cli.sudoku import EXAMPLE, MAX_TOKENS, grid_text, is_sudoku, puzzle_text
from presswork.engine.engine import Engine
from presswork.engine.events import Reply
from presswork.errors import RequestError
from presswork.tasks.sudoku.encoding import decode_solution
from presswork.tasks.sudoku.evaluate import is_solved
from presswork.tasks.sudoku.generate import Cells
from presswork.tasks.sudoku.tries import MAX_TRIES, replies_to
from presswork.weights.hub import DEFAULT_MODEL

_Tries = Annotated[
    int | None,
    typer.Option(
        help="Canvases a Sudoku may take, each under another symmetry; the rules judge.", min=1, max=MAX_TRIES,
        show_default=False,
    ),
]  # fmt: skip

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_FUNCTION = 'def mean(values):\n    """Return the arithmetic mean of a list of numbers."""\n'
_EXAMPLE_TOKENS = 192


@app.command()
@sampling_flags
def run(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads it from standard input.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from a file.")] = None,
    model: ModelOption = DEFAULT_MODEL,
    raw: Annotated[bool, typer.Option("--raw", help="Do not apply the chat template to the prompt.")] = False,
    is_watched: Annotated[bool, typer.Option("--watch", "-w", help="Draw the canvas while it settles.")] = False,
    best_of: Annotated[
        int, typer.Option(help="Write so many replies; the one that the causal mode finds likeliest counts.", min=1)
    ] = 1,
    tries: _Tries = None,
    as_json: JsonOption = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    adapters: AdapterOption = None,
    *,
    sampling: dict[str, Any],
) -> None:
    """Generate from a prompt and print the text as it is committed.

    The embedded `code` model goes on with Python and plain technical English; the embedded `sudoku` model takes a
    puzzle, 81 digits by rows, with 0 . _ or * for empty cells. Without a prompt both do an example. Figures go to
    standard error.

    \b
    Examples:
      presswork run --watch
      presswork run --model sudoku --watch
      presswork run --model sudoku --file puzzle.txt --tries 32
      presswork run "Why is the sky blue?" --model FOLDER --max-tokens 200 --seed 7
      cat notes.txt | presswork run - --model FOLDER --json
      presswork run --model sudoku --file puzzle.txt --mode ar --temperature 0
      presswork run "Dear Ms Ito," --model FOLDER --adapter letters=runs/lora/adapter
    """
    if is_watched and as_json:
        raise RequestError("--watch and --json exclude each other: one is for eyes, the other for programs")
    if is_watched and best_of > 1:
        raise RequestError("--watch shows one reply as it is written, and --best-of writes several; leave one out")
    if tries is not None and (is_watched or best_of > 1):
        raise RequestError("--tries writes canvases until one is right; leave out --watch and --best-of")
    for name in ("logprobs", "trace"):
        if sampling.get(name) and not as_json:
            raise RequestError(f"--{name} is told by --json; add it")
    text = _prompt(prompt, file, raw)
    engine = open_engine(context.obj, model, device=device, dtype=dtype, sampling=sampling, adapters=adapters or ())
    if text is None:
        text = _example(engine, raw)
        if not is_sudoku(engine):
            sampling = {"max_tokens": _EXAMPLE_TOKENS, **sampling}
    if tries is not None and (raw or not is_sudoku(engine)):
        raise RequestError("--tries is for Sudoku puzzles, whose rules say when one is solved; leave it out")
    if tries is not None:
        return _solve_by_tries(engine, text, sampling, tries, as_json=as_json)
    if is_sudoku(engine) and not raw:
        return _solve(engine, text, sampling, best_of, is_watched=is_watched, as_json=as_json)
    reply, held_s = _generate(engine, text, sampling, best_of, raw=raw, is_watched=is_watched, is_quiet=as_json)
    if as_json:
        print_json({"model": engine.name, **reply_json(reply)})
    else:
        note(figures(reply, held_s))


def _prompt(prompt: str | None, file: Path | None, raw: bool) -> str | None:
    """The prompt from wherever it was given; the line end that echo and editors add is not part of it."""
    if prompt is not None and file is not None:
        raise RequestError(f"give either a prompt or --file, got both: {prompt[:40]!r} and {file}")
    if file is None and prompt != "-":
        return prompt
    origin = "standard input" if file is None else str(file)
    try:
        text = (sys.stdin.buffer.read() if file is None else file.read_bytes()).decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"the prompt in {origin} is not UTF-8 text: byte {error.start} is wrong") from error
    except OSError as error:
        raise RequestError(f"the prompt cannot be read: {error}; --file takes a text file") from error
    return text if raw else text.removesuffix("\n").removesuffix("\r")


def _example(engine: Engine, raw: bool) -> str:
    if is_sudoku(engine) and not raw:
        note("no prompt given: solving an example puzzle")
        return EXAMPLE
    if engine.name == DEFAULT_MODEL:
        note(f"no prompt given: writing an example function\n\n{_FUNCTION}")
        return _FUNCTION
    raise RequestError("no prompt; give one as an argument, - to read standard input, or --file FILE")


def _generate(
    engine: Engine, text: str, sampling: dict[str, Any], best_of: int, *, raw: bool, is_watched: bool, is_quiet: bool
) -> tuple[Reply, float]:
    """The reply, and the seconds it was held up by drawing."""
    if best_of > 1:
        best = engine.generate(text, raw=raw, best_of=best_of, **sampling)
        if not is_quiet:
            write_text(best.text + "\n")
        return best, 0.0
    if is_watched and not can_draw():
        note("standard output is not a terminal: the canvas is not drawn")
        is_watched = False
    if not is_watched:
        return write_events(engine.stream(text, raw=raw, **sampling), is_quiet=is_quiet), 0.0
    reply, held_s = watch(engine.stream(text, raw=raw, drafts=True, **sampling), engine)
    if not is_quiet:
        write_text(reply.text + "\n")
    return reply, held_s


def _solve(
    engine: Engine, text: str, sampling: dict[str, Any], best_of: int, *, is_watched: bool, as_json: bool
) -> None:
    """A puzzle in, a grid out."""
    puzzle, shown_puzzle = puzzle_text(text)
    if not as_json:
        note(f"{shown_puzzle}\n")
    # A grid with its end token, and no second canvas where a model forgets the end.
    sampling = {"max_tokens": MAX_TOKENS, **sampling}
    reply, held_s = _generate(engine, text, sampling, best_of, raw=False, is_watched=is_watched, is_quiet=True)
    cells = decode_solution(reply.token_ids)
    if as_json:
        print_json({"model": engine.name, **_judged(puzzle, cells), **reply_json(reply)})
        return
    grid, verdict = grid_text(puzzle, cells)
    write_text((reply.text if grid is None else grid) + "\n")
    note("")
    note(f"{verdict}; {figures(reply, held_s)}")


def _solve_by_tries(engine: Engine, text: str, sampling: dict[str, Any], tries: int, *, as_json: bool) -> None:
    """A puzzle in, the first grid that solves it out, or the last one."""
    puzzle, shown_puzzle = puzzle_text(text)
    if not as_json:
        note(f"{shown_puzzle}\n")
    num, last = 0, None
    with progress_bar("canvases", tries) as advance:
        for last in replies_to(engine, puzzle, tries, **sampling):
            num += 1
            advance(1)
            if is_solved(puzzle, last[0]):
                break
    assert last is not None
    grid, reply = last
    if as_json:
        print_json({"model": engine.name, **_judged(puzzle, grid), "canvases": num})
        return
    shown, verdict = grid_text(puzzle, grid)
    write_text((reply.text if shown is None else shown) + "\n")
    note("")
    note(f"{verdict}; canvas {num} of at most {tries}; the last one: {figures(reply, 0.0)}")


def _judged(puzzle: Cells, grid: Cells | None) -> dict[str, Any]:
    """Whether a grid solves a puzzle, and its 81 digits, as plain data."""
    digits = None if grid is None else "".join(map(str, grid.tolist()))
    return {"solved": is_solved(puzzle, grid), "grid": digits}
