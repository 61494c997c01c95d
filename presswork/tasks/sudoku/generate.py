"""Sudoku puzzles with exactly one solution, in any number, from a seed."""

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from presswork.errors import RequestError
from presswork.tasks.sudoku import _kernels

Cells = UInt8[np.ndarray, "81"]
Grids = UInt8[np.ndarray, "N 81"]

# No puzzle with fewer clues has one solution (McGuire, Tugemann and Civario, 2012).
MIN_CLUES = 17
MIXED_CLUES = (22, 59)
# A minimal puzzle takes well under a millisecond, so a hopeless range is given up after seconds.
_MAX_GRIDS = 20_000
# Compiled code does not see Ctrl-C; between two calls Python does.
_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Clues:
    """How many cells of a puzzle are given: an inclusive range, or None for minimal puzzles.

    In a minimal puzzle every clue is needed: without any one of them there are several solutions. Most have 23-26.
    """

    bounds: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.bounds is not None and not MIN_CLUES <= self.bounds[0] <= self.bounds[1] <= 81:
            raise RequestError(
                f"clues must be a rising range within {MIN_CLUES}-81, got {self}; for example 30-45, minimal or mixed"
            )

    def __str__(self) -> str:
        return "minimal" if self.bounds is None else f"{self.bounds[0]}-{self.bounds[1]}"


def parse_clues(text: str) -> Clues:
    """Clues from text: `minimal`, `mixed` (22-59), an inclusive range such as `30-45`, or one number.

    Raises: RequestError for anything else.
    """
    if text == "minimal":
        return Clues()
    if text == "mixed":
        return Clues(MIXED_CLUES)
    match = re.fullmatch(r"([0-9]{1,3})(?:-([0-9]{1,3}))?", text)
    if match is None:
        raise RequestError(f"clues must be 'minimal', 'mixed' or a range such as '30-45', got {text!r}")
    low, high = match.groups()
    return Clues((int(low), int(high or low)))


def generate(num: int, seed: int, clues: Clues | None = None, *, first: int = 0) -> tuple[Grids, Grids]:
    """Random puzzles with unique solutions; puzzle i is a pure function of (seed, first + i, clues) on every machine.

    Each is a random full grid thinned in random order until it is minimal, plus solution cells up to a count drawn
    uniformly from the range. Where the minimal puzzle has more clues than the count, though not more than the range
    allows, it stays as it is.

    Args:
        num: puzzles to make.
        seed: 64-bit.
        clues: clues per puzzle; None is minimal.
        first: index of the first puzzle, to make a long list in parts.
    Returns:
        Puzzles and solutions, uint8 [num, 81] by rows; 0 is an empty cell.
    Raises:
        RequestError: an argument is out of range, or no grid with so few clues was found.
    """
    _check_integer("num", num, 2**40)
    _check_integer("first", first, 2**62)
    _check_seed(seed)
    clues = clues or Clues()
    low, high = clues.bounds or (0, 81)
    puzzles, solutions = np.zeros((num, 81), np.uint8), np.zeros((num, 81), np.uint8)
    for start in range(0, num, _CHUNK):
        part = puzzles[start : start + _CHUNK]
        made = _kernels.make_puzzles(
            np.uint64(seed), first + start, low, high, _MAX_GRIDS, part, solutions[start : start + _CHUNK]
        )
        if made < len(part):
            raise RequestError(
                f"clues {clues}: none of {_MAX_GRIDS} random grids came down to {high} clues; "
                "allow more clues, 22 and above are easily found"
            )
    return puzzles, solutions


def count_solutions(puzzle: Cells, limit: int = 2) -> int:
    """Solutions of a puzzle, counted up to a limit; 0 when clues contradict each other. Raises RequestError."""
    _check_integer("limit", limit, 2**40, low=1)
    return _search(puzzle, limit)[0]


def solve(puzzle: Cells) -> Cells | None:
    """A solution of a puzzle (the only one, where it has just one), or None. Raises RequestError."""
    found, values = _search(puzzle, 1)
    return values if found else None


def as_grids(cells: object) -> Grids:
    """Contiguous uint8 [N, 81] of digits 0-9. Raises RequestError when that would lose something."""
    array = np.asarray(cells)
    if array.ndim != 2 or array.shape[1] != 81 or array.dtype.kind not in "iu":
        raise RequestError(f"grids must be integers [N, 81], got {array.dtype} {list(array.shape)}")
    if array.size and not 0 <= array.min() <= array.max() <= 9:
        raise RequestError(f"cells must be 0 (empty) to 9, got {array.min()} to {array.max()}")
    return np.ascontiguousarray(array, dtype=np.uint8)


def _search(puzzle: Cells, limit: int) -> tuple[int, Cells]:
    solution = np.zeros(81, np.uint8)
    return _kernels.count_solutions(as_grids(np.asarray(puzzle)[None])[0], limit, solution), solution


def _check_seed(seed: int) -> None:
    _check_integer("seed", seed, 2**64 - 1)


def _check_integer(name: str, value: int, high: int, *, low: int = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise RequestError(f"{name} must be an integer in {low}..{high}, got {value!r}")
