"""The Sudoku tutorial: its commands run, shortened, in its order, and its figures are those of the data beside it."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tutorial-sudoku.md").read_text(encoding="utf-8")
DATA = json.loads((ROOT / "docs" / "figures" / "sudoku.json").read_text(encoding="utf-8"))
SHORT = {
    "train": ["--set", "train.num_steps=2", "--set", "data.pool_size=64", "--set", "data.batch.num_puzzles=2",
              "--set", "evaluate_every=0", "--set", "train.log_every=1", "--set", "train.compile=false"],
    "eval": ["--num", "2"],
}  # fmt: skip


def commands() -> list[list[str]]:
    text = "\n".join(re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line.split("  #")[0]) for line in text.splitlines() if line.strip()]


@pytest.mark.slow
def test_the_commands_run_in_order(tmp_path):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "docs" / "figures").mkdir(parents=True)
    names = set()
    for words in commands():
        if words[0] == "presswork":
            names.add(words[1])
            command = [sys.executable, "-m", *words, *SHORT.get(words[1], [])]
        else:
            assert words[:2] == ["python", "docs/figures/sudoku.py"]
            command = [sys.executable, str(ROOT / words[1]), *words[2:], "--num", "2"]
        run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
        assert run.returncode == 0, (words, run.stderr)
    assert names == {"train", "eval", "run"}
    pictures = {path.name for path in (tmp_path / "docs" / "figures").iterdir()}
    assert pictures == {"sudoku-curve.svg", "sudoku-frames.svg", "sudoku.json"}


def test_the_tables_are_what_was_measured():
    """Every row of the page's tables, from the file that the pictures' script wrote and the evaluations' output."""
    curve = re.findall(r"^\| (\d[\d,]*) \| ([\d.]+)% \| ([\d.]+)% \|$", PAGE, re.MULTILINE)
    at = {row["step"] + 1: row for row in DATA["evaluations"]}
    assert len(curve) >= 4
    for step, easy, minimal in curve:
        row = at[int(step.replace(",", ""))]
        assert (float(easy), float(minimal)) == (
            round(100 * row["solved_30_45"], 1),
            round(100 * row["solved_minimal"], 1),
        )
    scores = re.findall(r"^\| `(\w+)` \| ([\d.]+)% \| ([\d.]+)% \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert {mode for mode, *_ in scores} == {"diffusion", "ar"}
    for mode, solved, cells, steps in scores:
        report = DATA["scores"] if mode == "diffusion" else DATA["scores"]["ar"]
        assert float(solved) == round(100 * report["solved"], 1)
        assert float(cells) == round(100 * report["cells"], 1)
        assert float(steps) == round(report["mean_steps"], 1)
    baseline = re.search(r"It solves ([\d.]+)% of them,\s+with ([\d.]+)% of the cells right", PAGE)
    assert baseline is not None
    assert float(baseline[1]) == round(100 * DATA["causal"]["solved"], 1)
    assert float(baseline[2]) == round(100 * DATA["causal"]["cells"], 1)
