"""Compiled Sudoku search: counting solutions, making puzzles, drawing symmetries. All of it integer arithmetic.

A unit is a row (0-8), a column (9-17) or a box (18-26); it keeps a 9-bit mask of the digits it still lacks, bit d-1 for
digit d. Cells are numbered 0-80 by rows. One file, because numba's cache notices edits of a kernel's own file only.
"""

import numpy as np

from presswork.ops.lanes import kernel

_CELLS = np.arange(81)
_ROW = (_CELLS // 9).astype(np.uint8)
_COLUMN = (9 + _CELLS % 9).astype(np.uint8)
_BOX = (18 + _CELLS // 27 * 3 + _CELLS % 9 // 3).astype(np.uint8)
_UNIT_CELLS = np.stack([np.flatnonzero((np.stack([_ROW, _COLUMN, _BOX]) == unit).any(axis=0)) for unit in range(27)])
_NUM_BITS = np.array([mask.bit_count() for mask in range(512)], dtype=np.uint8)
_DIGIT = np.array([mask.bit_length() for mask in range(512)], dtype=np.uint8)  # of a mask with one bit
_ALL = np.uint16(511)
_NO_CELL = 81
_NO_BITS = np.uint16(0)
_ONE = np.uint16(1)
_MAX_DEPTH = 82


@kernel()
def stream(seed, index):
    """The state of puzzle `index`'s own random stream."""
    state = np.empty(1, np.uint64)
    state[0] = seed
    state[0] = draw_bits(state) ^ (np.uint64(index) * np.uint64(0xD1342543DE82EF95))
    state[0] = draw_bits(state)
    return state


@kernel()
def draw_bits(state):
    """64 random bits (SplitMix64: Steele, Lea and Flood, 2014). Mutates state."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel()
def draw_below(state, limit):
    """A random integer in 0..limit-1; the bias is below limit / 2^32. Mutates state."""
    return np.int64(((draw_bits(state) >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32))


@kernel()
def shuffle(state, items):
    """A uniform permutation in place. Mutates both."""
    for last in range(len(items) - 1, 0, -1):
        other = draw_below(state, last + 1)
        items[last], items[other] = items[other], items[last]


@kernel()
def new_search():
    """Memory of a search, one row per depth: unit masks, empty cells, values, number of empty cells, branches."""
    units = np.empty((_MAX_DEPTH, 27), np.uint16)
    empties = np.empty((_MAX_DEPTH, 81), np.uint8)
    values = np.empty((_MAX_DEPTH, 81), np.uint8)
    num_empty = np.empty(_MAX_DEPTH, np.int64)
    branch_cell = np.empty(_MAX_DEPTH, np.int64)
    branch_bits = np.empty(_MAX_DEPTH, np.uint16)
    return units, empties, values, num_empty, branch_cell, branch_bits


@kernel()
def _put(units, cell, bit):
    units[_ROW[cell]] ^= bit
    units[_COLUMN[cell]] ^= bit
    units[_BOX[cell]] ^= bit


@kernel()
def _candidates(units, cell):
    return units[_ROW[cell]] & units[_COLUMN[cell]] & units[_BOX[cell]]


@kernel()
def load(search, puzzle):
    """Put a puzzle's clues into depth 0 of a search. Returns whether no two of them collide. Mutates search."""
    units, empties, values, num_empty, _, _ = search
    units[0] = _ALL
    num = 0
    for cell in range(81):
        values[0, cell] = puzzle[cell]
        if puzzle[cell] == 0:
            empties[0, num] = cell
            num += 1
            continue
        bit = np.uint16(_ONE << (puzzle[cell] - 1))
        if _candidates(units[0], cell) & bit == 0:
            return False
        _put(units[0], cell, bit)
    num_empty[0] = num
    return True


@kernel()
def _place_naked(units, empties, values, num, banned_cell, banned_bit, once, twice):
    """Fill in cells with one candidate, and note in once and twice the digits each unit's other cells can take.

    Returns: cells left, the most constrained of them, and its candidates (none: a contradiction). Mutates all arrays.
    """
    fewest, best_cell, best_bits = 10, 0, _ALL
    once[:] = _NO_BITS
    twice[:] = _NO_BITS
    at = 0
    while at < num:
        cell = np.int64(empties[at])
        row, column, box = _ROW[cell], _COLUMN[cell], _BOX[cell]
        bits = units[row] & units[column] & units[box]
        if cell == banned_cell:
            bits &= ~banned_bit
        if bits & (bits - _ONE) == 0:
            if bits == 0:
                return num, cell, _NO_BITS
            _put(units, cell, bits)
            values[cell] = _DIGIT[bits]
            num -= 1
            empties[at] = empties[num]
            continue
        if _NUM_BITS[bits] < fewest:
            fewest, best_cell, best_bits = _NUM_BITS[bits], cell, bits
        for unit in (row, column, box):
            twice[unit] |= once[unit] & bits
            once[unit] |= bits
        at += 1
    return num, best_cell, best_bits


@kernel()
def _find_hidden(units, once, twice):
    """Leave in once the digits with one place in their unit. Returns 1, or 0 for none, or -1 where one has no place."""
    any_bits = _NO_BITS
    for unit in range(27):
        if units[unit] & ~once[unit] != 0:
            return -1
        once[unit] &= ~twice[unit]
        any_bits |= once[unit]
    return 1 if any_bits != 0 else 0


@kernel()
def _place_hidden(units, empties, values, num, banned_cell, banned_bit, hidden):
    """Fill in hidden singles. Returns the cells left, or -1 for a contradiction. Mutates all arrays but hidden."""
    at = 0
    while at < num:
        cell = np.int64(empties[at])
        bits = (hidden[_ROW[cell]] | hidden[_COLUMN[cell]] | hidden[_BOX[cell]]) & _candidates(units, cell)
        if cell == banned_cell:
            bits &= ~banned_bit
        if bits == 0:
            at += 1
            continue
        if bits & (bits - _ONE) != 0:
            return -1
        _put(units, cell, bits)
        values[cell] = _DIGIT[bits]
        num -= 1
        empties[at] = empties[num]
    return num


@kernel()
def _settle(units, empties, values, num, banned_cell, banned_bit, once, twice):
    """Fill in every naked and hidden single.

    Returns: cells left, the most constrained of them, and its candidates (none: a contradiction). Mutates all arrays.
    """
    while True:
        num_before = num
        num, best_cell, best_bits = _place_naked(units, empties, values, num, banned_cell, banned_bit, once, twice)
        if num == 0 or best_bits == 0:
            return num, best_cell, best_bits
        # Cells filled after a count was taken leave it too high: that can hide a single until the next pass, no more.
        outcome = _find_hidden(units, once, twice)
        if outcome > 0:
            num = _place_hidden(units, empties, values, num, banned_cell, banned_bit, once)
        if outcome < 0 or num < 0:
            return 81, best_cell, _NO_BITS
        if num == num_before:
            return num, best_cell, best_bits


@kernel()
def count(search, limit, banned_cell, banned_bit, state, is_random):
    """Count solutions up to a limit from the position at depth 0; the one that reaches it is left in `values` there.

    Args:
        banned_cell, banned_bit: one digit a cell may not take, or cell 81.
        state, is_random: whether branches try digits in random order, and the stream they draw from.
    Mutates search and, if random, state.
    """
    units, empties, values, num_empty, branch_cell, branch_bits = search
    once, twice = np.empty(27, np.uint16), np.empty(27, np.uint16)
    found, depth = 0, 0
    is_entering = True
    while depth >= 0:
        if is_entering:
            num_empty[depth], branch_cell[depth], branch_bits[depth] = _settle(
                units[depth], empties[depth], values[depth], num_empty[depth], banned_cell, banned_bit, once, twice
            )
            if num_empty[depth] == 0:
                found += 1
                branch_bits[depth] = _NO_BITS
                if found == limit:
                    values[0] = values[depth]
                    break
        bits = branch_bits[depth]
        if bits == 0:
            depth -= 1
            is_entering = False
            continue
        bit = np.uint16(bits & (~bits + _ONE))
        if is_random:
            for _ in range(draw_below(state, _NUM_BITS[bits])):
                bits &= bits - _ONE
            bit = np.uint16(bits & (~bits + _ONE))
        branch_bits[depth] ^= bit
        _branch(search, depth, bit)
        depth += 1
        is_entering = True
    return found


@kernel()
def _branch(search, depth, bit):
    """Copy a depth into the next one, with the branch cell filled. Mutates search."""
    units, empties, values, num_empty, branch_cell, _ = search
    cell = branch_cell[depth]
    units[depth + 1] = units[depth]
    values[depth + 1] = values[depth]
    _put(units[depth + 1], cell, bit)
    values[depth + 1, cell] = _DIGIT[bit]
    num = 0
    for at in range(num_empty[depth]):
        if empties[depth, at] != cell:
            empties[depth + 1, num] = empties[depth, at]
            num += 1
    num_empty[depth + 1] = num


@kernel()
def count_solutions(puzzle, limit, solution):
    """Count a puzzle's solutions up to a limit, 0 when clues collide.

    Mutates solution: the one that reaches the limit goes there.
    """
    search = new_search()
    if not load(search, puzzle):
        return 0
    found = count(search, limit, _NO_CELL, _NO_BITS, np.zeros(1, np.uint64), False)
    solution[:] = search[2][0]
    return found


@kernel()
def _fill_grid(search, state, solution):
    """A random full grid. Mutates all."""
    units, empties, values, num_empty, _, _ = search
    units[0] = _ALL
    values[0] = 0
    for cell in range(81):
        empties[0, cell] = cell
    # The first of equally constrained cells is branched on, so their order is random too.
    shuffle(state, empties[0])
    num_empty[0] = 81
    count(search, 1, _NO_CELL, _NO_BITS, state, True)
    solution[:] = values[0]


@kernel()
def _is_single(units, puzzle, cell, bit):
    """Whether a cell's digit is the only one left for it, or it the only place left for the digit in a unit."""
    if _candidates(units, cell) == bit:
        return True
    for unit in (_ROW[cell], _COLUMN[cell], _BOX[cell]):
        is_only = True
        for other in _UNIT_CELLS[unit]:
            if other != cell and puzzle[other] == 0 and _candidates(units, other) & bit != 0:
                is_only = False
                break
        if is_only:
            return True
    return False


@kernel()
def _thin(search, state, solution, puzzle):
    """Take clues out of a full grid in random order while the solution stays the only one. Returns the clues left.

    One pass is enough: a clue that was needed once is needed still when more are gone. Mutates search, state, puzzle.
    """
    puzzle[:] = solution
    order = np.arange(81)
    shuffle(state, order)
    units, empties, _, num_empty, _, _ = search
    held = np.zeros(27, np.uint16)
    open_cells = np.empty(81, np.uint8)
    num_open = 0
    for at in range(81):
        cell = order[at]
        bit = np.uint16(_ONE << (solution[cell] - 1))
        _put(held, cell, bit)
        open_cells[num_open] = cell
        if not _is_single(held, puzzle, cell, bit):
            units[0] = held
            empties[0] = open_cells
            num_empty[0] = num_open + 1
            if count(search, 1, cell, bit, state, False) != 0:
                _put(held, cell, bit)
                continue
        num_open += 1
        puzzle[cell] = 0
    return 81 - num_open


@kernel()
def make_puzzles(seed, first, low, high, max_grids, puzzles, solutions):
    """Fill the rows of puzzles and solutions; puzzle i draws from stream(seed, first + i) alone.

    Args:
        low, high: clues per puzzle; high 81 and low 0 leave puzzles minimal.
        max_grids: full grids to try per puzzle.
    Returns: puzzles made; less than asked when one ran out of grids. Mutates both arrays.
    """
    search = new_search()
    for i in range(len(puzzles)):
        state = stream(seed, first + i)
        wanted = low + draw_below(state, high - low + 1) if low > 0 else 0
        num_clues = 82
        for _ in range(max_grids):
            _fill_grid(search, state, solutions[i])
            num_clues = _thin(search, state, solutions[i], puzzles[i])
            if num_clues <= high:
                break
        if num_clues > high:
            return i
        order = np.arange(81)
        shuffle(state, order)
        for cell in order:
            if num_clues >= wanted:
                break
            if puzzles[i, cell] == 0:
                puzzles[i, cell] = solutions[i, cell]
                num_clues += 1
    return len(puzzles)
