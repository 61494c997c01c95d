"""The training loop: draw a batch, two passes, one optimizer step; log, checkpoint, resume."""

import ctypes
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from presswork.errors import TrainingError
from presswork.models.transformer import Transformer
from presswork.training.attention import AttendBatch, attend_batch
from presswork.training.checkpoint import load_state, save_state
from presswork.training.config import TrainConfig
from presswork.training.loss import Batch, batch_losses
from presswork.training.optim import MasterOptimizer, learning_rate

_MAX_DENSE_EXPERTS = 8

logger = logging.getLogger(__name__)


class BatchSource(Protocol):
    """The batch of step 0, 1, ...: a function of the step alone, so that a resumed run sees what it would have seen."""

    def __call__(self, step: int) -> Batch: ...


@runtime_checkable
class CarryingSource(Protocol):
    """A source whose batches also depend on how the model did in earlier steps; its state is saved with the run's."""

    def __call__(self, step: int) -> Batch: ...

    def observe(self, step: int, batch: Batch, hidden: Float[Tensor, "N D"], model: Transformer) -> None:
        """Take note of the canvas pass of a step, before the weights move."""
        ...

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one logged step looked like."""

    step: int
    loss: float
    diffusion: float
    encoder: float
    canvas_accuracy: float
    gradient_norm: float
    learning_rate: float
    canvases_per_s: float
    elapsed_s: float


class Trainer:
    """Trains a model in a folder; started again on the same folder it goes on where it stopped.

    Mutates: the model (dtype, small mixtures computed densely, layers compiled), and glibc's allocator settings of the
    process.
    """

    def __init__(self, model: Transformer, source: BatchSource, config: TrainConfig, folder: Path):
        self.model = model.to(getattr(torch, config.dtype)).requires_grad_(True).train()
        self.config, self.folder, self._source = config, folder, source
        self.optimizer = MasterOptimizer(self.model, config.optimizer, config.num_steps, config.ema_decay)
        self.next_step, self._elapsed_s = 0, 0.0
        self._attend = _prepare(self.model, config.compile)
        state = load_state(folder)
        if state is not None:
            self.optimizer.restore(state["optimizer"])
            if isinstance(source, CarryingSource):
                source.restore(state["source"])
            self.next_step, self._elapsed_s = state["next_step"], state["elapsed_s"]
            logger.info("resumed %s at step %d", folder, self.next_step)

    def run(self, *, until: int | None = None) -> Iterator[StepReport]:
        """Train to the last step (or `until`), yielding a report every log_every steps.

        Raises:
            TrainingError: the loss is not finite; the offending batch is saved beside the state.
            CheckpointError: the state cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        last = self.config.num_steps if until is None else min(until, self.config.num_steps)
        started, before = time.perf_counter(), self._elapsed_s
        num_canvases, mark = 0, time.perf_counter()
        while self.next_step < last:
            step = self.next_step
            batch = self._source(step)
            losses, norm = self._step(step, batch)
            num_canvases += batch.starts.shape[0]
            self.next_step, self._elapsed_s = step + 1, before + time.perf_counter() - started
            if self.next_step % self.config.checkpoint_every == 0 or self.next_step == last:
                self.save()
            if self.next_step % self.config.log_every == 0 or self.next_step == last:
                now = time.perf_counter()
                yield self._report(step, losses, norm, num_canvases / (now - mark))
                num_canvases, mark = 0, now

    def _step(self, step: int, batch: Batch) -> tuple[dict[str, float], float]:
        losses = batch_losses(self.model, batch, encoder_weight=self.config.encoder_weight, attend=self._attend)
        if not torch.isfinite(losses.total):
            save_state(self.folder / "failed", {"step": step, "batch": asdict(batch)})
            raise TrainingError(f"the loss of step {step} is not finite; its batch is in {self.folder / 'failed'}")
        if isinstance(self._source, CarryingSource):
            self._source.observe(step, batch, losses.hidden, self.model)
        losses.total.backward()
        norm = self.optimizer.step(step)
        return {
            "loss": float(losses.total.detach()),
            "diffusion": float(losses.diffusion),
            "encoder": float(losses.encoder),
            "canvas_accuracy": float(losses.canvas_accuracy),
        }, norm

    def _report(self, step: int, losses: dict[str, float], norm: float, canvases_per_s: float) -> StepReport:
        report = StepReport(
            step=step,
            gradient_norm=norm,
            learning_rate=learning_rate(self.config.optimizer, step, self.config.num_steps),
            canvases_per_s=canvases_per_s,
            elapsed_s=self._elapsed_s,
            **losses,
        )
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(report)) + "\n")
        return report

    def save(self) -> None:
        """Write the state a later run resumes from."""
        state = {"optimizer": self.optimizer.state(), "next_step": self.next_step, "elapsed_s": self._elapsed_s}
        if isinstance(self._source, CarryingSource):
            state["source"] = self._source.state()
        save_state(self.folder, state)

    def averaged_weights(self) -> dict[str, Tensor]:
        """The moving average of the master weights, by parameter name, float32."""
        return self.optimizer.average


def _prepare(model: Transformer, compile_passes: bool) -> AttendBatch:
    """Set the model up for training speed; returns the attention to use."""
    _keep_freed_memory()
    if model.config.num_experts <= _MAX_DENSE_EXPERTS:
        for layer in model.decoder.layers:
            layer.experts.dense = True  # type: ignore[union-attr]
    if not compile_passes:
        return attend_batch
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 64
    for layer in model.decoder.layers:
        layer.project = torch.compile(layer.project, dynamic=False)  # type: ignore[union-attr]
        layer.finish = torch.compile(layer.finish, dynamic=False)  # type: ignore[union-attr]
    return torch.compile(attend_batch, dynamic=False)


def _keep_freed_memory() -> None:
    """Tell glibc not to return freed memory to the system: page faults cost a third of CPU training time."""
    trim_threshold, mmap_max = -1, -4
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 1 << 30)
