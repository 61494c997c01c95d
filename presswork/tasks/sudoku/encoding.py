"""How a Sudoku becomes tokens, and text becomes a Sudoku.

The model knows positions only by rotation, so every prompt token names its cell and its clue, and canvas position i
stands at one fixed distance from its cell's token:

    prompt    <bos> | r1c1 .. r1c9 \\n | ... | r9c1 .. r9c9 \\n | <solve>      1 + 90 + 1 tokens
    canvas            d .. d        \\n | ... | d .. d        <eos>             90 tokens, 91 behind
"""

import numpy as np

from presswork.errors import RequestError

PAD, EOS, BOS, UNK, NEWLINE = 0, 1, 2, 3, 4
FIRST_DIGIT = 5
FIRST_CELL = 14
SOLVE = FIRST_CELL + 810
VOCAB_SIZE = 832
PROMPT_LENGTH = 92
CANVAS_LENGTH = 90

_EMPTY = "0._*"
_IGNORED = " \t\r\n|-+,"


def encode_prompts(puzzles: np.ndarray) -> np.ndarray:
    """Prompt ids, int64 [N, 92], of puzzles uint8 [N, 81]."""
    num = puzzles.shape[0]
    ids = np.empty((num, PROMPT_LENGTH), np.int64)
    ids[:, 0], ids[:, -1] = BOS, SOLVE
    cells = FIRST_CELL + 10 * np.arange(81) + puzzles.astype(np.int64)
    ids[:, 1:-1] = _in_rows(cells)
    return ids


def encode_solutions(solutions: np.ndarray) -> np.ndarray:
    """Canvas ids, int64 [N, 90], of solved grids uint8 [N, 81]."""
    ids = _in_rows(solutions.astype(np.int64) + FIRST_DIGIT - 1)
    ids[:, -1] = EOS
    return ids


def _in_rows(cells: np.ndarray) -> np.ndarray:
    lines = np.full((cells.shape[0], 9, 10), NEWLINE, np.int64)
    lines[:, :, :9] = cells.reshape(-1, 9, 9)
    return lines.reshape(-1, 90)


def decode_solutions(ids: np.ndarray) -> np.ndarray:
    """Digits, uint8 [N, 81], of canvas ids [N, 90]; 0 where a cell holds no digit. Layout tokens are not checked."""
    cells = ids.reshape(-1, 9, 10)[:, :, :9].reshape(-1, 81) - FIRST_DIGIT + 1
    return np.where((cells >= 1) & (cells <= 9), cells, 0).astype(np.uint8)


def read_puzzle(text: str) -> np.ndarray:
    """81 cells, uint8, from text: digits, 0 . _ * for empty; blanks, line breaks and box lines are ignored.

    Raises: RequestError for another character, a wrong number of cells or two equal clues in a row, column or box.
    """
    cells: list[int] = []
    for position, character in enumerate(text):
        if character in _EMPTY:
            cells.append(0)
        elif character in "123456789":
            cells.append(int(character))
        elif character not in _IGNORED:
            raise RequestError(
                f"a puzzle holds digits and {' '.join(_EMPTY)} for empty cells, got {character!r} at character "
                f"{position + 1}"
            )
    if len(cells) != 81:
        raise RequestError(f"a puzzle has 81 cells, got {len(cells)}; write empty ones as 0 or a dot")
    puzzle = np.array(cells, np.uint8)
    clash = find_clash(puzzle)
    if clash is not None:
        first, second = (f"row {cell // 9 + 1} column {cell % 9 + 1}" for cell in clash)
        raise RequestError(f"the puzzle contradicts itself: {puzzle[clash[0]]} at {first} and again at {second}")
    return puzzle


def find_clash(grid: np.ndarray) -> tuple[int, int] | None:
    """Two cells of one row, column or box that hold the same digit, or None."""
    seen: dict[tuple[str, int, int], int] = {}
    for cell, digit in enumerate(grid.tolist()):
        row, column = divmod(cell, 9)
        for unit in (("row", row), ("column", column), ("box", row // 3 * 3 + column // 3)):
            if digit and (*unit, digit) in seen:
                return seen[*unit, digit], cell
            seen[*unit, digit] = cell
    return None


def format_grid(cells: np.ndarray) -> str:
    """A grid as nine lines with box lines between, dots for empty cells."""
    lines = []
    for row in range(9):
        digits = [str(d) if d else "." for d in cells[9 * row : 9 * row + 9].tolist()]
        lines.append(" | ".join(" ".join(digits[box : box + 3]) for box in (0, 3, 6)))
        if row in (2, 5):
            lines.append("------+-------+------")
    return "\n".join(lines)
