"""Putting a server under load: what is counted, and how it is told."""

import asyncio
import json
import socket
from functools import partial

import pytest

from presswork.cli import app as cli
from presswork.errors import DataError
from presswork.server.load import Result, read_prompts, run_load, summary


def test_loops_ask_so_many_times_and_count(served):
    for rate in (None, 200.0):
        done: list[int] = []
        results, wall_s = asyncio.run(
            run_load(
                served.url, read_prompts(None), {"max_tokens": 8}, num=12, concurrency=4, rate=rate, seed=0,
                on_done=partial(done.append, 1),
            )
        )  # fmt: skip
        report = summary(results, wall_s)
        assert report["num_ok"] == len(done) == 12 and report["errors"] == {}
        assert report["tokens_per_s"] == pytest.approx(sum(one.num_tokens for one in results) / wall_s)
        assert 0 < report["first_text_s"]["p50"] <= report["latency_s"]["p50"] <= report["latency_s"]["p99"]
        assert 1 <= report["steps_per_canvas"] <= 4


def test_failures_are_counted_by_their_reason(served):
    results, wall_s = asyncio.run(
        run_load(served.url, read_prompts(None), {"max_tokens": 0}, num=3, concurrency=2, rate=None, seed=0)
    )
    (error,) = summary(results, wall_s)["errors"].items()
    assert "max_tokens" in error[0] and error[1] == 3
    gone, _ = asyncio.run(
        run_load("http://127.0.0.1:9", read_prompts(None), {}, num=1, concurrency=1, rate=None, seed=0)
    )
    assert gone[0].error and "ConnectError" in gone[0].error


def test_percentiles_by_hand():
    results = [
        Result(latency_s=float(i), first_text_s=i / 2, num_tokens=10, num_canvases=1, num_steps=4) for i in range(100)
    ]
    report = summary([*results, Result(error="x")], 10.0)
    assert report["num_ok"] == 100 and report["errors"] == {"x": 1} and report["tokens_per_s"] == 100.0
    assert report["latency_s"] == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "mean": 49.5, "max": 99.0}
    assert report["request_steps_per_canvas"] == {"p50": 4.0, "p90": 4.0, "p99": 4.0, "mean": 4.0, "max": 4.0}
    # Of the 99 that took any time, ten tokens in 1 to 99 seconds.
    assert (
        report["request_tokens_per_s"]["p50"] == pytest.approx(10 / 50) and report["request_tokens_per_s"]["max"] == 10
    )
    assert summary([], 1.0)["latency_s"] is None


def test_prompts_come_from_files():
    assert read_prompts(("a.txt", "one\n\ntwo\n")) == [[{"role": "user", "content": t}] for t in ("one", "two")]
    lines = '{"prompt": "one"}\n{"messages": [{"role": "user", "content": "two"}]}\n'
    assert [one[0]["content"] for one in read_prompts(("a.jsonl", lines))] == ["one", "two"]
    for name, text, message in (
        ("a.txt", "", "holds no prompt"),
        ("a.jsonl", "{", "line 1"),
        ("a.jsonl", "[]", "line 1"),
    ):
        with pytest.raises(DataError, match=message):
            read_prompts((name, text))


def test_the_verb_reports_and_draws(capsys, served, tmp_path):
    ask = ["bench", "serve", served.url, "--num", "6", "--concurrency", "2", "--max-tokens", "6"]
    with pytest.raises(SystemExit) as stop:
        cli([*ask, "--json", "--plot", str(tmp_path / "load.svg")])
    report = json.loads(capsys.readouterr().out)
    assert not stop.value.code and report["num_ok"] == 6 and report["loop"] == "closed"
    assert (tmp_path / "load.svg").read_text().startswith("<?xml")
    with pytest.raises(SystemExit) as stop:
        cli([*ask, "--rate", "100"])
    out, err = capsys.readouterr()
    assert not stop.value.code and "delivered tokens/s" in out and "6 of 6 requests answered" in err


def test_a_server_that_does_not_answer_is_a_failure(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SystemExit) as stop:
            cli(["bench", "serve", url, "--num", "2"])
    assert stop.value.code == 1 and "0 of 2 requests answered" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        cli(["bench", "serve", "nonsense"])
    assert stop.value.code == 2 and "must begin with http:// or https://" in capsys.readouterr().err
