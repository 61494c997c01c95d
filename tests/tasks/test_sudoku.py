"""Sudoku puzzles: unique, minimal, repeatable; symmetries; counting, against a slow solver of its own."""

import zlib

import numpy as np
import pytest

from presswork.errors import RequestError
from presswork.tasks.sudoku import generate as module
from presswork.tasks.sudoku.evaluate import is_solved
from presswork.tasks.sudoku.generate import Clues, count_solutions, generate, parse_clues, solve
from presswork.tasks.sudoku.symmetry import draw_symmetries

UNITS = [
    *[[(r, c) for c in range(9)] for r in range(9)],
    *[[(r, c) for r in range(9)] for c in range(9)],
    *[[(3 * b + r, 3 * s + c) for r in range(3) for c in range(3)] for b in range(3) for s in range(3)],
]
PEERS = {
    (r, c): {place for unit in UNITS if (r, c) in unit for place in unit} - {(r, c)} for r in range(9) for c in range(9)
}


def slow_solutions(puzzle, limit=2):
    """Solutions found by trying digits cell by cell: sets and recursion, nothing in common with the code under test."""
    grid = {(i // 9, i % 9): int(v) for i, v in enumerate(puzzle)}
    if any(v and grid[peer] == v for place, v in grid.items() for peer in PEERS[place]):
        return []
    solutions = []

    def options(place):
        return set(range(1, 10)) - {grid[peer] for peer in PEERS[place]}

    def extend():
        if len(solutions) == limit:
            return
        empty = [place for place, v in grid.items() if v == 0]
        if not empty:
            solutions.append(list(grid.values()))
            return
        place = min(empty, key=lambda p: len(options(p)))
        for digit in options(place):
            grid[place] = digit
            extend()
        grid[place] = 0

    extend()
    return solutions


def num_clues(puzzles):
    return (puzzles > 0).sum(axis=1)


@pytest.fixture(scope="module")
def minimal():
    return generate(200, 11)


@pytest.mark.parametrize("clues", ["minimal", "mixed"])
def test_a_slow_solver_finds_the_given_solution_and_no_other(clues):
    puzzles, solutions = generate(6, 3, parse_clues(clues))
    for puzzle, solution in zip(puzzles, solutions, strict=True):
        assert slow_solutions(puzzle) == [solution.tolist()]


def test_every_solution_is_a_grid_that_keeps_the_clues(minimal):
    assert all(is_solved(puzzle, solution) for puzzle, solution in zip(*minimal, strict=True))


def test_a_minimal_puzzle_needs_each_of_its_clues(minimal):
    puzzles = minimal[0][:20]
    for puzzle in puzzles:
        assert count_solutions(puzzle) == 1
        for cell in np.flatnonzero(puzzle):
            assert count_solutions(np.where(np.arange(81) == cell, 0, puzzle)) == 2
    assert 22 <= num_clues(minimal[0]).mean() <= 26


def test_counting_agrees_with_the_slow_solver_where_clues_are_taken_out_or_changed(minimal):
    random = np.random.default_rng(0)
    outcomes = set()
    for puzzle in minimal[0][:12]:
        for change in ("take", "change"):
            other = puzzle.copy()
            cell = random.choice(np.flatnonzero(puzzle))
            other[cell] = 0 if change == "take" else 1 + other[cell] % 9
            expected = len(slow_solutions(other, limit=3))
            outcomes.add(expected)
            assert count_solutions(other, limit=3) == expected
    assert {0, 3} <= outcomes


def test_counting_stops_at_its_limit_and_starts_at_zero():
    assert count_solutions(np.zeros(81, int), limit=7) == 7
    twice = np.zeros(81, int)
    twice[[0, 8]] = 4
    assert count_solutions(twice) == 0
    assert solve(twice) is None
    # Row 1 lacks only 9, and column 1 has it already: no clue repeats, yet nothing fits.
    stuck = np.zeros(81, int)
    stuck[1:9], stuck[45] = range(1, 9), 9
    assert count_solutions(stuck) == 0


def test_solve_finds_the_solution(minimal):
    for puzzle, solution in zip(*minimal, strict=True):
        np.testing.assert_array_equal(solve(puzzle), solution)


def test_puzzles_follow_from_the_seed_on_every_machine():
    puzzles, solutions = generate(50, 2**64 - 1, parse_clues("mixed"))
    assert (zlib.crc32(puzzles.tobytes()), zlib.crc32(solutions.tobytes())) == (1620838495, 201993684)
    assert not (generate(50, 1)[0] == generate(50, 2)[0]).all(axis=1).any()


@pytest.mark.parametrize("clues", [None, Clues((30, 45))])
def test_a_puzzle_depends_on_its_index_and_not_on_its_neighbours(clues):
    whole, part = generate(300, 5, clues), generate(50, 5, clues, first=250)
    np.testing.assert_array_equal(whole[0][250:], part[0])
    np.testing.assert_array_equal(whole[1][250:], part[1])
    assert len(np.unique(whole[1], axis=0)) == 300


@pytest.mark.parametrize(("low", "high"), [(30, 45), (22, 24), (40, 40), (81, 81)])
def test_clue_counts_lie_in_the_range_and_reach_its_ends(low, high):
    counts = num_clues(generate(200, 9, Clues((low, high)))[0])
    assert counts.min() == low
    assert counts.max() == high


def test_mixed_clue_counts_are_spread_evenly():
    counts = num_clues(generate(2000, 9, parse_clues("mixed"))[0])
    # Above what minimal puzzles reach, a count has probability 1/38: 53 of 2,000, and 36 is 5 standard deviations.
    frequencies = np.bincount(counts, minlength=60)
    assert (abs(frequencies[30:60] - 53) < 36).all()
    assert frequencies[22:30].sum() == 2000 - frequencies[30:].sum()


def test_every_digit_is_as_likely_in_every_cell():
    solutions = generate(1800, 21)[1]
    frequencies = np.stack([(solutions == digit).sum(axis=0) for digit in range(1, 10)])
    # 200 expected; 5 standard deviations are 67.
    assert (abs(frequencies - 200) < 67).all()


def test_a_range_nothing_reaches_ends_in_an_error(monkeypatch):
    monkeypatch.setattr(module, "_MAX_GRIDS", 20)
    with pytest.raises(RequestError, match=r"clues 17-18: none of 20 random grids came down to 18 clues"):
        generate(1, 0, Clues((17, 18)))


@pytest.mark.parametrize(
    ("text", "bounds"), [("minimal", None), ("mixed", (22, 59)), ("30-45", (30, 45)), ("40", (40, 40))]
)
def test_clues_are_read(text, bounds):
    assert parse_clues(text) == Clues(bounds)


@pytest.mark.parametrize("text", ["", "easy", "30-", "45-30", "16-30", "30-82", "-30", "30 - 45"])
def test_other_clues_are_refused(text):
    with pytest.raises(RequestError, match=r"clues must be .* got .*30-45|clues must be .*30-45.* got"):
        parse_clues(text)


@pytest.mark.parametrize(
    ("num", "seed", "name"), [(-1, 0, "num"), (1, -1, "seed"), (1, 2**64, "seed"), (1, 0.5, "seed")]
)
def test_arguments_out_of_range_are_refused(num, seed, name):
    with pytest.raises(RequestError, match=f"{name} must be an integer in"):
        generate(num, seed)


def test_symmetries_keep_puzzles_valid_and_unique(minimal):
    puzzles, solutions = minimal
    moved = draw_symmetries(len(puzzles), np.random.default_rng(4))
    new_puzzles, new_solutions = moved.apply(puzzles), moved.apply(solutions)
    for puzzle, solution in zip(new_puzzles, new_solutions, strict=True):
        assert is_solved(puzzle, solution)
        assert count_solutions(puzzle) == 1
    np.testing.assert_array_equal(num_clues(new_puzzles), num_clues(puzzles))
    assert not (new_solutions == solutions).all(axis=1).any()
    assert len(puzzles) == 200 and (puzzles == generate(200, 11)[0]).all()


def test_a_symmetry_can_be_undone(minimal):
    puzzles, solutions = minimal
    symmetries = draw_symmetries(len(puzzles), np.random.default_rng(4))
    for grids in (puzzles, solutions):
        assert not np.array_equal(symmetries.apply(grids), grids)
        assert np.array_equal(symmetries.undo(symmetries.apply(grids)), grids)


def test_every_kind_of_symmetry_is_drawn():
    # A single clue can go to any of the 81 cells and become any digit; a pair in one row must stay in one line.
    puzzles = np.zeros((4000, 81), np.uint8)
    puzzles[:, [0, 5]] = 3, 7
    moved = draw_symmetries(4000, np.random.default_rng(8)).apply(puzzles)
    first = (moved == moved.max(axis=1, keepdims=True)).argmax(axis=1)
    assert set(first) == set(range(81))
    assert set(np.unique(moved)) == set(range(10))
    places = np.stack([np.flatnonzero(row) for row in moved])
    rows, columns = places // 9, places % 9
    same_row, same_column = rows[:, 0] == rows[:, 1], columns[:, 0] == columns[:, 1]
    assert (same_row ^ same_column).all()
    assert 0.45 < same_column.mean() < 0.55
    # The two stood in different stacks, and still do.
    line = np.where(same_row[:, None], columns, rows)
    assert (line[:, 0] // 3 != line[:, 1] // 3).all()


def test_malformed_grids_are_refused():
    with pytest.raises(RequestError, match=r"integers \[N, 81\]"):
        count_solutions(np.zeros(80, int))
    with pytest.raises(RequestError, match=r"0 \(empty\) to 9, got 0 to 10"):
        count_solutions(np.arange(81) % 11)
