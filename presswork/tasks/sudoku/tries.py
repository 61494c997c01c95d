"""Several canvases for one puzzle: the rules judge, and each further canvas shows the puzzle under another symmetry."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from presswork.engine.engine import Engine
from presswork.engine.events import Reply
from presswork.errors import RequestError
from presswork.tasks.sudoku.encoding import CANVAS_LENGTH, decode_solution, encode_prompts
from presswork.tasks.sudoku.generate import Cells
from presswork.tasks.sudoku.symmetry import Symmetries, draw_symmetries

MAX_TRIES = 1024
# Far apart, so that seeds of one puzzle are not those of the next.
_SEED_STRIDE = 1 << 32


def drawn_symmetries(num: int, seed: int, attempt: int) -> Symmetries | None:
    """How a try sees so many puzzles; None, the first time, is as they are."""
    return None if attempt == 0 else draw_symmetries(num, np.random.default_rng((seed, attempt)))


def seed_of_try(seed: int, attempt: int) -> int:
    """The seed of a try's requests."""
    return seed + attempt * _SEED_STRIDE


def replies_to(
    engine: Engine, puzzle: Cells, tries: int, *, seed: int = 0, **params: Any
) -> Iterator[tuple[Cells | None, Reply]]:
    """Canvases for a puzzle, one after the other, at most so many: the grid of each, turned back, and its reply.

    Whoever looks at the grids stops when one solves the puzzle.

    Args: params: fields of SamplingParams.
    Raises: RequestError.
    """
    if not 1 <= tries <= MAX_TRIES:
        raise RequestError(f"tries must be in 1..{MAX_TRIES}, got {tries}")
    puzzles = np.asarray(puzzle, np.uint8).reshape(1, 81)
    for attempt in range(tries):
        turn = drawn_symmetries(1, seed, attempt)
        (ids,) = encode_prompts(puzzles if turn is None else turn.apply(puzzles)).tolist()
        asked = {"max_tokens": CANVAS_LENGTH, "seed": seed_of_try(seed, attempt), **params}
        reply = engine.generate(prompt_token_ids=ids, **asked)
        grid = decode_solution(reply.token_ids)
        if grid is not None and turn is not None:
            grid = turn.undo(np.asarray(grid, np.uint8).reshape(1, 81))[0]
        yield grid, reply
