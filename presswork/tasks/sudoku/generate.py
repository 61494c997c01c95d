"""Sudoku puzzles with exactly one solution, each a pure function of (seed, index)."""

from dataclasses import dataclass

import numba
import numpy as np

from presswork.errors import RequestError
from presswork.tasks.sudoku.solver import BOX, POPCOUNT, UNITS, below, next_random, search, shuffle

_MAX_TRIES = 2000


@dataclass(frozen=True, slots=True)
class Clues:
    """How many clues puzzles have: minimal (no clue can go), or a count in low..high."""

    is_minimal: bool
    low: int = 17
    high: int = 81

    def __str__(self) -> str:
        return "minimal" if self.is_minimal else f"{self.low}-{self.high}"


def parse_clues(text: str) -> Clues:
    """"minimal", "mixed" (22 to 59), a count or a range such as "30-45". Raises RequestError."""
    if text == "minimal":
        return Clues(True)
    if text == "mixed":
        return Clues(False, 22, 59)
    parts = text.split("-")
    if len(parts) in (1, 2) and all(part.isdigit() for part in parts):
        low, high = int(parts[0]), int(parts[-1])
        if 22 <= low <= high <= 81:
            return Clues(False, low, high)
    raise RequestError(f"clues must be 'minimal', 'mixed' or a range within 22-81 such as 30-45, got {text!r}")


def generate(num: int, seed: int, clues: Clues) -> tuple[np.ndarray, np.ndarray]:
    """Puzzles and their solutions.

    Args:
        num: how many.
        seed: puzzle i depends on (seed, i) alone.
    Returns:
        (puzzles uint8 [num, 81] with 0 for empty, solutions uint8 [num, 81]).
    Raises:
        RequestError: so few clues that too few grids allow them.
    """
    low, high = (0, 0) if clues.is_minimal else (clues.low, clues.high)
    puzzles, solutions = np.zeros((num, 81), np.uint8), np.zeros((num, 81), np.uint8)
    made = _generate(puzzles, solutions, np.uint64(seed), low, high, BOX, POPCOUNT, UNITS)
    if made < num:
        raise RequestError(f"no puzzle with {clues} clues found in {_MAX_TRIES} grids; ask for more clues")
    return puzzles, solutions


@numba.njit(cache=True, nogil=True)
def _generate(
    puzzles: np.ndarray, solutions: np.ndarray, seed: np.uint64, low: int, high: int,
    box: np.ndarray, popcount: np.ndarray, units: np.ndarray,
) -> int:  # fmt: skip
    state = np.zeros(1, np.uint64)
    for index in range(puzzles.shape[0]):
        state[0] = seed * np.uint64(0xD1342543DE82EF95) + np.uint64(index) * np.uint64(0xA0761D6478BD642F)
        next_random(state)
        target = low + below(state, high - low + 1)
        for attempt in range(_MAX_TRIES):
            solution = _full_grid(state, box, popcount, units)
            cells, count = _reduce(solution, state, box, popcount, units)
            if high == 0 or count <= target:
                break
            if attempt == _MAX_TRIES - 1:
                return index
        if high > 0:
            _add_clues(cells, solution, target - count, state)
        for cell in range(81):
            puzzles[index, cell], solutions[index, cell] = cells[cell], solution[cell]
    return puzzles.shape[0]


@numba.njit(cache=True, nogil=True)
def _full_grid(state: np.ndarray, box: np.ndarray, popcount: np.ndarray, units: np.ndarray) -> np.ndarray:
    """A random solution: the three independent diagonal boxes at random, the rest by randomised search."""
    cells = np.zeros(81, np.int64)
    for diagonal in range(3):
        digits = np.arange(1, 10)
        shuffle(digits, state)
        for k in range(9):
            cells[(diagonal * 3 + k // 3) * 9 + diagonal * 3 + k % 3] = digits[k]
    found = np.zeros(81, np.int64)
    search(cells, 1, found, state, True, box, popcount, units)
    return found


@numba.njit(cache=True, nogil=True)
def _reduce(
    solution: np.ndarray, state: np.ndarray, box: np.ndarray, popcount: np.ndarray, units: np.ndarray
) -> tuple[np.ndarray, int]:
    """Remove clues in random order as long as the solution stays unique; (minimal puzzle, its clue count)."""
    cells, order = solution.copy(), np.arange(81)
    shuffle(order, state)
    found = np.zeros(81, np.int64)
    count = 81
    for cell in order:
        cells[cell] = 0
        if search(cells, 2, found, state, False, box, popcount, units) == 1:
            count -= 1
        else:
            cells[cell] = solution[cell]
    return cells, count


@numba.njit(cache=True, nogil=True)
def _add_clues(cells: np.ndarray, solution: np.ndarray, num: int, state: np.ndarray) -> None:
    """Put random solution cells back. Mutates cells."""
    order = np.arange(81)
    shuffle(order, state)
    for cell in order:
        if num <= 0:
            return
        if cells[cell] == 0:
            cells[cell] = solution[cell]
            num -= 1


def augment(puzzles: np.ndarray, solutions: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random symmetry of each puzzle: digits renamed, bands and stacks, rows and columns in them, transposition.

    Args: uint8 [N, 81] each. Returns: new arrays of the same shapes; the given ones stay.
    """
    num = puzzles.shape[0]
    rows, columns = _line_orders(num, rng), _line_orders(num, rng)
    digits = np.zeros((num, 10), np.uint8)
    digits[:, 1:] = 1 + rng.random((num, 9)).argsort(1)
    transposed = rng.random(num) < 0.5
    moved = []
    for grids in (puzzles, solutions):
        square = grids.reshape(num, 9, 9)
        square = np.where(transposed[:, None, None], square.transpose(0, 2, 1), square)
        square = square[np.arange(num)[:, None, None], rows[:, :, None], columns[:, None, :]]
        moved.append(np.take_along_axis(digits, square.reshape(num, 81), 1))
    return moved[0], moved[1]


def _line_orders(num: int, rng: np.random.Generator) -> np.ndarray:
    """Orders of 9 lines that keep bands together, [num, 9]."""
    bands = rng.random((num, 3)).argsort(1)
    within = rng.random((num, 3, 3)).argsort(2)
    return (3 * bands[:, :, None] + within).reshape(num, 9)
