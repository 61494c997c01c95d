"""Symmetries of Sudoku as index tables, for whatever is laid out over a grid. N grids.

A symmetry maps puzzles with one solution to puzzles with one solution: digits renamed, bands, stacks, rows in bands and
columns in stacks permuted, half of the grids transposed.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from presswork.tasks.sudoku.generate import Grids


@dataclass(frozen=True, slots=True)
class Symmetries:
    """One symmetry for each of N grids.

    Args:
        cells: cells[n, i] is the old cell whose content comes to cell i.
        digits: digits[n, d] is the new name of digit d; 0, the empty cell, stays.
    """

    cells: Int64[np.ndarray, "N 81"]
    digits: Int64[np.ndarray, "N 10"]

    def apply(self, grids: Grids) -> Grids:
        """The grids under their symmetries, as new arrays."""
        moved = np.take_along_axis(grids, self.cells, 1)
        return np.take_along_axis(self.digits, moved.astype(np.int64), 1).astype(np.uint8)

    def undo(self, grids: Grids) -> Grids:
        """What grids were before `apply`, as new arrays."""
        named = np.take_along_axis(self.digits.argsort(1), grids.astype(np.int64), 1).astype(np.uint8)
        before = np.empty_like(named)
        np.put_along_axis(before, self.cells, named, 1)
        return before


def draw_symmetries(num: int, rng: np.random.Generator) -> Symmetries:
    """Independent symmetries, each equally likely."""
    rows, columns = _draw_lines(num, rng), _draw_lines(num, rng)
    cells = 9 * rows[:, :, None] + columns[:, None, :]
    is_transposed = rng.random(num) < 0.5
    cells = np.where(is_transposed[:, None, None], cells.swapaxes(1, 2), cells)
    digits = np.zeros((num, 10), np.int64)
    digits[:, 1:] = 1 + rng.random((num, 9)).argsort(1)
    return Symmetries(cells.reshape(num, 81), digits)


def _draw_lines(num: int, rng: np.random.Generator) -> Int64[np.ndarray, "N 9"]:
    bands, inside = rng.random((num, 3)).argsort(1), rng.random((num, 3, 3)).argsort(2)
    return (3 * bands[:, :, None] + inside).reshape(num, 9)
