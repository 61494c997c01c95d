"""How a Sudoku model is recognised and what it says is shown."""

from presswork.engine.engine import Engine
from presswork.tasks.sudoku import encoding
from presswork.tasks.sudoku.encoding import describe, format_grid, read_puzzle
from presswork.tasks.sudoku.evaluate import is_solved
from presswork.tasks.sudoku.generate import Cells

EXAMPLE = "53..7.... 6..195... .98....6. 8...6...3 4..8.3..1 7...2...6 .6....28. ...419..5 ....8..79"
MAX_TOKENS = encoding.CANVAS_LENGTH


def is_sudoku(engine: Engine) -> bool:
    """Whether a model reads prompts in the Sudoku encoding."""
    mark = encoding.SOLVE_ID
    return engine.tokenizer is not None and engine.tokenizer.id_of(encoding.vocabulary()[mark]) == mark


def puzzle_text(prompt: str) -> tuple[Cells, str]:
    """The puzzle in a prompt, and how it is shown. Raises RequestError for anything else."""
    puzzle = read_puzzle(prompt)
    return puzzle, f"{format_grid(puzzle)}\n{describe(puzzle)}"


def grid_text(puzzle: Cells, grid: Cells | None) -> tuple[str | None, str]:
    """(a reply's grid, None if it spells none; whether it solves the puzzle, in words)."""
    if grid is None:
        return None, "not solved: the reply is not a grid"
    if is_solved(puzzle, grid):
        return format_grid(grid), "solved"
    return format_grid(grid), "not solved: the grid breaks a rule or a clue"
