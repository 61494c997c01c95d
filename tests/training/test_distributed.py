"""Several processes train as one does: the same losses and weights, whatever is sharded and whoever resumes."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from presswork.errors import CheckpointError, ConfigError, DataError
from presswork.settings import Launch
from presswork.testing import tiny_model
from presswork.training.checkpoint import PART_FOLDERS, STATE_FILE, load_state
from presswork.training.distributed import Ranks, joined
from presswork.training.loss import Batch, Losses, Whole, batch_losses
from presswork.training.metrics import read_metrics
from presswork.training.recipe import load_recipe
from presswork.training.run import export, open_run
from presswork.training.shares import share_of
from presswork.training.trainer import Trainer
from presswork.weights.load import load_model
from tests.training.distributed_jobs import (
    CASES,
    RESUMED,
    Case,
    adapted,
    enter,
    figures,
    many_experts,
    tensors,
    uneven,
    with_drafts,
)
from tests.training.test_trainer import Carrying, config, counting

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 240


def start(num: int, job: str, folder: Path) -> list[BaseProcess]:
    """Processes that do a job; they are forked from one that has imported everything."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.distributed_jobs", "presswork.training.sharded_state"])
    places = [Launch(rank=rank, local_rank=rank, num_ranks=num) for rank in range(num)]
    processes = [context.Process(target=enter, args=(job, folder, place, port)) for place in places]
    for process in processes:
        process.start()
    return processes


def wait(processes: list[BaseProcess], folder: Path) -> list[tuple[int | None, str]]:
    """Exit code of each process and what it said."""
    try:
        for process in processes:
            process.join(TIMEOUT_S)
    finally:
        for process in processes:
            process.kill()
    said = [(folder / f"said-{rank}").read_text() for rank in range(len(processes))]
    return [(process.exitcode, text) for process, text in zip(processes, said, strict=True)]


def assert_same(found: dict[str, Any], expected: dict[str, Any], first: int = 0) -> None:
    """Losses to 1e-5, gradient norms to 1e-4, weights to 5e-5 after steps of up to 3e-3 an entry."""
    later = expected["reports"][first:]
    torch.testing.assert_close(found["reports"][:, 1:], later[:, 1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["reports"][:, 0], later[:, 0], rtol=1e-4, atol=0)
    for kind in ("weights", "average"):
        assert found[kind].keys() == expected[kind].keys()
        for name, value in expected[kind].items():
            torch.testing.assert_close(found[kind][name], value, rtol=0, atol=5e-5)


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same tensors to the bit."""
    for kind in ("masters", "average", "momenta", "exp_avg", "exp_avg_sq"):
        assert found[kind].keys() == expected[kind].keys()
        assert all(torch.equal(found[kind][name], value) for name, value in expected[kind].items()), kind


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run that is resumed, uninterrupted and on one process."""
    return figures(RESUMED.open(tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes and one left of their jobs."""
    folder = tmp_path_factory.mktemp("two")
    list(RESUMED.open(folder / "by one").run(until=3))
    outcomes = wait(start(2, "two", folder), folder)
    assert outcomes == [(1, ""), (1, "the second process has had enough\n")]
    return folder


# Muon rounds to bfloat16, where the last bit of a momentum may move an entry by 1/256 of itself.
ROUNDED = {"muon": 1e-3, "bfloat16": 2e-2}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one_does(folder: Path, tmp_path: Path, name: str) -> None:
    found, expected = torch.load(folder / f"{name}.pt"), figures(CASES[name].open(tmp_path))
    if name in ROUNDED:
        torch.testing.assert_close(found["reports"][:, 1:4], expected["reports"][:, 1:4], rtol=ROUNDED[name], atol=0)
    else:
        assert_same(found, expected)
    num = sum(tensor.numel() for tensor in expected["average"].values())
    assert sum(found["held"]) == num and max(found["held"]) < 0.6 * num


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_on_two(folder: Path, whole: dict[str, Any]) -> None:
    found = torch.load(folder / "by one, on 2.pt")
    assert found["first"] == 3
    assert_same(found, whole, 3)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_on_one(folder: Path, tmp_path: Path, whole: dict[str, Any]) -> None:
    shutil.copytree(folder / "by two", tmp_path, dirs_exist_ok=True)
    trainer = RESUMED.open(tmp_path)
    assert trainer.next_step == 3
    assert_equal(tensors(trainer), torch.load(folder / "by two.begun.pt"))
    assert_same(figures(trainer), whole, 3)
    assert not any((tmp_path / name).exists() for name in PART_FOLDERS)
    assert RESUMED.open(tmp_path).is_done


@pytest.mark.slow
def test_momenta_of_muon_are_saved_and_read_too(folder: Path) -> None:
    found = torch.load(folder / "muon's state.pt")
    assert found["momenta"] and any(bool(momentum.any()) for momentum in found["momenta"].values())
    assert_equal(tensors(CASES["muon"].open(folder / "muon")), found)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_on_four_where_experts_have_copies(
    folder: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    assert wait(start(4, "four", folder), folder) == [(0, "")] * 4
    found = torch.load(folder / "by two, on 4.pt")
    assert found["first"] == 3
    assert_same(found, whole, 3)
    expected = figures(Case(many_experts, changes={"num_steps": 2}).open(tmp_path / "one"))
    assert_same(torch.load(folder / "copies.pt"), expected)
    with pytest.raises(CheckpointError, match=r"cannot read .*parts-.*remove training_state.pt to start over"):
        shutil.copy(folder / "copies" / STATE_FILE, tmp_path)
        Case(many_experts, changes={"num_steps": 2}).open(tmp_path)


@pytest.mark.slow
def test_a_full_disk_of_one_process_keeps_the_last_good_state_of_all(folder: Path) -> None:
    error = torch.load(folder / "by two.begun.pt")["error"]
    assert "process 1: [Errno 28] No space left on device; the previous state is kept" in error
    assert sum((folder / "by two" / name).exists() for name in PART_FOLDERS) == 1


@pytest.mark.slow
def test_all_processes_stop_after_the_same_step(folder: Path) -> None:
    assert torch.load(folder / "stopped.pt") == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_not_finite_on_one_process_stops_all_and_moves_nothing(folder: Path, rank: int) -> None:
    said = (folder / "failing" / f"stopped-{rank}").read_text()
    assert said.startswith("the loss of step 0 is not finite; its batch is in") and said.endswith("moved []")


def everything() -> Batch:
    """A batch with all that a batch may have."""
    return with_drafts(replace(uneven(3), self_conditioned=torch.tensor([1, 2, 5])), torch.tensor([1, 5]))


def test_a_share_has_its_examples_and_all_that_belongs_to_them() -> None:
    batch = everything()
    shares = [share_of(batch, i, 3) for i in range(3)]
    assert [share.ids.shape[0] for share in shares] == [2, 2, 3]
    assert [share.examples.tolist() for share in shares] == [[0, 0, 1], [0, 0, 0], []]
    assert [share.self_conditioned.tolist() for share in shares] == [[1, 2], [2], []]
    for name in ("ids", "targets", "origins", "starts", "x0", "xt", "belief", "canvas_origins"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(batch, name)), name
    found = [share.drafts for share in shares if share.drafts is not None]
    assert [drafts.canvases.tolist() for drafts in found] == [[1], [2], []]
    for name in ("uniform", "noise", "bounds"):
        assert torch.equal(torch.cat([getattr(drafts, name) for drafts in found]), getattr(batch.drafts, name)), name
    plain = share_of(replace(batch, belief=None, drafts=None, origins=None, canvas_origins=None), 1, 2)
    assert plain.belief is plain.drafts is plain.origins is plain.canvas_origins is None


def test_losses_and_gradients_of_shares_add_up_to_those_of_the_batch() -> None:
    model, batch = many_experts().requires_grad_(True), everything()

    def gradients(share: Batch, whole: Whole) -> tuple[Losses, list[torch.Tensor]]:
        losses = batch_losses(model, share, whole=whole)
        found = torch.autograd.grad(losses.total, list(model.parameters()), allow_unused=True, materialize_grads=True)
        return losses, list(found)

    expected, expected_gradients = gradients(batch, Whole.of(batch))
    parts = [gradients(share_of(batch, i, 3), Whole.of(batch)) for i in range(3)]
    for name in ("total", "diffusion", "encoder", "canvas_accuracy"):
        found = sum(float(getattr(losses, name).detach()) for losses, _ in parts)
        assert found == pytest.approx(float(getattr(expected, name).detach()), rel=1e-5)
    for i, gradient in enumerate(expected_gradients):
        found = torch.stack([part[i] for _, part in parts]).sum(0)
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-5)


TWO = Ranks(num=2)


@pytest.mark.parametrize(
    ("source", "changes", "ranks", "kind", "message"),
    [
        (counting, {"expert_parallel": 3}, Ranks(num=3), ConfigError, "must divide the number of processes, 3, and of"),
        (counting, {"expert_parallel": 2}, Ranks(), ConfigError, "expert_parallel is 2; it must divide the number of"),
        (counting, {"compile": True}, TWO, ConfigError, "compile works in one process, got 2; set train.compile=false"),
        (Carrying(), {}, TWO, ConfigError, "Carrying carries canvases from step to step, which works in one process"),
        (counting, {}, Ranks(num=9), DataError, "a batch has 8 examples, fewer than the 9 processes that share it"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_before_they_start(
    tmp_path: Path, source, changes, ranks: Ranks, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        Trainer(tiny_model(), source, config(**changes), tmp_path, ranks=ranks)


def test_an_adapter_is_not_trained_on_parts_of_experts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an adapter is trained with whole experts: expert_parallel must be 1, got 2"):
        Trainer(adapted(), counting, config(expert_parallel=2), tmp_path, ranks=TWO)


RECIPE = str(Path(__file__).with_name("recipe_for_tests.py"))


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    return subprocess.Popen(
        [*command, "presswork", "train", RECIPE, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_torchrun_trains_evaluates_and_exports_what_one_process_does(tmp_path: Path) -> None:
    process = torchrun(
        "--out", str(tmp_path / "two"), "--set", "train.expert_parallel=2", "--set", "evaluate_every=4", "--json"
    )
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert err.count("step 4 of 4: canvas ") == 1 and err.count(" on 2 processes") == 1 and "length " in err
    assert json.loads(out)["last"]["step"] == 3
    recipe = replace(load_recipe(RECIPE), evaluate_every=4)
    trainer = open_run(recipe, tmp_path / "one")
    list(trainer.run())
    expected = load_model(export(trainer, recipe)).state_dict()
    found = load_model(tmp_path / "two" / "model").state_dict()
    for name, value in expected.items():
        # One bfloat16 step of the largest entries.
        torch.testing.assert_close(found[name].float(), value.float(), rtol=2**-7, atol=1e-5)
    figures = [read_metrics(tmp_path / name) for name in ("one", "two")]
    assert [[line["step"] for line in lines] for lines in figures] == [[0, 1, 2, 3]] * 2
    assert [line["loss"] for line in figures[1]] == pytest.approx([line["loss"] for line in figures[0]], rel=1e-5)


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_after_one_step_with_their_state_saved(tmp_path: Path) -> None:
    processes = start(2, "train", tmp_path)
    while len(read_metrics(tmp_path)) < 2:
        time.sleep(0.1)
        assert all(process.is_alive() for process in processes)
    # Once by the terminal, once by torchrun, which hands on what it got.
    for _ in range(2):
        for process in processes:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGINT)
    (first_code, first), (second_code, second) = wait(processes, tmp_path)
    assert (first_code, second_code, second) == (130, 130, "")
    assert first.count("stopping after this step") == 1 and first.count("presswork: stopped after step") <= 1
    state = load_state(tmp_path)
    assert state is not None and state["progress"]["next_step"] >= 2 and (tmp_path / state["parts"]).is_dir()
    assert f"stopped after step {state['progress']['next_step']}; run the same command" in first


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"LOCAL_RANK": "1"}, None),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, Launch(rank=3, local_rank=1, num_ranks=4)),
    ],
)
def test_the_place_among_torchruns_processes_is_read(given: dict[str, str], expected: Launch | None) -> None:
    assert Launch.from_env(given) == expected


@pytest.mark.parametrize("given", [{"RANK": "x"}, {"LOCAL_RANK": ""}, {"RANK": "4"}])
def test_a_place_that_cannot_be_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        Launch.from_env({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", **given})


def test_one_process_meets_nobody() -> None:
    with joined(Launch(rank=0, local_rank=0, num_ranks=1)) as ranks:
        assert ranks.num == 1 and ranks.is_first and ranks.any(True) and not ranks.any(False)
