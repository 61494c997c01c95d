"""The loop: it learns, resumes to the bit, keeps its last good state, and stops on what is not finite."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from presswork.diffusion.corruption import corrupt, draw_times
from presswork.errors import CheckpointError, ConfigError, TrainingError
from presswork.testing import tiny_model
from presswork.training import checkpoint
from presswork.training.checkpoint import STATE_FILE, load_state
from presswork.training.config import OptimizerConfig, TrainConfig
from presswork.training.loss import Batch, batch_losses
from presswork.training.trainer import Trainer

PROMPT, CANVAS, VOCAB = 4, 8, 64


def counting(step: int) -> Batch:
    """The response counts on from the prompt's last token."""
    generator = torch.Generator().manual_seed(step)
    first = torch.randint(0, VOCAB - PROMPT - CANVAS, (8, 1), generator=generator)
    ids = first + torch.arange(PROMPT + CANVAS)
    x0 = ids[:, PROMPT:]
    xt, _ = corrupt(x0, draw_times(8, generator), VOCAB, generator)
    targets = torch.full_like(ids, -100)
    targets[:, :-1] = ids[:, 1:]
    return Batch(
        ids=ids, targets=targets, examples=torch.arange(8), starts=torch.full((8,), PROMPT), x0=x0, xt=xt,
        self_conditioned=torch.randperm(8, generator=generator)[:4].sort()[0],
    )  # fmt: skip


def config(num_steps: int = 6, **changes: object) -> TrainConfig:
    base = TrainConfig(
        num_steps=num_steps, optimizer=OptimizerConfig(peak_rate=3e-3, warmup_steps=2), dtype="float32",
        checkpoint_every=2, log_every=1, ema_decay=0.9,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def trainer(folder: Path, source=counting, **changes: object) -> Trainer:
    return Trainer(tiny_model(), source, config(**changes), folder)


def weights(trained: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trained.model.named_parameters()}


@pytest.mark.slow
def test_it_learns_to_count(tmp_path) -> None:
    reports = list(trainer(tmp_path, num_steps=200, checkpoint_every=200).run())
    # The loss of a step depends on its noise.
    first, last = reports[:40], reports[-40:]
    for name, share in (("diffusion", 0.85), ("encoder", 0.5)):
        assert sum(getattr(r, name) for r in last) < share * sum(getattr(r, name) for r in first)
    assert sum(r.canvas_accuracy for r in last) > sum(r.canvas_accuracy for r in first)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path, dtype: str) -> None:
    whole = trainer(tmp_path / "whole", dtype=dtype)
    expected = list(whole.run())
    first = trainer(tmp_path / "parts", dtype=dtype)
    found = list(first.run(until=4))
    second = trainer(tmp_path / "parts", dtype=dtype)
    assert second.next_step == 4
    found += list(second.run())
    assert [(r.step, r.loss, r.gradient_norm) for r in found] == [(r.step, r.loss, r.gradient_norm) for r in expected]
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name]), name
        assert torch.equal(whole.averaged_weights()[name], second.averaged_weights()[name]), name


PROCESS = """
import os, signal, sys
from pathlib import Path
from tests.training.test_trainer import trainer, weights
import torch
run = trainer(Path(sys.argv[1]))
print(run.next_step)
for report in run.run():
    if report.step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
torch.save(weights(run), sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3])
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, step: int) -> None:
    def process(folder: str, killed_at: int) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-c",
            PROCESS,
            str(tmp_path / folder),
            str(killed_at),
            str(tmp_path / f"{folder}.pt"),
        ]
        return subprocess.run(command, capture_output=True, text=True)

    assert process("killed", step).returncode == -9
    again, whole = process("killed", -1), process("whole", -1)
    assert (again.stdout.strip(), whole.stdout.strip()) == (str((step + 1) // 2 * 2), "0"), again.stderr
    found, expected = (torch.load(tmp_path / f"{name}.pt") for name in ("killed", "whole"))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_full_disk_keeps_the_last_good_state(tmp_path, monkeypatch) -> None:
    trained = trainer(tmp_path)
    list(trained.run(until=2))
    before = (tmp_path / STATE_FILE).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device; the previous state is kept"):
        list(trained.run())
    assert (tmp_path / STATE_FILE).read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".partial"] == []


def test_a_broken_state_file_is_named(tmp_path) -> None:
    (tmp_path / STATE_FILE).write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=f"cannot read .*{STATE_FILE}.*remove it to start over"):
        trainer(tmp_path)


def test_a_loss_that_is_not_finite_stops_and_leaves_its_batch(tmp_path) -> None:
    trained = trainer(tmp_path)
    list(trained.run(until=2))
    with torch.no_grad():
        trained.optimizer.masters["decoder.norm"].fill_(float("nan"))
        trained.model.decoder.norm.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss of step 2 is not finite"):
        list(trained.run())
    failed = load_state(tmp_path / "failed")
    assert failed is not None and failed["step"] == 2
    assert [torch.equal(batch["xt"], counting(2).xt) for batch in failed["batches"]] == [True]
    state = load_state(tmp_path)
    assert state is not None and state["progress"]["next_step"] == 2


def test_a_gradient_that_is_not_finite_moves_nothing(tmp_path) -> None:
    trained = trainer(tmp_path, checkpoint_every=1)
    list(trained.run(until=2))
    before = {name: master.clone() for name, master in trained.optimizer.masters.items()}
    hook = trained.model.decoder.norm.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(TrainingError, match="the gradient of step 2 is not finite; its batch is in"):
        list(trained.run())
    hook.remove()
    assert all(torch.equal(master, before[name]) for name, master in trained.optimizer.masters.items())
    assert len(list(trainer(tmp_path).run())) == 4


def test_of_several_batches_all_are_left(tmp_path) -> None:
    trained = trainer(tmp_path, accumulate=2)
    trained.model.decoder.norm.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(TrainingError, match="the gradient of step 0 is not finite; its 2 batches are in"):
        list(trained.run())
    failed = load_state(tmp_path / "failed")
    assert failed is not None
    assert [torch.equal(batch["xt"], counting(i).xt) for i, batch in enumerate(failed["batches"])] == [True, True]


def test_compiling_without_a_compiler_is_refused_before_the_first_step(tmp_path, monkeypatch) -> None:
    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ConfigError, match=r"compile needs a C\+\+ compiler, .*; install g\+\+ or .*, or set"):
        trainer(tmp_path, compile=True)


def test_a_failed_batch_that_cannot_be_written_does_not_hide_the_failure(tmp_path) -> None:
    trained = trainer(tmp_path)
    (tmp_path / "failed").touch()
    with torch.no_grad():
        trained.model.decoder.norm.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss of step 0 is not finite; its batch is lost: cannot write"):
        list(trained.run())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"torch sees no CUDA device; set train\.device=cpu"):
        trainer(tmp_path, device="cuda")


def test_masters_are_not_rounded_to_what_the_passes_compute_in(tmp_path) -> None:
    model = tiny_model()
    before = model.decoder.embedding.detach().clone()
    trained = Trainer(model, counting, config(dtype="bfloat16"), tmp_path)
    assert torch.equal(trained.optimizer.masters["decoder.embedding"], before)
    assert not torch.equal(model.decoder.embedding.float(), before)


def test_metrics_are_a_line_a_report(tmp_path) -> None:
    reports = list(trainer(tmp_path, num_steps=5, log_every=2).run())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [report.step for report in reports] == [1, 3, 4]
    assert all(line["canvases_per_s"] > 0 and line["elapsed_s"] > 0 for line in lines)


def silent_half(step: int) -> Batch:
    """Every other batch has no target."""
    made = counting(step)
    return made if step % 2 == 0 else replace(made, targets=torch.full_like(made.targets, -100))


def test_a_report_is_the_mean_since_the_last_one_also_when_resumed(tmp_path) -> None:
    single = list(trainer(tmp_path / "single", silent_half).run())
    first = trainer(tmp_path / "pairs", silent_half, log_every=3, accumulate=1)
    found = list(first.run(until=3))
    running = trainer(tmp_path / "pairs", silent_half, log_every=3).run()
    found += list(running)
    assert [report.step for report in found] == [2, 5]
    for report, parts in zip(found, (single[:3], single[3:]), strict=True):
        for name in ("loss", "diffusion", "canvas_accuracy"):
            assert getattr(report, name) == pytest.approx(sum(getattr(r, name) for r in parts) / 3)
        causal = [r.encoder for r in parts if r.encoder is not None]
        assert 0 < len(causal) < 3 and report.encoder == pytest.approx(sum(causal) / len(causal))
    # Asked to stop between two reports, a run adds up what it did before and after.
    stopped = trainer(tmp_path / "stopped", silent_half, log_every=3, checkpoint_every=100)
    step = stopped._step
    stopped._step = lambda number: (stopped.ask_to_stop() if number == 1 else None, step(number))[1]  # type: ignore[method-assign]
    assert list(stopped.run()) == []
    (again, _) = trainer(tmp_path / "stopped", silent_half, log_every=3).run()
    assert (again.step, again.loss, again.encoder) == (2, found[0].loss, found[0].encoder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_passes_give_the_same_losses(tmp_path) -> None:
    plain = [r.loss for r in trainer(tmp_path / "plain", num_steps=2).run()]
    compiled = [r.loss for r in trainer(tmp_path / "compiled", num_steps=2, compile=True).run()]
    assert compiled == pytest.approx(plain, rel=1e-5)


class Carrying:
    """A source that remembers how often it was told of a step."""

    def __init__(self) -> None:
        self.total = torch.zeros(1)

    def __call__(self, step: int) -> Batch:
        return replace(counting(step), belief=self.total * torch.ones(8, CANVAS, 16))

    def observe(self, step, batch, hidden, model) -> None:
        assert hidden.shape == (8 * CANVAS, 16) and not hidden.requires_grad
        self.total = self.total + hidden.abs().mean()

    def state(self) -> dict[str, torch.Tensor]:
        return {"total": self.total}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.total = state["total"]


@pytest.mark.slow
def test_what_a_source_carries_is_resumed_too(tmp_path) -> None:
    expected = [r.loss for r in trainer(tmp_path / "whole", Carrying()).run()]
    found = [r.loss for r in trainer(tmp_path / "parts", Carrying()).run(until=4)]
    found += [r.loss for r in trainer(tmp_path / "parts", Carrying()).run()]
    assert found == expected


@pytest.mark.slow
def test_accumulated_batches_equal_one_large_batch(tmp_path) -> None:
    def halves(number: int) -> Batch:
        whole, part = counting(number // 2), slice(4 * (number % 2), 4 * (number % 2) + 4)
        return replace(
            whole, ids=whole.ids[part], targets=whole.targets[part], examples=torch.arange(4), x0=whole.x0[part],
            starts=whole.starts[part], xt=whole.xt[part], self_conditioned=torch.arange(2),
        )  # fmt: skip

    def large(step: int) -> Batch:
        return replace(counting(step), self_conditioned=torch.tensor([0, 1, 4, 5]))

    expected, found = trainer(tmp_path / "large", large), trainer(tmp_path / "halves", halves, accumulate=2)
    list(expected.run())
    list(found.run())
    for name, value in weights(expected).items():
        torch.testing.assert_close(weights(found)[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_validation_is_by_the_averaged_weights_and_leaves_no_trace(tmp_path) -> None:
    plain = trainer(tmp_path / "plain")
    list(plain.run())
    held = [counting(1000), counting(1001)]
    looked = Trainer(tiny_model(), counting, config(validate_every=2), tmp_path / "looked", held)
    reports = list(looked.run())
    assert all(torch.equal(value, weights(looked)[name]) for name, value in weights(plain).items())
    assert [r.validation_diffusion is None for r in reports] == [True, False, False, False, False, False]
    with looked.optimizer.averaged():
        losses = [batch_losses(looked.model, batch) for batch in held]
    assert reports[-1].validation_diffusion == pytest.approx(sum(float(x.diffusion) for x in losses) / 2, rel=1e-6)
    assert looked.validate()[1] == pytest.approx(sum(float(x.encoder) for x in losses) / 2, rel=1e-6)


@pytest.mark.slow
def test_a_loss_that_stops_falling_stops_the_run_also_when_resumed(tmp_path, monkeypatch) -> None:
    falling = iter([(3.0, 0.0), (2.0, 0.0), (2.5, 0.0), (2.1, 0.0), (1.0, 0.0)])
    monkeypatch.setattr(Trainer, "validate", lambda self: next(falling))

    def start() -> Trainer:
        return Trainer(tiny_model(), counting, config(20, validate_every=2, patience=2), tmp_path, [counting(0)])

    first = start()
    assert len(list(first.run(until=6))) == 6 and not first.is_done
    second = start()
    assert [report.step for report in second.run()] == [6, 7] and second.is_done and second.next_step == 8
    assert start().is_done and list(start().run()) == []


def test_patience_keeps_the_weights_of_the_lowest_loss(tmp_path, monkeypatch) -> None:
    falling = iter([(3.0, 0.0), (2.0, 0.0), (2.5, 0.0), (2.1, 0.0)])
    seen: list[torch.Tensor] = []

    def look(self: Trainer) -> tuple[float, float]:
        seen.append(self.optimizer.average["decoder.norm"].clone())
        return next(falling)

    monkeypatch.setattr(Trainer, "validate", look)
    held = [counting(0)]
    trained = Trainer(tiny_model(), counting, config(20, validate_every=2, patience=2), tmp_path, held)
    list(trained.run())
    again = Trainer(tiny_model(), counting, config(20, validate_every=2, patience=2), tmp_path, held)
    for one in (trained, again):
        assert torch.equal(one.averaged_weights()["decoder.norm"], seen[1]) and not torch.equal(seen[1], seen[3])
    with pytest.raises(ConfigError, match="patience is 2, but there is nothing to validate on"):
        Trainer(tiny_model(), counting, config(20, validate_every=2, patience=2), tmp_path / "none")
    with pytest.raises(ConfigError, match="validate_every is 2, but there is nothing to validate on"):
        Trainer(tiny_model(), counting, config(20, validate_every=2), tmp_path / "none")
    with pytest.raises(ConfigError, match="patience counts validations"):
        config(20, patience=2)


def test_a_run_that_is_asked_to_stop_ends_after_its_step_and_goes_on_later(tmp_path) -> None:
    whole = trainer(tmp_path / "whole")
    list(whole.run())
    stopped = trainer(tmp_path / "parts", checkpoint_every=100)
    for report in stopped.run():
        if report.step == 2:
            stopped.ask_to_stop()
    assert stopped.next_step == 3 and not stopped.is_done
    again = trainer(tmp_path / "parts", checkpoint_every=100)
    assert again.next_step == 3
    list(again.run())
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())


def test_figures_that_cannot_be_written_stop_the_run(tmp_path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(TrainingError, match=r"cannot write .*metrics.jsonl"):
        list(trainer(tmp_path).run())
