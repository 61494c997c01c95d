"""Every verb answers, and every mistake is one line and a proper exit code."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from presswork.cli import app
from presswork.cli.sudoku import EXAMPLE
from presswork.tasks.sudoku.encoding import read_puzzle
from presswork.tasks.sudoku.generate import solve
from presswork.testing import tiny_model
from presswork.weights.save import save_model


@pytest.fixture(scope="session")
def bare_folder(tmp_path_factory) -> Path:
    """A loadable model without tokenizer or template."""
    folder = tmp_path_factory.mktemp("models") / "bare"
    save_model(tiny_model().to(torch.bfloat16), folder)
    return folder


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        app(list(arguments))
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_run_solves_the_example(capsys):
    code, out, err = run(capsys, "run")
    assert code == 0
    solution = solve(read_puzzle(EXAMPLE))
    assert solution is not None
    assert read_puzzle(out).tolist() == solution.tolist()
    assert "denoise steps" in err and "tokens/s" in err


def test_run_prints_json(capsys):
    code, out, _ = run(capsys, "run", EXAMPLE, "--json", "--seed", "3", "--max-tokens", "20", "--logprobs", "1")
    reply = json.loads(out)
    assert code == 0 and len(reply["token_ids"]) == 20 == len(reply["logprobs"])
    assert reply["finish_reason"] == "length" and reply["usage"]["prompt_tokens"] == 92


def test_run_reads_stdin_and_files(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", io.StringIO(EXAMPLE))
    _, piped, _ = run(capsys, "run", "-")
    source = tmp_path / "puzzle.txt"
    source.write_text(EXAMPLE)
    _, filed, _ = run(capsys, "run", "--file", str(source))
    assert piped == filed and len(piped.split()) == 9


def test_run_in_ar_mode_and_without_early_stop(capsys):
    code, _, err = run(capsys, "run", EXAMPLE, "--mode", "ar", "--temperature", "0")
    assert code == 0 and "denoise" not in err
    code, _, err = run(capsys, "run", EXAMPLE, "--no-early-stop", "--max-denoising-steps", "7")
    assert code == 0 and "7 denoise steps" in err


def test_watch_draws_every_step_and_leaves_the_text():
    from presswork.cli.watch import watch_canvas
    from presswork.engine.loader import load

    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system="truecolor")
    reply = watch_canvas(load("sudoku"), EXAMPLE, console=console, max_denoising_steps=5)
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "step 1/5" in drawn and reply.text.splitlines()[-1] in drawn


def test_chat_keeps_going_after_a_bad_turn(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"hello\n/seed x\n/seed 4\n{EXAMPLE}\n/reset\n/exit\n"))
    code, out, err = run(capsys, "chat", "--max-denoising-steps", "2")
    assert code == 0 and len(out.split()) >= 1
    assert "refused by the chat template" in err and "/seed takes a whole number" in err


def test_list_and_show(capsys):
    assert any(m["name"] == "sudoku" for m in json.loads(run(capsys, "list", "--json")[1]))
    facts = json.loads(run(capsys, "show", "sudoku", "--json")[1])
    assert 1_000_000 < facts["parameters"] < 3_000_000 and facts["active_per_token"] < facts["parameters"]
    assert "canvas length" in run(capsys, "show", "sudoku")[1]


def test_doctor_plans_before_loading_and_measures(capsys, bare_folder):
    report = json.loads(run(capsys, "doctor", str(bare_folder), "--json", "--tokens", "8")[1])
    assert report["memory"]["fits"] and report["hardware"]["cores"] >= 1
    assert report["speed"]["ms_per_denoise_step"] > 0 and report["speed"]["ms_per_ar_token"] > 0
    assert "speed" not in json.loads(run(capsys, "doctor", str(bare_folder), "--json", "--no-measure")[1])


def test_bench_times_both_modes(capsys, bare_folder):
    arguments = ("bench", str(bare_folder), "--runs", "1", "--max-tokens", "8", "--steps", "2", "--json")
    report = json.loads(run(capsys, *arguments)[1])
    assert report["diffusion"]["steps_per_canvas"] == 2 and report["ar"]["tokens_per_s"] > 0


def test_eval_counts_puzzles(capsys, tmp_path):
    code, out, _ = run(capsys, "eval", "sudoku", "--num", "3", "--clues", "50-55", "--seed", "5", "--json")
    report = json.loads(out)
    assert code == 0 and report["num"] == 3
    assert {"solved", "cells", "mean_steps", "tokens_per_s"} <= report.keys() & report["ar"].keys()
    listed = tmp_path / "list.txt"
    listed.write_text(EXAMPLE.replace(" ", "") + "\n")
    assert json.loads(run(capsys, "eval", "sudoku", "--puzzles", str(listed), "--no-ar", "--json")[1])["num"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run", "--bad"), 2, "No such option"),
        (("nothing",), 2, "No such command"),
        (("run", "x", "--max-tokens", "many"), 2, "--max-tokens"),
        (("run", EXAMPLE, "--top-p", "3"), 2, "top_p must be a number in (0, 1], got 3.0"),
        (("run", "hello"), 2, "refused by the chat template"),
        (("run", "x", "--file", "y"), 2, "not both"),
        (("run", "--file", "nowhere.txt"), 2, "cannot read the prompt"),
        (("run", "x", "--model", "sudokku"), 3, "sudoku"),
        (("show", "no/such-model"), 3, "presswork pull"),
        (("eval", "sudoku", "--clues", "9-99"), 2, "17-81"),
        (("run", "x", "--device", "quantum"), 2, "quantum"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, code, message):
    found, out, err = run(capsys, *arguments)
    assert found == code and message in err and out == ""
    assert err.count("\n") == 1 and err.startswith("presswork: ")


def test_a_bad_checkpoint_and_a_missing_tokenizer(capsys, bare_folder, tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert run(capsys, "run", "x", "--model", str(tmp_path))[0] in (3, 4)
    code, _, err = run(capsys, "run", "x", "--model", str(bare_folder))
    assert code == 2 and "no tokenizer" in err


def test_ctrl_c_is_quiet(capsys, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("presswork.cli.run.open_engine", interrupt)
    assert run(capsys, "run", "x") == (130, "", "presswork: interrupted\n")


@pytest.mark.slow
def test_a_closed_pipe_is_quiet():
    command = f"{sys.executable} -m presswork list --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


def test_version_and_help(capsys):
    assert run(capsys, "--version")[1].startswith("presswork 0.")
    for verb in ("run", "chat", "show", "list", "pull", "bench", "doctor", "eval"):
        assert run(capsys, verb, "--help")[0] == 0
