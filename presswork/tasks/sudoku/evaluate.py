"""How many Sudoku puzzles a model solves, by denoising and one token at a time."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from presswork.engine.engine import Engine
from presswork.engine.params import Mode
from presswork.errors import RequestError
from presswork.grammar.languages import Regex
from presswork.tasks.journal import NO_JOURNAL, Found, Journal
from presswork.tasks.sudoku.encoding import CANVAS_LENGTH, DIGIT_ID, decode_solution, encode_prompts, read_puzzle
from presswork.tasks.sudoku.generate import Cells, Clues, Grids, as_grids, count_solutions, generate, solve
from presswork.tasks.sudoku.tries import drawn_symmetries, seed_of_try

# Enough to keep passes full, and small against an engine's queue.
_BATCH = 64

ROWS = Regex("([1-9]{9}\n){8}[1-9]{9}")
"""What every solution looks like."""


def evaluate(
    engine: Engine,
    num: int,
    clues: Clues,
    seed: int,
    *,
    with_diffusion: bool = True,
    with_ar: bool = True,
    tries: int = 1,
    is_kept: bool = False,
    is_held: bool = False,
    on_progress: Callable[[Mode, int], None] | None = None,
    journal: Journal = NO_JOURNAL,
    **params: Any,
) -> dict[str, Any]:
    """Solve fresh puzzles, and say how it went.

    Args:
        num, clues, seed: what puzzles, as `generate` makes them; the seed is also the requests'.
        with_diffusion, with_ar, tries, is_kept, is_held, on_progress, journal, params: as in
            `evaluate_puzzles`.
    Returns: the keys of `evaluate_puzzles`, and clues.
    """
    if num < 1:
        raise RequestError(f"num must be at least 1 puzzle, got {num}")
    puzzles, solutions = generate(num, seed, clues)
    report = evaluate_puzzles(
        engine, puzzles, solutions, seed, with_diffusion=with_diffusion, with_ar=with_ar, tries=tries,
        is_kept=is_kept, is_held=is_held, on_progress=on_progress, journal=journal, **params,
    )  # fmt: skip
    return {"clues": str(clues), **report}


def evaluate_puzzles(
    engine: Engine,
    puzzles: Grids,
    solutions: Grids,
    seed: int,
    *,
    with_diffusion: bool = True,
    with_ar: bool = True,
    tries: int = 1,
    is_kept: bool = False,
    is_held: bool = False,
    on_progress: Callable[[Mode, int], None] | None = None,
    journal: Journal = NO_JOURNAL,
    **params: Any,
) -> dict[str, Any]:
    """Solve given puzzles, such as those of `load_puzzles`.

    Args:
        with_diffusion: solve them by denoising.
        with_ar: solve them one token at a time too, the likeliest each time. That comes second, so prefixes it finds
            cached favour it.
        tries: canvases a puzzle may take by denoising. The rules, not the solution, tell whether one is solved; if not,
            the next canvas has another seed, and the puzzle stands in it under a random symmetry. The last one counts.
        is_kept: the canvas is kept to nine lines of digits. is_held: that, and it holds the clues too.
        on_progress: called with the mode and the puzzles done in it after every batch.
        journal: has the canvases that are written.
        params: of the diffusion requests, fields of SamplingParams; the others are the checkpoint's.
    Returns:
        num, seed, and of diffusion: solved (fraction of puzzles), cells (fraction of all 81 N cells that are right, an
        ill-formed grid's counted too), mean_steps (denoise steps a puzzle, of all its canvases; for ar, tokens),
        tokens_per_s (delivered, prefill included), wall_s; the same five under ar. With several tries also
        solved_by_try: the fraction solved within 1, 2, ... canvases.
    """
    report: dict[str, Any] = {"num": len(puzzles), "seed": seed}
    if with_diffusion:
        params = {**params, "constraint": ROWS} if is_kept or is_held else params
        asked = _Asked("diffusion", seed, is_held, params)
        report |= _run(engine, puzzles, solutions, asked, tries, on_progress, journal)
    if with_ar:
        asked = _Asked("ar", seed, False, {"temperature": 0.0})
        report["ar"] = _run(engine, puzzles, solutions, asked, 1, on_progress, journal)
    return report


def load_puzzles(path: str | Path) -> tuple[Grids, Grids]:
    """Puzzles and solutions of a text file: a line is 81 cells, and optionally a comma or space and 81 solution digits.

    Empty lines and lines that start with # are skipped; solutions that are not given are searched for.

    Raises: RequestError naming the file and line for anything else, and for puzzles without exactly one solution.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read ({error}); expected a text file, one puzzle a line") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                pairs.append(_read_pair(line))
            except RequestError as error:
                raise RequestError(f"{path}, line {number}: {error}") from error
    if not pairs:
        raise RequestError(f"{path}: no puzzles; expected one a line, 81 characters each")
    return np.stack([puzzle for puzzle, _ in pairs]), np.stack([solution for _, solution in pairs])


def is_solved(puzzle: Cells, cells: Cells | None) -> bool:
    """Whether cells keep every clue and hold 1-9 once in each row, column and box; None, no grid at all, does not."""
    if cells is None:
        return False
    puzzle, grid = np.asarray(puzzle).reshape(81), np.asarray(cells).reshape(9, 9)
    boxes = grid.reshape(3, 3, 3, 3).swapaxes(1, 2).reshape(9, 9)
    if ((puzzle != 0) & (puzzle != grid.reshape(81))).any():
        return False
    return all((np.sort(units, axis=1) == np.arange(1, 10)).all() for units in (grid, grid.T, boxes))


def num_cells_right(token_ids: Sequence[int], solution: Cells) -> int:
    """Cells that hold the solution's digit where it belongs, whatever stands elsewhere; missing tokens are wrong."""
    canvas = np.zeros(CANVAS_LENGTH, np.int64)
    given = np.asarray(token_ids, np.int64)[:CANVAS_LENGTH]
    canvas[: len(given)] = given
    return int((canvas.reshape(9, 10)[:, :9].reshape(81) == DIGIT_ID + solution.astype(np.int64)).sum())


@dataclass(frozen=True, slots=True)
class _Asked:
    """How puzzles are solved."""

    mode: Mode
    seed: int
    is_held: bool
    params: dict[str, Any]


def _run(
    engine: Engine, puzzles: Grids, solutions: Grids, asked: _Asked, tries: int,
    on_progress: Callable[[Mode, int], None] | None, journal: Journal,
) -> dict[str, Any]:  # fmt: skip
    num = len(puzzles)
    solved_at: dict[int, int] = {}
    num_right, num_tokens = np.zeros(num, np.int64), np.zeros(num, np.int64)
    num_steps, wall_s = 0, 0.0
    for attempt in range(tries):
        seen, wanted = _turned(puzzles, solutions, asked.seed, attempt)
        left = [i for i in range(num) if i not in solved_at]
        for start in range(0, len(left), _BATCH):
            batch = left[start : start + _BATCH]
            work = partial(_canvases, engine, seen[batch], asked, attempt)
            found = journal.once(f"{asked.mode} canvas {attempt} from {start}", work)
            for i, token_ids in zip(batch, found["token_ids"], strict=True):
                num_right[i], num_tokens[i] = num_cells_right(token_ids, wanted[i]), len(token_ids)
                if is_solved(seen[i], decode_solution(token_ids)):
                    solved_at[i] = attempt
            num_steps, wall_s = num_steps + found["steps"], wall_s + found["wall_s"]
            if on_progress is not None:
                is_last = attempt + 1 == tries
                on_progress(asked.mode, num - len(left) + start + len(batch) if is_last else len(solved_at))
    report: dict[str, Any] = {
        "solved": len(solved_at) / num,
        "cells": int(num_right.sum()) / (81 * num),
        "mean_steps": num_steps / num,
        "tokens_per_s": int(num_tokens.sum()) / wall_s,
        "wall_s": wall_s,
    }
    if tries > 1:
        counts = [sum(at <= attempt for at in solved_at.values()) for attempt in range(tries)]
        report["solved_by_try"] = [count / num for count in counts]
    return report


def _canvases(engine: Engine, puzzles: Grids, asked: _Asked, attempt: int) -> Found:
    """A canvas for each puzzle: token ids, denoise steps (tokens in ar mode) and seconds of all."""
    started = time.perf_counter()
    params = {**asked.params, "pins": [_clue_pins(puzzle) for puzzle in puzzles]} if asked.is_held else asked.params
    replies = engine.generate(
        prompt_token_ids=encode_prompts(puzzles).tolist(), mode=asked.mode, max_tokens=CANVAS_LENGTH,
        seed=seed_of_try(asked.seed, attempt), **params,
    )  # fmt: skip
    return {
        "token_ids": [list(map(int, reply.token_ids)) for reply in replies],
        "steps": sum(len(r.token_ids) if asked.mode == "ar" else r.stats.num_denoise_steps for r in replies),
        "wall_s": time.perf_counter() - started,
    }


def _turned(puzzles: Grids, solutions: Grids, seed: int, attempt: int) -> tuple[Grids, Grids]:
    """Puzzles and solutions as a try sees them: the first as they are, each other one under random symmetries."""
    symmetries = drawn_symmetries(len(puzzles), seed, attempt)
    if symmetries is None:
        return puzzles, solutions
    return symmetries.apply(puzzles), symmetries.apply(solutions)


def _clue_pins(puzzle: Cells) -> dict[int, int]:
    """Where a puzzle's clues stand in its canvas, and as which tokens."""
    cells = np.flatnonzero(puzzle).tolist()
    return {cell // 9 * 10 + cell % 9: DIGIT_ID + int(puzzle[cell]) for cell in cells}


def _read_pair(line: str) -> tuple[Cells, Cells]:
    fields = re.split(r"[,;\s]+", line.strip())
    if len(fields) > 2:
        raise RequestError(f"{len(fields)} fields, expected a puzzle and at most its solution")
    puzzle = read_puzzle(fields[0])
    num_solutions = count_solutions(puzzle, 2)
    if num_solutions != 1:
        raise RequestError(f"the puzzle has {'no' if num_solutions == 0 else 'several'} solutions, expected one")
    solution = solve(puzzle)
    assert solution is not None
    if len(fields) == 2 and (read_puzzle(fields[1]) != solution).any():
        raise RequestError("the second field is not the puzzle's solution")
    return puzzle, as_grids(solution[None])[0]
