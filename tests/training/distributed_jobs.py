"""What the processes of test_distributed.py do.

A case is a run's model, source and config; its figures must not depend on the number of processes.
"""

import os
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from presswork import cli
from presswork.errors import CheckpointError, TrainingError
from presswork.models.adapters import LoraConfig
from presswork.models.transformer import Transformer
from presswork.settings import Launch
from presswork.testing import tiny_model
from presswork.training.config import OptimizerConfig
from presswork.training.distributed import ALONE, Ranks, joined
from presswork.training.loss import Batch, Drafts
from presswork.training.muon import orthogonalise
from presswork.training.optim import adamw_order
from presswork.training.run import averaged_adapter
from presswork.training.trainer import Trainer
from presswork.weights.lora import new_adapter
from tests.training.test_trainer import CANVAS, PROMPT, VOCAB, config, counting


def uneven(step: int) -> Batch:
    """Seven rows of two documents; canvases of the first three rows only, so that a later share has none.

    Some positions do not count in the causal loss; canvases bring beliefs along.
    """
    whole = counting(step)
    generator = torch.Generator().manual_seed(step)
    origins = torch.zeros(7, PROMPT + CANVAS, dtype=torch.int64)
    origins[:, 2:] = 2
    targets = whole.targets[:7].clone()
    targets[3:, 5:] = -100
    examples = torch.tensor([0, 0, 1, 2, 2, 2])
    return replace(
        whole, ids=whole.ids[:7], targets=targets, examples=examples, starts=whole.starts[:6], x0=whole.x0[examples],
        xt=whole.xt[:6], self_conditioned=torch.tensor([1, 2]), origins=origins, canvas_origins=torch.full((6,), 2),
        belief=0.1 * torch.rand(6, CANVAS, 16, generator=generator),
    )  # fmt: skip


def with_drafts(batch: Batch, canvases: torch.Tensor) -> Batch:
    """The second pass of these canvases reads what the sampler makes of the first."""
    generator = torch.Generator().manual_seed(7)
    num, length = canvases.shape[0], batch.x0.shape[1]
    drafts = Drafts(
        canvases=canvases, uniform=torch.rand(num, length, generator=generator, dtype=torch.float64),
        noise=torch.randint(0, VOCAB, (num, length), generator=generator), bounds=torch.linspace(0.5, 4.0, num),
    )  # fmt: skip
    return replace(batch, drafts=drafts)


def drafted(step: int) -> Batch:
    """Half of the self-conditioned canvases are drafted too."""
    batch = counting(step)
    return with_drafts(batch, batch.self_conditioned[:2])


def many_experts(**changes: object) -> Transformer:
    """More experts than are computed densely; most get no row of a step."""
    return tiny_model(num_experts=10, **changes)


def mostly_frozen() -> Transformer:
    model = tiny_model().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(("experts.down", "qkv", "mlp_norm")))
    return model


def adapted() -> Transformer:
    """An adapter beside frozen weights, on experts of which most get no row."""
    model = many_experts().requires_grad_(False)
    model.adapter = new_adapter(model.config, LoraConfig(rank=2, targets=("*_proj", "*.router.proj")))
    return model


@dataclass(frozen=True)
class Case:
    """A run without the number of its processes."""

    model: Callable[[], Transformer] = tiny_model
    source: Callable[[int], Batch] = counting
    changes: dict[str, Any] = field(default_factory=dict)
    validation: tuple[Batch, ...] = ()

    def open(self, folder: Path, ranks: Ranks = ALONE, **changes: object) -> Trainer:
        settings = {"num_steps": 3, "checkpoint_every": 100, **self.changes, **changes}
        if ranks.num == 1:
            settings["expert_parallel"] = 1
        return Trainer(self.model(), self.source, config(**settings), folder, self.validation, ranks)


MUON = OptimizerConfig(peak_rate=3e-3, warmup_steps=2, algorithm="muon")
HELD = (counting(1000), counting(1001))
CASES = {
    "sharded": Case(changes={"balance_weight": 0.05, "validate_every": 2}, validation=HELD),
    "experts": Case(changes={"balance_weight": 0.05, "expert_parallel": 2}),
    "uneven": Case(many_experts, uneven, {"balance_weight": 0.05}),
    "uneven experts": Case(many_experts, uneven, {"balance_weight": 0.05, "expert_parallel": 2, "recompute": True}),
    "accumulated": Case(changes={"accumulate": 2, "recompute": True}),
    "muon": Case(changes={"optimizer": MUON, "expert_parallel": 2}),
    "untied": Case(partial(tiny_model, tie_word_embeddings=False), drafted),
    "bfloat16": Case(changes={"dtype": "bfloat16", "expert_parallel": 2}),
    "adapter": Case(adapted, uneven, {"recompute": True}),
    "frozen": Case(mostly_frozen, changes={"expert_parallel": 2}),
}
RESUMED = Case(changes={"num_steps": 6, "validate_every": 2, "patience": 5}, validation=HELD)


def figures(trainer: Trainer, **until: int) -> dict[str, Any]:
    """Everything a run shows of itself; the weights are gathered."""
    reports = [
        (r.gradient_norm, r.loss, r.diffusion, r.encoder, r.balance, r.canvas_accuracy, r.validation_diffusion or 0.0)
        for r in trainer.run(**until)
    ]
    kinds = {"weights": trainer.optimizer.masters, "average": trainer.averaged_weights()}
    found = {"reports": torch.tensor(reports, dtype=torch.float64), **_gathered(trainer, kinds)}
    adapter = averaged_adapter(trainer)
    if adapter is not None:
        found["weights"] |= {f"exported.{name}": parameter.data for name, parameter in adapter.named_parameters()}
    return found


def _gathered(trainer: Trainer, kinds: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    gather = trainer.layout.gather
    return {kind: {name: gather(name, part).clone() for name, part in of_one.items()} for kind, of_one in kinds.items()}


def tensors(trainer: Trainer) -> dict[str, dict[str, torch.Tensor]]:
    """All that is saved of the parameters, gathered: masters, average, moments."""
    state: dict[str, Any] = trainer.optimizer.state()
    kinds = {kind: state[kind] for kind in ("masters", "average", "momenta")}
    order = adamw_order(state["masters"], state["momenta"])
    for kind in ("exp_avg", "exp_avg_sq"):
        kinds[kind] = {order[i]: moments[kind] for i, moments in state["adamw"]["state"].items()}
    return _gathered(trainer, kinds)


def _keep(found: Any, file: Path, ranks: Ranks) -> None:
    if ranks.is_first:
        torch.save(found, file)


def two(folder: Path, ranks: Ranks) -> None:
    """Two processes run every case, stop when one is asked to, begin a run, go on with another, and fail."""
    for name, case in CASES.items():
        trainer = case.open(folder / name, ranks)
        found = figures(trainer)
        held = [part.numel() for part in trainer.optimizer.masters.values()]
        found["held"] = _of_all(ranks, sum(held))
        _keep(found, folder / f"{name}.pt", ranks)
        if name == "muon":
            _turn(trainer)
            _keep(tensors(trainer), folder / "muon's state.pt", ranks)
    _stop(folder / "stopped", ranks)
    _begin(folder / "by two", ranks)
    _go_on(folder / "by one", ranks)
    _fail(folder / "failing", ranks)


def four(folder: Path, ranks: Ranks) -> None:
    """Four processes, two to a set of experts; ten experts are five on each, cut in three and two."""
    _go_on(folder / "by two", ranks)
    case = Case(many_experts, changes={"expert_parallel": 2, "checkpoint_every": 2, "num_steps": 2})
    _keep(figures(case.open(folder / "copies", ranks)), folder / "copies.pt", ranks)


def _of_all(ranks: Ranks, value: int) -> list[int]:
    return [int(ranks.add(torch.tensor(value if rank == ranks.rank else 0))) for rank in range(ranks.num)]


def _turn(trainer: Trainer) -> None:
    """A matrix in parts is orthogonalised as the whole one is, to the bit."""
    layout, generator = trainer.layout, torch.Generator().manual_seed(0)
    for name in trainer.optimizer.masters:
        shape = layout.shape(name)
        if len(shape) == 2 and trainer.model.decoder.embedding.shape != shape:
            matrix = torch.randn(shape, generator=generator)
            found = layout.orthogonalise(name, layout.part(name, matrix))
            assert torch.equal(layout.gather(name, found), orthogonalise(matrix)), name


def _stop(folder: Path, ranks: Ranks) -> None:
    trainer = CASES["sharded"].open(folder, ranks)
    for _ in trainer.run():
        if ranks.rank == 1:
            trainer.ask_to_stop()
    _keep(_of_all(ranks, trainer.next_step), folder.with_suffix(".pt"), ranks)


def _begin(folder: Path, ranks: Ranks) -> None:
    """The first half of a run, then a save that the second process cannot write."""
    trainer = RESUMED.open(folder, ranks, checkpoint_every=3, expert_parallel=2)
    figures(trainer, until=3)
    found: dict[str, Any] = tensors(trainer)
    for part in trainer.optimizer.masters.values():
        part.zero_()
    real = os.fsync

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    os.fsync = full if ranks.rank == 1 else real
    try:
        trainer.save()
    except CheckpointError as error:
        found["error"] = str(error)
    os.fsync = real
    _keep(found, folder.with_suffix(".begun.pt"), ranks)


def _go_on(folder: Path, ranks: Ranks) -> None:
    """What is left of a run that another number of processes began, in a copy of its folder."""
    mine = folder.with_name(f"{folder.name}, on {ranks.num}")
    ranks.first_does(lambda: shutil.copytree(folder, mine) and None)
    trainer = RESUMED.open(mine, ranks, expert_parallel=2)
    _keep({"first": trainer.next_step, **figures(trainer)}, mine.with_suffix(".pt"), ranks)


def _fail(folder: Path, ranks: Ranks) -> None:
    """What is not finite on one process stops all before anything moves; then one process fails alone."""
    trainer = CASES["sharded"].open(folder, ranks)
    before = {name: part.clone() for name, part in trainer.optimizer.masters.items()}
    if ranks.rank == 1:
        trainer.layout.local(trainer.model.decoder.norm.detach()).fill_(float("inf"))
    try:
        list(trainer.run())
    except TrainingError as error:
        moved = [name for name, part in trainer.optimizer.masters.items() if not torch.equal(part, before[name])]
        (folder / f"stopped-{ranks.rank}").write_text(f"{error}; moved {moved}")
    if ranks.rank == 1:
        raise TrainingError("the second process has had enough")
    ranks.any(False)


def train(folder: Path) -> None:
    """`presswork train`, of a run without end."""
    settings = ("train.num_steps=1000000", "train.checkpoint_every=1000000", "train.validate_every=0")
    words = [word for setting in settings for word in ("--set", setting)]
    sys.argv = [
        "presswork",
        "train",
        str(Path(__file__).with_name("recipe_for_tests.py")),
        "--out",
        str(folder),
        *words,
    ]
    cli.main()


def enter(job: str, folder: Path, launch: Launch, port: int) -> None:
    """A process's whole life; what it says is in `said-` and its number."""
    os.environ.update(RANK=str(launch.rank), LOCAL_RANK=str(launch.local_rank), WORLD_SIZE=str(launch.num_ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with (folder / f"said-{launch.rank}").open("w") as said:
        os.dup2(said.fileno(), 2)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    if job == "train":
        return train(folder)
    try:
        with joined(launch) as ranks:
            {"two": two, "four": four}[job](folder, ranks)
    except TrainingError as error:
        sys.exit(str(error))
