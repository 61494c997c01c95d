"""`presswork train`."""

import logging
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from presswork.cli.output import format_count, note, print_json, shown
from presswork.errors import PressworkError

if TYPE_CHECKING:
    from presswork.text.tokenizer import Tokenizer
    from presswork.training.distributed import Ranks
    from presswork.training.metrics import MetricsLog
    from presswork.training.recipe import Recipe
    from presswork.training.trainer import StepReport, Trainer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def train(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="A Python file that defines recipe().", metavar="RECIPE")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/ and the recipe's name by default.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Set a field of the recipe. May be given several times."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the recipe and a batch, and train nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the last report as one JSON object.")] = False,
) -> None:
    """Train a model by a recipe. Started again with the same folder, a run goes on where it stopped.

    The folder holds the recipe as it was run, the state, metrics.jsonl, TensorBoard's file where tensorboard is
    installed, and at the end the model, which every verb takes by its path.

    \b
    Examples:
      presswork train recipes/molecules.py
      presswork train recipes/molecules.py --out runs/quick --set train.num_steps=200 --set data.free_share=0.5
      presswork train recipes/molecules.py --dry-run
    """
    from presswork.cli.model import apply_threads
    from presswork.settings import Launch
    from presswork.training.distributed import joined
    from presswork.training.recipe import load_recipe, override
    from presswork.training.run import kept_run

    apply_threads(context.obj)
    with joined(Launch.from_env()) as ranks:
        if not ranks.is_first:
            # What one process says of data and weights need not be said by each.
            logging.disable(logging.WARNING)
        wanted: Recipe = override(load_recipe(recipe), settings or [])
        if ranks.is_first:
            _show_recipe(wanted)
        if dry_run:
            if ranks.is_first:
                _show_batch(wanted)
            return
        folder = out or Path("runs") / recipe.stem
        with kept_run(folder, ranks):
            is_done = _train(wanted, folder, ranks, as_json)
    if not is_done:
        raise typer.Exit(130)


def _train(recipe: "Recipe", folder: Path, ranks: "Ranks", as_json: bool) -> bool:
    """Open the run, train, export; returns whether it came to its end. Of several processes the first speaks."""
    from presswork.engine.params import defaults_from_checkpoint
    from presswork.training.run import export, generation_settings, open_run

    say = note if ranks.is_first else _keep_quiet
    # What cannot be sampled with would be found at the end.
    defaults_from_checkpoint(generation_settings(recipe))
    trainer = open_run(recipe, folder, ranks)
    num_parameters = sum(
        trainer.layout.shape(n).numel() for n, p in trainer.model.named_parameters() if p.requires_grad
    )
    at = f", going on at step {trainer.next_step}" if trainer.next_step else ""
    among = f" on {ranks.num} processes" if ranks.num > 1 else ""
    say(f"training {format_count(num_parameters)} parameters in {folder}{among}{at}")
    if ranks.is_first:
        _run(trainer, recipe)
    else:
        _follow(trainer, recipe)
    if not trainer.is_done:
        say(f"stopped after step {trainer.next_step}; run the same command again to go on")
        return False
    target = export(trainer, recipe)
    kind = "model" if recipe.lora is None else "adapter"
    say(f"wrote {target}; try: presswork run --{kind} {target}" + _beside(recipe))
    if as_json and ranks.is_first:
        from presswork.training.metrics import read_metrics

        print_json({"folder": str(folder), kind: str(target), "last": next(reversed(read_metrics(folder)), None)})
    return True


def _beside(recipe: "Recipe") -> str:
    """The model an adapter belongs to, as a flag."""
    from presswork.training.recipe import FromCheckpoint

    if recipe.lora is None or not isinstance(recipe.start, FromCheckpoint):
        return ""
    return f" --model {recipe.start.model}"


def _keep_quiet(message: str) -> None:
    """What the processes beside the first say."""


def _follow(trainer: "Trainer", recipe: "Recipe") -> None:
    """Train as one of the processes beside the first, which shows and evaluates."""
    from presswork.training.run import averaged_model

    with _stops_cleanly(trainer):
        if _is_owed(trainer, recipe):
            averaged_model(trainer)
        for report in trainer.run():
            if _is_evaluated(recipe, report.step):
                # The first process gathers its model from all.
                averaged_model(trainer)


def _is_evaluated(recipe: "Recipe", step: int) -> bool:
    every = recipe.evaluate_every
    return recipe.evaluate is not None and every > 0 and (step + 1) % every == 0


def _is_owed(trainer: "Trainer", recipe: "Recipe") -> bool:
    """Whether the run broke off while the step it goes on behind was evaluated. All processes must ask."""
    from presswork.training.metrics import EVALUATIONS_FILE, read_metrics

    step = trainer.next_step - 1
    if step < 0 or not _is_evaluated(recipe, step):
        return False
    known = read_metrics(trainer.folder, EVALUATIONS_FILE) if trainer.ranks.is_first else []
    return trainer.ranks.share(all(row["step"] != step for row in known))


def _run(trainer: "Trainer", recipe: "Recipe") -> None:
    """Train with a bar where standard error is a terminal, else a line a report."""
    from presswork.training.metrics import EVALUATIONS_FILE, MetricsLog

    with _stops_cleanly(trainer), _bar(trainer) as show, MetricsLog(trainer.folder, EVALUATIONS_FILE) as log:
        if _is_owed(trainer, recipe):
            _note_evaluation(trainer, recipe, trainer.next_step - 1, log)
        for report in trainer.run():
            try:
                show(report)
            except BrokenPipeError:
                if trainer.ranks.num == 1:
                    trainer.save()
                raise
            if _is_evaluated(recipe, report.step):
                _note_evaluation(trainer, recipe, report.step, log)


def _note_evaluation(trainer: "Trainer", recipe: "Recipe", step: int, log: "MetricsLog") -> None:
    try:
        figures = _evaluate(trainer, recipe)
    except PressworkError as error:
        note(f"step {step + 1}: not evaluated: {error}")
        return
    log.write(step, {"step": step, **figures})
    note(f"step {step + 1}: " + "  ".join(f"{name} {value:.3f}" for name, value in figures.items()))


def _evaluate(trainer: "Trainer", recipe: "Recipe") -> dict[str, float]:
    """The recipe's own figures of the averaged weights."""
    from presswork.engine.engine import Engine
    from presswork.training.run import averaged_model, generation_settings

    model = averaged_model(trainer)
    assert recipe.evaluate is not None and model is not None
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = _tokenizer(recipe, Path(scratch))
        engine = Engine(model, tokenizer=tokenizer, generation_config=generation_settings(recipe))
        return dict(recipe.evaluate(engine))


@contextmanager
def _stops_cleanly(trainer: "Trainer") -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run after its step, with the state written; a second Ctrl-C ends it at once.

    Not so under torchrun: it hands on the Ctrl-C that the processes had already, and itself ends those that linger.
    """
    ranks, has_asked = trainer.ranks, False

    def ask(number: int, frame: Any) -> None:
        nonlocal has_asked
        trainer.ask_to_stop()
        if ranks.num > 1:
            if ranks.is_first and not has_asked:
                with suppress(OSError, RuntimeError):
                    note("stopping after this step")
            has_asked = True
            return
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Whoever read our output may be gone, or be in the middle of it.
        with suppress(OSError, RuntimeError):
            note("stopping after this step; press Ctrl-C again to stop at once")

    before = {kind: signal.signal(kind, ask) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


class TimeLeft:
    """How long a run will take yet, by the steps since its first report: compiling belongs to no later step.

    Rich's own estimate looks back half a minute, in which a large model may not report twice.
    """

    def __init__(self, num_steps: int):
        self._num_steps = num_steps
        self._first: tuple[int, float] | None = None

    def after(self, report: "StepReport") -> str:
        """As hours, minutes and seconds; nothing at the first report."""
        done, now = report.step + 1, report.elapsed_s
        if self._first is None:
            self._first = (done, now)
        num, seconds = done - self._first[0], now - self._first[1]
        return str(timedelta(seconds=round((self._num_steps - done) * seconds / num))) if num else ""


@contextmanager
def _bar(trainer: "Trainer") -> Iterator[Any]:
    total = trainer.config.num_steps
    time_left = TimeLeft(total)

    def figures(report: "StepReport") -> str:
        left = time_left.after(report)
        return _figures(report) + (f"  {left} left" if left else "")

    if not sys.stderr.isatty():
        yield lambda report: note(f"step {report.step + 1} of {total}: {figures(report)}")
        return
    from rich import progress as parts
    from rich.console import Console

    columns = (
        parts.BarColumn(), parts.MofNCompleteColumn(), parts.TimeElapsedColumn(),
        parts.TextColumn("{task.description}"),
    )  # fmt: skip
    with parts.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("the first steps take longest", total=total, completed=trainer.next_step)
        yield lambda report: bar.update(task, completed=report.step + 1, description=figures(report))


def _figures(report: "StepReport") -> str:
    parts = [f"canvas {report.diffusion:.3f}"]
    if report.encoder is not None:
        parts.append(f"causal {report.encoder:.3f}")
    parts += [f"right {report.canvas_accuracy:.1%}", f"{report.tokens_per_s:.0f} tokens/s"]
    if report.validation_diffusion is not None:
        parts.append(f"validation {report.validation_diffusion:.3f} and {report.validation_encoder:.3f}")
    return "  ".join(parts)


def _show_recipe(recipe: "Recipe") -> None:
    from presswork.training.recipe import describe

    for line in _flat(describe(recipe)):
        note(line)


def _flat(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flat(item, f"{path}.{name}" if path else name)
    else:
        yield f"  {path} = {value}"


def _show_batch(recipe: "Recipe") -> None:
    """One batch, decoded where the recipe brings a tokenizer."""
    from presswork.training.preview import preview

    batch = recipe.data.open(recipe.start.build())(0)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = _tokenizer(recipe, Path(scratch))

        def decode(ids: list[int]) -> str:
            return " ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(ids, skip_special_tokens=False)

        for line in preview(batch, decode):
            typer.echo(shown(line))


def _tokenizer(recipe: "Recipe", scratch: Path) -> "Tokenizer | None":
    from presswork.text.tokenizer import Tokenizer
    from presswork.training.recipe import FromCheckpoint
    from presswork.weights.hub import resolve

    if recipe.write_text_files is not None:
        recipe.write_text_files(scratch)
        return Tokenizer.from_folder(scratch)
    if isinstance(recipe.start, FromCheckpoint) and (resolve(recipe.start.model) / "tokenizer.json").is_file():
        return Tokenizer.from_folder(resolve(recipe.start.model))
    return None
