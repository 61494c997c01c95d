"""A compiled Sudoku solver that counts solutions. Cells are 0..80 in reading order, digits 1..9, 0 is empty.

Depth-first over digit bitmasks: the cell with fewest candidates first, hidden singles before any guess.
"""

import numba
import numpy as np

_ALL = 511
BOX = np.array([(i // 9) // 3 * 3 + (i % 9) // 3 for i in range(81)])
POPCOUNT = np.array([bin(mask).count("1") for mask in range(512)])
# Cells of the 27 rows, columns and boxes.
UNITS = np.array(
    [[9 * u + k for k in range(9)] for u in range(9)]
    + [[9 * k + u for k in range(9)] for u in range(9)]
    + [[(u // 3 * 3 + k // 3) * 9 + u % 3 * 3 + k % 3 for k in range(9)] for u in range(9)]
)


@numba.njit(cache=True, nogil=True)
def next_random(state: np.ndarray) -> np.uint64:
    """splitmix64: the next 64 bits. Mutates state[0]."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def below(state: np.ndarray, bound: int) -> int:
    """A random integer in 0..bound - 1."""
    return int(next_random(state) % np.uint64(bound))


@numba.njit(cache=True, nogil=True)
def shuffle(values: np.ndarray, state: np.ndarray) -> None:
    """Fisher-Yates. Mutates values and state."""
    for i in range(values.size - 1, 0, -1):
        j = below(state, i + 1)
        values[i], values[j] = values[j], values[i]


@numba.njit(cache=True, nogil=True)
def _candidates(cell: int, used: np.ndarray, box: np.ndarray) -> int:
    return _ALL & ~(used[0, cell // 9] | used[1, cell % 9] | used[2, box[cell]])


@numba.njit(cache=True, nogil=True)
def _toggle(cell: int, bit: int, used: np.ndarray, box: np.ndarray) -> None:
    used[0, cell // 9] ^= bit
    used[1, cell % 9] ^= bit
    used[2, box[cell]] ^= bit


@numba.njit(cache=True, nogil=True)
def _hidden_single(cells: np.ndarray, used: np.ndarray, box: np.ndarray, units: np.ndarray) -> tuple[int, int]:
    """(cell, digit bit) of a digit with one place left in some unit, or (-1, 0)."""
    for u in range(27):
        once, twice = 0, 0
        for k in range(9):
            cell = units[u, k]
            if cells[cell] == 0:
                mask = _candidates(cell, used, box)
                twice |= once & mask
                once |= mask
        single = once & ~twice
        if single:
            for k in range(9):
                cell = units[u, k]
                if cells[cell] == 0:
                    mask = _candidates(cell, used, box) & single
                    if mask:
                        return cell, mask & -mask
    return -1, 0


@numba.njit(cache=True, nogil=True)
def _choose(
    cells: np.ndarray, used: np.ndarray, box: np.ndarray, popcount: np.ndarray, units: np.ndarray
) -> tuple[int, int]:
    """(cell, candidate bits) to branch on; cell -1 when the grid is full."""
    best, best_mask, best_count = -1, 0, 10
    for cell in range(81):
        if cells[cell] == 0:
            mask = _candidates(cell, used, box)
            count = popcount[mask]
            if count < best_count:
                best, best_mask, best_count = cell, mask, count
                if count <= 1:
                    return best, best_mask
    if best >= 0:
        cell, bit = _hidden_single(cells, used, box, units)
        if cell >= 0:
            return cell, bit
    return best, best_mask


@numba.njit(cache=True, nogil=True)
def _take(mask: int, popcount: np.ndarray, state: np.ndarray, is_random: bool) -> int:
    """One bit of the mask: the lowest, or a random one."""
    if is_random:
        for _ in range(below(state, popcount[mask])):
            mask &= mask - 1
    return mask & -mask


@numba.njit(cache=True, nogil=True)
def search(
    start: np.ndarray, limit: int, found: np.ndarray, state: np.ndarray, is_random: bool,
    box: np.ndarray, popcount: np.ndarray, units: np.ndarray,
) -> int:  # fmt: skip
    """Number of solutions of a grid, counted up to limit; the last one met is left in found. Mutates found, state."""
    used = np.zeros((3, 9), np.int64)
    cells = start.copy()
    for cell in range(81):
        if cells[cell]:
            bit = 1 << (cells[cell] - 1)
            if not _candidates(cell, used, box) & bit:
                return 0
            _toggle(cell, bit, used, box)
    branch_cell, branch_mask = np.empty(82, np.int64), np.empty(82, np.int64)
    depth, count, is_down = 0, 0, True
    while True:
        if is_down:
            cell, mask = _choose(cells, used, box, popcount, units)
            if cell < 0:
                count += 1
                found[:] = cells
                if count >= limit:
                    return count
            else:
                branch_cell[depth], branch_mask[depth] = cell, mask
                depth += 1
        is_down = False
        while depth > 0 and not is_down:
            cell = branch_cell[depth - 1]
            if cells[cell]:
                _toggle(cell, 1 << (cells[cell] - 1), used, box)
                cells[cell] = 0
            mask = branch_mask[depth - 1]
            if mask == 0:
                depth -= 1
                continue
            bit = _take(mask, popcount, state, is_random)
            branch_mask[depth - 1] = mask & ~bit
            cells[cell] = popcount[bit - 1] + 1
            _toggle(cell, bit, used, box)
            is_down = True
        if not is_down:
            return count


def solve(puzzle: np.ndarray, limit: int = 2) -> tuple[int, np.ndarray]:
    """(number of solutions counted up to limit, one of them).

    Args:
        puzzle: 81 cells, 0 for empty.
    Returns:
        The solution is all zeros where there is none.
    """
    found = np.zeros(81, np.int64)
    state = np.zeros(1, np.uint64)
    count = search(puzzle.astype(np.int64), limit, found, state, False, BOX, POPCOUNT, UNITS)
    return int(count), found.astype(np.uint8)
