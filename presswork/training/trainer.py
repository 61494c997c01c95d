"""The training loop: draw a batch, two passes, one optimizer step; log, validate, checkpoint, resume."""

import ctypes
import functools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from presswork.errors import CheckpointError, ConfigError, TrainingError
from presswork.models.transformer import Transformer
from presswork.ops.moe import mix_experts_dense
from presswork.training.attention import PLAIN_ATTENTION, AttentionFunctions
from presswork.training.checkpoint import load_state, remove_parts, save_state
from presswork.training.config import TrainConfig
from presswork.training.distributed import ALONE, Ranks
from presswork.training.layout import Layout, OneProcess
from presswork.training.loss import Batch, Losses
from presswork.training.metrics import MetricsLog
from presswork.training.optim import MasterOptimizer, learning_rate

_MAX_DENSE_EXPERTS = 8

logger = logging.getLogger(__name__)


class BatchSource(Protocol):
    """Batch 0, 1, ...: a function of its number alone, so that a resumed run sees what it would have seen."""

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
    """What training looked like at a step. Losses are means over all batches since the last report, the causal one over
    those that had targets (None: there were none); validation losses are those of the last look.
    """

    step: int
    loss: float
    diffusion: float
    encoder: float | None
    balance: float
    canvas_accuracy: float
    gradient_norm: float
    learning_rate: float
    canvases_per_s: float
    tokens_per_s: float
    elapsed_s: float
    validation_diffusion: float | None = None
    validation_encoder: float | None = None


@dataclass(slots=True)
class _Sums:
    """Losses added up since the last report."""

    num_batches: int = 0
    num_causal: int = 0
    total: float = 0.0
    diffusion: float = 0.0
    encoder: float = 0.0
    balance: float = 0.0
    canvas_accuracy: float = 0.0

    def add(self, losses: Losses, has_targets: bool) -> None:
        self.num_batches += 1
        self.num_causal += has_targets
        self.total += float(losses.total.detach())
        self.diffusion += float(losses.diffusion)
        self.encoder += float(losses.encoder)
        self.balance += float(losses.balance)
        self.canvas_accuracy += float(losses.canvas_accuracy)


@dataclass(slots=True)
class _Progress:
    """What is saved of the loop itself."""

    next_step: int = 0
    elapsed_s: float = 0.0
    best_loss: float = float("inf")
    num_worse: int = 0
    is_stopped: bool = False
    validation: tuple[float, float] | None = None
    sums: _Sums = field(default_factory=_Sums)

    @classmethod
    def of(cls, saved: dict[str, Any]) -> "_Progress":
        return cls(**{**saved, "sums": _Sums(**saved.get("sums", {}))})


class Trainer:
    """Trains a model in a folder; started again on the same folder it goes on where it stopped.

    Mutates: the model (dtype, small mixtures computed densely, layers compiled), and glibc's allocator settings of the
    process.

    Args:
        validation: batches whose losses under the averaged weights are looked at now and then.
        ranks: the processes of the run; every one makes its own trainer, of the same model, source and config.
    """

    def __init__(
        self,
        model: Transformer,
        source: BatchSource,
        config: TrainConfig,
        folder: Path,
        validation: Sequence[Batch] = (),
        ranks: Ranks = ALONE,
    ):
        for name in ("patience", "validate_every"):
            if getattr(config, name) and not validation:
                raise ConfigError(
                    f"{name} is {getattr(config, name)}, but there is nothing to validate on; give some, or set 0"
                )
        if not any(p.requires_grad for p in model.parameters()):
            model.requires_grad_(True)
        if not config.diffusion_weight:
            # Without a gradient it would only decay.
            model.self_conditioning.requires_grad_(False)
        self.config, self.folder, self._source, self._validation = config, folder, source, validation
        self.layout = _lay_out(model, config, source, validation, ranks)
        # Before the model is rounded, so that the masters are not.
        self.optimizer = MasterOptimizer(model, config.optimizer, config.num_steps, config.ema_decay, self.layout)
        self.layout.to(getattr(torch, config.dtype))
        self.model = model.train()
        self._best: dict[str, Tensor] = {}
        self._progress = _Progress()
        self._is_asked_to_stop = False
        self._attend = _prepare(self.model, config)
        if config.recompute:
            recompute_layers(self.model)
        state = self._load()
        if state is not None:
            self.optimizer.restore(state["optimizer"])
            if isinstance(source, CarryingSource):
                source.restore(state["source"])
            self._progress = _Progress.of(state["progress"])
            self._best = state["best"]
            logger.info("resumed %s at step %d", folder, self.next_step)

    @property
    def ranks(self) -> Ranks:
        return self.layout.ranks

    @property
    def next_step(self) -> int:
        return self._progress.next_step

    @property
    def is_done(self) -> bool:
        """Whether the last step is done, or the validation loss has stopped falling."""
        return self._progress.is_stopped or self.next_step >= self.config.num_steps

    def ask_to_stop(self) -> None:
        """Let `run` end after the step it is in, with its state written; safe to call from a signal handler.

        Of several processes all end after the same step.
        """
        self._is_asked_to_stop = True

    def run(self, *, until: int | None = None) -> Iterator[StepReport]:
        """Train to the last step (or `until`), yielding a report every log_every steps.

        Raises:
            TrainingError: the loss or its gradient is not finite; the offending batch is saved beside the state.
            CheckpointError: the state cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        last = self.config.num_steps if until is None else min(until, self.config.num_steps)
        progress, started, before = self._progress, time.perf_counter(), self._progress.elapsed_s
        num_canvases, num_tokens, mark = 0, 0, time.perf_counter()
        is_asked = False
        with self._metrics() as metrics:
            while progress.next_step < last and not progress.is_stopped:
                is_asked = self.ranks.any(self._is_asked_to_stop)
                if is_asked:
                    break
                step = progress.next_step
                norm, counted = self._step(step)
                num_canvases, num_tokens = num_canvases + counted[0], num_tokens + counted[1]
                progress.next_step, progress.elapsed_s = step + 1, before + time.perf_counter() - started
                self._look(step)
                is_last = progress.next_step == last or progress.is_stopped
                report = None
                if progress.next_step % self.config.log_every == 0 or is_last:
                    spent = time.perf_counter() - mark
                    report = self._report(step, norm, num_canvases / spent, num_tokens / spent)
                    if metrics is not None:
                        metrics.write(step, asdict(report))
                if progress.next_step % self.config.checkpoint_every == 0 or is_last:
                    self.save()
                if report is not None:
                    yield report
                    num_canvases, num_tokens, mark = 0, 0, time.perf_counter()
            if is_asked:
                self.save()

    def _metrics(self) -> AbstractContextManager[MetricsLog | None]:
        """The run's figures, which the first process writes."""
        return MetricsLog(self.folder, first_step=self.next_step) if self.ranks.is_first else nullcontext()

    def _step(self, step: int) -> tuple[float, tuple[int, int]]:
        """(gradient norm, (canvases, tokens)). Mutates the progress: losses are added up."""
        count, num_canvases, num_tokens = self.config.accumulate, 0, 0
        batches = []
        for i in range(count):
            number = step * count + i
            batch = self._source(number)
            with _seeded_dropout(self.model, number * self.ranks.num + self.ranks.rank):
                losses = self.layout.losses(
                    batch, encoder_weight=self.config.encoder_weight, diffusion_weight=self.config.diffusion_weight,
                    balance_weight=self.config.balance_weight, keys_learn=self.config.keys_learn, attend=self._attend,
                )  # fmt: skip
                if not torch.isfinite(losses.total):
                    raise self._failure("loss", step, [batch])
                self._progress.sums.add(losses, batch.has_targets)
                if isinstance(self._source, CarryingSource):
                    self._source.observe(number, batch, losses.hidden, self.model)
                (losses.total / count).backward()
            self.optimizer.take_gradients()
            batches.append(batch)
            num_canvases += batch.starts.shape[0]
            num_tokens += batch.ids.numel() + batch.x0.numel()
        norm = self.optimizer.step(step)
        if not math.isfinite(norm):
            raise self._failure("gradient", step, batches)
        return norm, (num_canvases, num_tokens)

    def _failure(self, what: str, step: int, batches: Sequence[Batch]) -> TrainingError:
        """The error of a step that cannot be taken; what it was of is written down where that is possible."""
        folder = self.folder / "failed"
        saved = {"step": step, "batches": [asdict(batch) for batch in batches]}
        their = "its batch is" if len(batches) == 1 else f"its {len(batches)} batches are"
        try:
            self.ranks.first_does(lambda: save_state(folder, saved))
            where = f"{their} in {folder}"
        except CheckpointError as error:
            where = f"{their} lost: {error}"
        return TrainingError(f"the {what} of step {step} is not finite; {where}")

    def _look(self, step: int) -> None:
        """Validate where it is due. Mutates the progress."""
        config, progress = self.config, self._progress
        if not self._validation or not config.validate_every or (step + 1) % config.validate_every:
            return
        progress.validation = self.validate()
        total = config.diffusion_weight * progress.validation[0] + config.encoder_weight * progress.validation[1]
        if config.patience and total < progress.best_loss:
            self._best = {name: tensor.clone() for name, tensor in self.optimizer.average.items()}
        progress.num_worse = 0 if total < progress.best_loss else progress.num_worse + 1
        progress.best_loss = min(progress.best_loss, total)
        progress.is_stopped = 0 < config.patience <= progress.num_worse

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """(canvas loss, causal loss) over the validation batches, by the averaged weights."""
        self.model.eval()
        try:
            with self.optimizer.averaged():
                weight = self.config.diffusion_weight
                found = [
                    self.layout.losses(batch, diffusion_weight=weight, attend=self._attend)
                    for batch in self._validation
                ]
        finally:
            self.model.train()
        parts = ([float(losses.diffusion) for losses in found], [float(losses.encoder) for losses in found])
        return sum(parts[0]) / len(found), sum(parts[1]) / len(found)

    def _report(self, step: int, norm: float, canvases_per_s: float, tokens_per_s: float) -> StepReport:
        """The means of what was added up. Mutates the progress: adding up begins anew."""
        validation, sums = self._progress.validation or (None, None), self._progress.sums
        self._progress.sums = _Sums()
        return StepReport(
            step=step,
            loss=sums.total / sums.num_batches,
            diffusion=sums.diffusion / sums.num_batches,
            encoder=sums.encoder / sums.num_causal if sums.num_causal else None,
            balance=sums.balance / sums.num_batches,
            canvas_accuracy=sums.canvas_accuracy / sums.num_batches,
            gradient_norm=norm,
            learning_rate=learning_rate(self.config.optimizer, step, self.config.num_steps),
            canvases_per_s=canvases_per_s,
            tokens_per_s=tokens_per_s,
            elapsed_s=self._progress.elapsed_s,
            validation_diffusion=validation[0],
            validation_encoder=validation[1],
        )

    def save(self) -> None:
        """Write the state a later run resumes from."""
        state = {"optimizer": self.optimizer.state(), "progress": asdict(self._progress), "best": self._best}
        if isinstance(self._source, CarryingSource):
            state["source"] = self._source.state()
        if isinstance(self.layout, OneProcess):
            save_state(self.folder, state)
            remove_parts(self.folder)
        else:
            from presswork.training.sharded_state import save_parts

            save_parts(self.folder, state, self.layout)  # type: ignore[arg-type]

    def _load(self) -> dict[str, Any] | None:
        """The state in the folder, of this process's parts, whichever number of processes wrote it."""
        is_alone = isinstance(self.layout, OneProcess)
        state = load_state(self.folder, is_mapped=not is_alone)
        if state is None or (is_alone and "parts" not in state):
            return state
        from presswork.training.sharded_state import load_parts

        return load_parts(self.folder, state, self.layout)

    def averaged_weights(self) -> dict[str, Tensor]:
        """The moving average of the master weights, by parameter name, float32; of several processes, this one's parts.

        With patience it is the one whose validation loss was lowest.
        """
        return self._best or self.optimizer.average


@contextmanager
def _seeded_dropout(model: Transformer, number: int) -> Iterator[None]:
    """Make what an adapter drops a function of a number, and leave the process's generator as it was."""
    if model.adapter is None:
        yield
        return
    with torch.random.fork_rng(devices=[model.head.device] if model.head.is_cuda else []):
        torch.manual_seed(number)
        yield


def _lay_out(
    model: Transformer, config: TrainConfig, source: BatchSource, validation: Sequence[Batch], ranks: Ranks
) -> Layout:
    """Where the model's parameters lie. Mutates the model, of which several processes keep parts.

    Raises:
        ConfigError: what is wanted cannot be done by this number of processes.
        DataError: a batch has fewer examples than there are processes.
    """
    shared, num_experts = config.expert_parallel, model.config.num_experts
    if ranks.num % shared or num_experts % shared:
        raise ConfigError(
            f"expert_parallel is {shared}; it must divide the number of processes, {ranks.num}, and of experts, "
            f"{num_experts}"
        )
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but torch sees no CUDA device; set train.device=cpu")
    if ranks.num == 1:
        return OneProcess(model, torch.device(config.device))
    if shared > 1 and model.adapter is not None:
        raise ConfigError(f"an adapter is trained with whole experts: expert_parallel must be 1, got {shared}")
    if config.compile:
        raise ConfigError(f"compile works in one process, got {ranks.num}; set train.compile=false")
    if isinstance(source, CarryingSource):
        raise ConfigError(
            f"{type(source).__name__} carries canvases from step to step, which works in one process, got {ranks.num}"
        )
    from presswork.training.sharding import Sharded, check_size

    for batch in (source(0), *validation):
        check_size(batch, ranks.num)
    return Sharded(model, ranks, shared)


def _prepare(model: Transformer, config: TrainConfig) -> AttentionFunctions:
    """Set the model up for training speed; returns the attention to use."""
    _keep_freed_memory()
    if model.config.num_experts <= _MAX_DENSE_EXPERTS and config.expert_parallel == 1:
        for layer in model.decoder.layers:
            layer.experts.mix = mix_experts_dense  # type: ignore[union-attr]
    if not config.compile:
        return PLAIN_ATTENTION
    if config.device == "cpu":
        _check_compiler()
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 64
    for layer in model.decoder.layers:
        layer.project = torch.compile(layer.project, dynamic=False)  # type: ignore[union-attr]
        for name in ("finish", "join", "mix"):
            setattr(layer, name, torch.compile(getattr(layer, name), dynamic=False))
    return AttentionFunctions(
        causal=torch.compile(PLAIN_ATTENTION.causal, dynamic=False),
        canvases=torch.compile(PLAIN_ATTENTION.canvases, dynamic=False),
    )


def _check_compiler() -> None:
    """Raises ConfigError where torch.compile would find no compiler, which it says in the middle of a pass."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "compile needs a C++ compiler, and none is found; install g++ or clang++, name one in CXX, or set "
            "train.compile=false"
        ) from error


def recompute_layers(model: Transformer) -> None:
    """Have every layer computed again in the backward pass instead of keeping what it computed. Mutates the model."""
    for stack in {model.decoder, model.encoder}:
        for layer in stack.layers:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def _keep_freed_memory() -> None:
    """Tell glibc not to return freed memory to the system: page faults cost a third of CPU training time."""
    trim_threshold, mmap_max = -1, -4
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 1 << 30)
