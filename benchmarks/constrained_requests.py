"""What whole requests cost under a constraint, and how good they are: trained models, beside the same ones left free.

    python benchmarks/constrained_requests.py --runs 4

The embedded `molecules` free and kept to the syntax of SMILES, in at most 64, 16 and 12 steps, judged by RDKit; the
embedded `sudoku` on minimal puzzles free, kept to rows of digits, and with the clues held too. 64 requests at a time,
of other seeds and puzzles in each run, which take turns; medians of seconds, means of steps and scores over all runs.
Writes benchmarks/results/constrained_requests.json.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from offline import RESULTS
from peers.transformers_cpu import commit, hardware

from presswork import load
from presswork.tasks.molecules.evaluate import evaluate as judge_molecules
from presswork.tasks.molecules.syntax import smiles_syntax
from presswork.tasks.sudoku.evaluate import evaluate as judge_puzzles
from presswork.tasks.sudoku.generate import parse_clues

NUM = 64
Case = Callable[[int], tuple[float, float]]
"""(denoise steps a request, share of good ones), given the number of the run."""


def molecule_cases() -> dict[str, Case]:
    """Molecules from nothing."""
    engine, syntax = load("molecules"), smiles_syntax()

    def case(budget: int, **kept: Any) -> Case:
        def write(run: int) -> tuple[float, float]:
            found = judge_molecules(engine, NUM, 1 + NUM * run, max_denoising_steps=budget, **kept)
            return found["mean_steps"], found["valid"]

        return write

    ways: dict[str, dict[str, Any]] = {"free": {}, "kept": {"constraint": syntax}}
    return {
        f"molecules, {budget} steps, {way}": case(budget, **kept)
        for budget in (64, 16, 12)
        for way, kept in ways.items()
    }


def sudoku_cases() -> dict[str, Case]:
    """Puzzles of about 24 clues."""
    engine, clues = load("sudoku"), parse_clues("minimal")

    def case(**form: Any) -> Case:
        def solve(run: int) -> tuple[float, float]:
            found = judge_puzzles(engine, NUM, clues, 1 + run, with_ar=False, **form)
            return found["mean_steps"], found["solved"]

        return solve

    return {"sudoku, free": case(), "sudoku, kept": case(is_kept=True), "sudoku, held": case(is_held=True)}


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=8)
    runs = parser.parse_args().runs
    cases = molecule_cases() | sudoku_cases()
    for case in cases.values():
        case(0)
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in cases}
    for run in range(runs):
        for name, case in cases.items():
            started = time.perf_counter()
            steps, good = case(run)
            rows[name].append((time.perf_counter() - started, steps, good))
    figures = {
        name: {
            "s": statistics.median(row[0] for row in own),
            "steps": statistics.mean(row[1] for row in own),
            "good": statistics.mean(row[2] for row in own),
            "runs": own,
        }
        for name, own in rows.items()
    }
    result = {
        "requests_a_run": NUM, "figures": figures,
        "hardware": hardware(), "commit": commit(), "command": " ".join(sys.argv),
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "constrained_requests.json").write_text(json.dumps(result, indent=1) + "\n")
    for name, found in figures.items():
        print(f"{name:28} {found['s']:6.2f} s  {found['steps']:5.2f} steps  {found['good']:.1%} good")


if __name__ == "__main__":
    main()
