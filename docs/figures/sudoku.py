"""Draws the pictures of the Sudoku tutorial from a run's folder.

    python docs/figures/sudoku.py runs/tutorial runs/causal docs/figures

Beside them it leaves sudoku.json: the rows that were drawn, and what 200 fresh puzzles say of the finished model and of
the causal one.
"""

import argparse
import io
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
# Words stay words in the file, and it comes out the same each time.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "presswork", "font.family": "sans-serif"})

from matplotlib import pyplot  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.style import Style  # noqa: E402
from rich.table import Table  # noqa: E402
from rich.text import Text  # noqa: E402

from presswork.engine.engine import Engine  # noqa: E402
from presswork.engine.events import Draft  # noqa: E402
from presswork.engine.loader import load  # noqa: E402
from presswork.tasks.sudoku.encoding import CANVAS_LENGTH, DIGIT_ID, decode_solution, encode_prompts  # noqa: E402
from presswork.tasks.sudoku.evaluate import evaluate, is_solved  # noqa: E402
from presswork.tasks.sudoku.generate import Cells, Clues, generate  # noqa: E402
from presswork.training.metrics import EVALUATIONS_FILE, METRICS_FILE, read_metrics  # noqa: E402

NUM_FRAMES, NUM_LOOKED_AT = 6, 50
EASY = Clues((30, 45))


def draw_curve(run: Path, file: Path) -> None:
    """Losses and solve rates over the steps of a run."""
    metrics, evaluations = read_metrics(run, METRICS_FILE), read_metrics(run, EVALUATIONS_FILE)
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(7, 5.5), sharex=True, layout="constrained")
    steps = [row["step"] + 1 for row in metrics]
    above.plot(steps, [row["diffusion"] for row in metrics], color="#1f6feb", label="canvas loss")
    above.plot(steps, [row["canvas_accuracy"] for row in metrics], color="#8b949e", label="canvas tokens right")
    above.set_ylabel("nats a token; share")
    above.legend(frameon=False)
    at = [0] + [row["step"] + 1 for row in evaluations]
    for name, label, colour in (
        ("solved_30_45", "30-45 clues", "#2da44e"),
        ("solved_minimal", "minimal, about 24 clues", "#bf8700"),
    ):
        below.plot(at, [0.0] + [row[name] for row in evaluations], marker="o", color=colour, label=label)
    below.set(xlabel="step", ylabel="puzzles solved", ylim=(-0.03, 1.03))
    below.legend(frameon=False)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def draw_frames(engine: Engine, file: Path) -> None:
    """A puzzle's canvas after some of its denoise steps, the clues bold, the rest as bright as it is certain.

    Of fresh puzzles the first that the model solves in enough steps to show.
    """
    for puzzle in generate(NUM_LOOKED_AT, 3, Clues((30, 32)))[0]:
        ids = encode_prompts(puzzle[None])[0].tolist()
        events = engine.stream(prompt_token_ids=ids, drafts=True, max_tokens=CANVAS_LENGTH)
        drafts = [event for event in events if isinstance(event, Draft)]
        last = next(i for i, draft in enumerate(drafts) if draft.token_ids == drafts[-1].token_ids)
        grid = decode_solution(drafts[-1].token_ids)
        if last + 1 >= NUM_FRAMES and grid is not None and is_solved(puzzle, grid):
            break
    shown = sorted({round(i * last / (NUM_FRAMES - 1)) for i in range(NUM_FRAMES)})
    table = Table.grid(padding=(0, 3))
    for start in range(0, len(shown), 3):
        row = [_board(drafts[i], puzzle) for i in shown[start : start + 3]]
        table.add_row(*row)
        table.add_row()
    console = Console(record=True, width=76, file=io.StringIO(), force_terminal=True)
    console.print(table)
    console.save_svg(str(file), title="a canvas settles")


def _board(draft: Draft, puzzle: Cells) -> Text:
    text = Text(f"step {draft.step}\n", style="cyan")
    for cell in range(81):
        position = cell + cell // 9
        digit = draft.token_ids[position] - DIGIT_ID
        certainty = max(0.0, 1.0 - draft.entropy[position] / 2.2)
        level = 70 + round(160 * certainty)
        style = Style(bold=True, color="bright_cyan") if puzzle[cell] else Style(color=f"rgb({level},{level},{level})")
        text.append(str(digit) if 1 <= digit <= 9 else "·", style=style)
        text.append("\n" if cell % 9 == 8 else "  " if cell % 3 == 2 else " ")
        if cell in (26, 53):
            text.append("\n")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("causal", type=Path, help="folder of a finished run with the causal loss alone")
    parser.add_argument("out", type=Path, help="folder of the pictures")
    parser.add_argument("--num", type=int, default=200, help="fresh puzzles to solve")
    arguments = parser.parse_args()
    draw_curve(arguments.run, arguments.out / "sudoku-curve.svg")
    engine = load(arguments.run / "model")
    draw_frames(engine, arguments.out / "sudoku-frames.svg")
    baseline = load(arguments.causal / "model")
    data = {
        "evaluations": read_metrics(arguments.run, EVALUATIONS_FILE),
        "elapsed_s": read_metrics(arguments.run, METRICS_FILE)[-1]["elapsed_s"],
        "scores": evaluate(engine, arguments.num, EASY, seed=1),
        "causal": evaluate(baseline, arguments.num, EASY, seed=1, with_diffusion=False)["ar"],
    }
    (arguments.out / "sudoku.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
