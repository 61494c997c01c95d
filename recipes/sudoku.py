"""Trains the embedded `sudoku` model from nothing on a CPU.

    python recipes/sudoku.py --out runs/sudoku

Two runs: one on uniform corruption (OUT/corrupted), and from its averaged weights one on canvases that walk through the
sampler from step to step (OUT/walks). A run goes on where it stopped when it is started again with the same folder.
The finished model is in OUT/model; copy it to presswork/assets/sudoku to embed it.
"""

import argparse
import logging
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from presswork.engine.engine import Engine
from presswork.models.transformer import Transformer
from presswork.tasks.sudoku.encoding import EOS_ID
from presswork.tasks.sudoku.evaluate import evaluate
from presswork.tasks.sudoku.generate import Clues
from presswork.tasks.sudoku.tokenizer import build_tokenizer
from presswork.tasks.sudoku.training import BatchConfig, PuzzleBatches, PuzzleWalks, initialise, model_config
from presswork.training.config import OptimizerConfig, TrainConfig
from presswork.training.trainer import BatchSource, Trainer
from presswork.weights.config_files import write_generation_config
from presswork.weights.save import save_model

# Chosen on 192 minimal puzzles of seed 4321; see docs/decisions/0009-walks.md.
GENERATION = {
    "eos_token_id": [EOS_ID],
    "pad_token_id": 0,
    "max_denoising_steps": 28,
    "entropy_bound": 0.5,
    "t_min": 0.5,
    "t_max": 0.9,
    "stability_threshold": 1,
    "confidence_threshold": 0.03,
}
EVALUATE_EVERY = 400
POOL_SEED = 12345


def train_config(num_steps: int, peak_rate: float, *, compile_passes: bool) -> TrainConfig:
    """AdamW with a cosine, bfloat16 passes over float32 masters, averaged weights."""
    return TrainConfig(
        num_steps=num_steps,
        optimizer=OptimizerConfig(peak_rate=peak_rate, warmup_steps=min(100, num_steps)),
        ema_decay=0.998,
        compile=compile_passes,
        checkpoint_every=100,
    )


def averaged_model(trainer: Trainer) -> Transformer:
    """The averaged weights as a bfloat16 model for generation."""
    model = Transformer(model_config()).requires_grad_(False).eval()
    state = model.state_dict()
    for name, value in trainer.averaged_weights().items():
        state[name].copy_(value)
    return model.to(torch.bfloat16)


def solve_rates(trainer: Trainer) -> str:
    """Solve rates of 64 fresh puzzles of either kind."""
    engine = Engine(averaged_model(trainer), generation_config=GENERATION)
    parts = []
    for clues in (Clues((30, 45)), Clues()):
        report = evaluate(engine, 64, clues, 998, with_ar=False)
        parts.append(f"{clues}: {report['solved']:.3f} solved in {report['mean_steps']:.1f} steps")
    return ", ".join(parts)


def export(trainer: Trainer, folder: Path) -> None:
    """Write the averaged weights with tokenizer, template and generation defaults."""
    save_model(averaged_model(trainer), folder)
    write_generation_config(folder, GENERATION)
    build_tokenizer(folder)


def train(name: str, trainer: Trainer) -> None:
    """Run to the end with a progress bar, telling solve rates now and then."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=trainer.config.num_steps, completed=trainer.next_step)
        for report in trainer.run():
            figures = f"loss {report.diffusion:.4f}  right {report.canvas_accuracy:.4f}  {report.canvases_per_s:.0f}/s"
            progress.update(task, completed=report.step + 1, description=f"{name}: {figures}")
            if (report.step + 1) % EVALUATE_EVERY == 0:
                progress.console.print(f"{name}, step {report.step + 1}: {solve_rates(trainer)}")


def main() -> None:
    """Train twice, report, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--steps", default="2600,4400", help="optimizer steps of the two runs")
    parser.add_argument("--pool", type=int, default=120_000, help="minimal puzzles to draw from")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True,
                        help="fuse passes with torch.compile; needs a C++ compiler")  # fmt: skip
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    steps = [int(part) for part in arguments.steps.split(",")]

    model = Transformer(model_config())
    initialise(model)
    corrupted: BatchSource = PuzzleBatches(arguments.pool, POOL_SEED, BatchConfig(curriculum_steps=2 * steps[0] // 5))
    config = train_config(steps[0], 1.5e-3, compile_passes=arguments.compile)
    first = Trainer(model, corrupted, config, arguments.out / "corrupted")
    train("corrupted", first)

    model = averaged_model(first)
    later = BatchConfig(curriculum_steps=0, minimal_share=0.7)
    walks = PuzzleWalks(PuzzleBatches(arguments.pool, POOL_SEED, later), model)
    config = train_config(steps[1], 1e-3, compile_passes=arguments.compile)
    second = Trainer(model, walks, config, arguments.out / "walks")
    train("walks", second)
    export(second, arguments.out / "model")
    print(f"wrote {arguments.out / 'model'}")


if __name__ == "__main__":
    main()
