"""How many steps a diffusion model saves by starting from a causal one of the same architecture.

    presswork train recipes/code.py --out runs/causal --set train.diffusion_weight=0 --set data.pack.draft_share=0
    python benchmarks/adaptation.py --causal runs/causal --out runs/adaptation

Converts the causal model as `presswork convert` does, and trains the diffusion model twice with the same data, rates
and warm-up: from random weights, and from the converted model with fewer steps in all. Reported are the steps each
takes to the validation loss at which the run from random weights ends. Resumes where it was stopped. Writes
benchmarks/results/adaptation.json.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from offline import RESULTS
from peers.transformers_cpu import commit, hardware

from presswork.training.metrics import read_metrics
from presswork.training.recipe import FromCheckpoint, Recipe, load_recipe, override
from presswork.training.run import export, open_run
from presswork.weights.convert import convert

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "code.py"
PLAIN = [
    "data.pack.draft_share=0",
    "data.pack.self_conditioned_share=0.5",
    "train.encoder_weight=1",
    "evaluate_every=0",
]


def train(recipe: Recipe, folder: Path) -> None:
    """Run to the end, one line a report."""
    trainer = open_run(recipe, folder)
    for report in trainer.run():
        looks = f"{report.validation_diffusion} {report.validation_encoder}"
        print(folder.name, report.step + 1, f"{report.loss:.4f}", looks, f"{report.elapsed_s:.0f} s", flush=True)
    if not (folder / "model").exists():
        export(trainer, recipe)


def curve(folder: Path) -> list[tuple[int, float]]:
    """(steps done, canvas loss on the validation set) at each look."""
    rows = [(int(row["step"] or 0) + 1, row["validation_diffusion"]) for row in read_metrics(folder)]
    looks = [(step, loss) for step, loss in rows if loss is not None]
    # A report repeats the last look until there is a new one.
    return [look for i, look in enumerate(looks) if i == 0 or look[1] != looks[i - 1][1]]


def steps_to(looks: Sequence[tuple[int, float]], loss: float) -> int | None:
    """Steps after which a run first looked at least as good."""
    return next((step for step, found in looks if found <= loss), None)


def main() -> None:
    """Train twice, compare, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--causal", type=Path, required=True, help="folder of the finished causal run")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="the recipe the causal run was made by")
    parser.add_argument("--steps", type=int, default=600, help="from random weights")
    parser.add_argument("--adapted-steps", type=int, default=300, help="from the converted model")
    parser.add_argument("--warmup", type=int, default=30, help="steps, of either")
    parser.add_argument("--every", type=int, default=20, help="steps between looks at the validation set")
    given = parser.parse_args()
    often = [f"train.{name}={given.every}" for name in ("validate_every", "log_every")]
    base = override(load_recipe(given.recipe), [*PLAIN, *often, f"train.optimizer.warmup_steps={given.warmup}"])
    scratch = override(base, [f"train.num_steps={given.steps}"])
    start = given.out / "start"
    if not start.exists():
        convert(given.causal / "model", start, canvas_length=base.start.model.canvas_length)  # type: ignore[attr-defined]
    adapted = override(base, [f"train.num_steps={given.adapted_steps}"])
    train(scratch, given.out / "scratch")
    train(replace(adapted, start=FromCheckpoint(model=str(start))), given.out / "adapted")
    curves = {name: curve(given.out / name) for name in ("scratch", "adapted")}
    goal = curves["scratch"][-1][1]
    steps = {name: steps_to(looks, goal) for name, looks in curves.items()}
    last = read_metrics(given.causal)[-1]
    result = {
        "goal": goal, "steps": steps, "curves": curves, "causal_steps": int(last["step"] or 0) + 1,
        "causal_validation": last["validation_encoder"],
        "hardware": hardware(), "commit": commit(), "command": " ".join(sys.argv),
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "adaptation.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"goal": goal, "steps": steps}))


if __name__ == "__main__":
    main()
