"""How a puzzle becomes the tokens of a prompt, and a canvas becomes a grid again.

A model that only knows distances cannot tell a cell's row, column and box from where it stands, so every prompt token
names its cell and its clue. Canvas position i (absolute 92 + i) belongs to prompt position 1 + i: always 91 back.

    prompt (92)    <bos>  <r1c1d5> ... <r1c9d0> \\n  ...  <r9c1d0> ... <r9c9d9> \\n  <|solve|>
    canvas (90)    5 3 4 6 7 8 9 1 2 \\n  ...  3 4 5 2 8 6 1 7 9 <eos>
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int64

from presswork.errors import RequestError
from presswork.tasks.sudoku.generate import Cells, Grids, as_grids, count_solutions

PAD_ID, EOS_ID, BOS_ID, UNK_ID, NEWLINE_ID = range(5)
DIGIT_ID = NEWLINE_ID  # a digit's id is this plus the digit
CELL_ID = 14
SOLVE_ID = CELL_ID + 810
VOCAB_SIZE = 832
PROMPT_LENGTH = 92
CANVAS_LENGTH = 90

EMPTY_CHARACTERS = "0._*"
# What people draw between cells: rules and corners, plain or in box-drawing characters.
SEPARATORS = "|-+│─┼┃━╋║═╬┌┐└┘├┤┬┴┏┓┗┛╔╗╚╝╠╣╦╩"


def vocabulary() -> list[str]:
    """Every token, in the order of its id."""
    cells = [f"<r{1 + cell // 9}c{1 + cell % 9}d{digit}>" for cell in range(81) for digit in range(10)]
    named = ["<pad>", "<eos>", "<bos>", "<unk>", "\n", *"123456789", *cells, "<|solve|>"]
    return named + [f"<reserved{n}>" for n in range(VOCAB_SIZE - len(named))]


def encode_prompts(puzzles: Grids) -> Int64[np.ndarray, "N 92"]:
    """Prompt ids of puzzles; 0 is an empty cell."""
    grids = as_grids(puzzles)
    lines = np.full((len(grids), 9, 10), NEWLINE_ID, np.int64)
    lines[:, :, :9] = (CELL_ID + 10 * np.arange(81) + grids).reshape(-1, 9, 9)
    prompts = np.empty((len(grids), PROMPT_LENGTH), np.int64)
    prompts[:, 0], prompts[:, 1:-1], prompts[:, -1] = BOS_ID, lines.reshape(-1, 90), SOLVE_ID
    return prompts


def encode_solutions(solutions: Grids) -> Int64[np.ndarray, "N 90"]:
    """Canvas ids of full grids. Raises RequestError when a cell is empty."""
    grids = as_grids(solutions)
    if not grids.all():
        raise RequestError("solutions must be full grids of digits 1-9, got an empty cell")
    lines = np.full((len(grids), 9, 10), NEWLINE_ID, np.int64)
    lines[:, :, :9] = DIGIT_ID + grids.reshape(-1, 9, 9)
    lines[:, 8, 9] = EOS_ID
    return lines.reshape(-1, CANVAS_LENGTH)


def decode_solution(ids: Iterable[int]) -> Cells | None:
    """The grid a canvas spells, right or wrong; None unless it is nine lines of nine digits and the end token."""
    canvas = np.fromiter(ids, np.int64)
    if len(canvas) != CANVAS_LENGTH or canvas[-1] != EOS_ID:
        return None
    lines = canvas.reshape(9, 10)
    digits = lines[:, :9] - DIGIT_ID
    if (lines[:8, 9] != NEWLINE_ID).any() or digits.min() < 1 or digits.max() > 9:
        return None
    return digits.astype(np.uint8).reshape(81)


def read_puzzle(text: str) -> Cells:
    """The puzzle written in a text: 81 digits with 0 . _ or * for empty cells; white space and rules are skipped.

    Raises: RequestError for another character, another number of cells, or a digit twice in a row, column or box.
    """
    cells = []
    for position, character in enumerate(text):
        if character in EMPTY_CHARACTERS:
            cells.append(0)
        elif character in "123456789":
            cells.append(int(character))
        elif not character.isspace() and character not in SEPARATORS:
            raise RequestError(
                f"puzzle: unexpected {character!r} at character {position + 1}; "
                "write digits, and 0 . _ or * for empty cells"
            )
    if len(cells) != 81:
        raise RequestError(f"puzzle: {len(cells)} cells, expected 81; write digits, and 0 . _ or * for empty cells")
    puzzle = np.array(cells, np.uint8)
    clash = _clash(puzzle)
    if clash:
        raise RequestError(f"puzzle: {clash}; correct one of them")
    return puzzle


def describe(puzzle: Cells) -> str:
    """One line on a puzzle's clues and solutions, with a warning where there is not exactly one."""
    num_clues = int(np.count_nonzero(as_grids(np.asarray(puzzle)[None])))
    clash = _clash(puzzle)
    if clash:
        return f"{num_clues} clues; warning: no solution, {clash}"
    outcome = ("warning: no solution", "one solution", "warning: several solutions")[count_solutions(puzzle, 2)]
    return f"{num_clues} clues; {outcome}"


def format_grid(cells: Cells) -> str:
    """A grid as eleven lines of text with box rules; empty cells are dots. `read_puzzle` reads it back."""
    grid = as_grids(np.asarray(cells)[None]).reshape(9, 3, 3)
    lines = [" | ".join(" ".join(str(digit or ".") for digit in part) for part in row) for row in grid]
    rule = "------+-------+------"
    return "\n".join([*lines[:3], rule, *lines[3:6], rule, *lines[6:]])


def _clash(puzzle: Cells) -> str | None:
    """The first two equal clues of a row, column or box, in words."""
    grid = np.asarray(puzzle).reshape(9, 9)
    units = [("row", [9 * n + k for k in range(9)]) for n in range(9)]
    units += [("column", [n + 9 * k for k in range(9)]) for n in range(9)]
    units += [("box", [27 * (n // 3) + 3 * (n % 3) + 9 * (k // 3) + k % 3 for k in range(9)]) for n in range(9)]
    for kind, cells in units:
        seen: dict[int, int] = {}
        for cell in cells:
            digit = int(grid.flat[cell])
            if digit and digit in seen:
                return f"{_name(seen[digit])} and {_name(cell)} are both {digit} and share a {kind}"
            seen[digit] = cell
    return None


def _name(cell: int) -> str:
    return f"r{1 + cell // 9}c{1 + cell % 9}"
