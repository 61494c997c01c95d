"""Batches: one answer a line, whatever breaks, and going on where a run stopped."""

import asyncio
import json
import math
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from presswork.cli import app as cli
from presswork.engine.engine import EngineConfig
from presswork.engine.loader import load
from presswork.errors import DataError
from presswork.server.app import create_app
from presswork.server.batch import answered, read_batch, run_batch
from presswork.server.config import ServerConfig
from presswork.text.lock import kept_from_others
from tests.server.conftest import write_adapter

CHAT = "/v1/chat/completions"


def line(custom_id: str, **changes) -> str:
    body = {"messages": [{"role": "user", "content": f"def {custom_id}"}], "max_tokens": 6}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **changes}) + "\n"


def run(folder, lines, out, *, on_done=lambda is_good: None, concurrency=4):
    async def whole():
        served = create_app(ServerConfig(models={"tiny": str(folder)}, engine=EngineConfig(constraint_folder=None)))
        async with served.router.lifespan_context(served):
            await run_batch(served, lines, out, concurrency=concurrency, on_done=on_done)

    asyncio.run(whole())


def read(out) -> dict[str, dict]:
    answers = [json.loads(one) for one in out.read_text().splitlines()]
    assert len({one["custom_id"] for one in answers}) == len(answers)
    return {one["custom_id"]: one for one in answers}


def test_every_request_gets_one_line_also_those_that_fail(folder, tmp_path):
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    bad = {"messages": [], "max_tokens": 6}
    file.write_text(
        "".join(line(f"r{i}") for i in range(6)) + line("bad", body=bad) + "\n"
        + line("plain", url="/v1/completions", body={"prompt": "def", "max_tokens": 4})
        + line("claude", url="/v1/messages", body={"messages": [{"role": "user", "content": "x"}], "max_tokens": 4})
        + line("items", url="/v1/responses", body={"input": "x", "max_output_tokens": 4})
    )  # fmt: skip
    marks: list[bool] = []
    run(folder, read_batch(file), out, on_done=marks.append)
    answers = read(out)
    assert len(answers) == 10 and marks.count(False) == 1
    assert answers["r3"]["response"]["body"]["object"] == "chat.completion" and answers["r3"]["error"] is None
    assert answers["bad"]["response"]["status_code"] == 400 and "messages" in answers["bad"]["error"]["message"]
    assert answers["plain"]["response"]["body"]["object"] == "text_completion"
    assert answers["claude"]["response"]["body"]["type"] == "message"
    assert answers["items"]["response"]["body"]["object"] == "response"


def test_halves_of_characters_and_huge_numbers_are_answered_too(folder, tmp_path):
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    huge = line("huge", url="/v1/completions", body={"prompt": "a", "max_tokens": 2, "temperature": 0.5})
    file.write_text(
        line("\ud800", url="/v1/completions", body={"prompt": "def", "max_tokens": 2})
        + line("half", url="/v1/completions", body={"prompt": "\ud800", "max_tokens": 2}) + huge.replace("0.5", "1e999")
    )  # fmt: skip
    run(folder, read_batch(file), out)
    answers = read(out)
    assert {name: one["response"]["status_code"] for name, one in answers.items()} == {
        "\ud800": 200, "half": 400, "huge": 400,
    }  # fmt: skip
    assert set(answered(out)) == set(answers)


def test_a_run_goes_on_behind_the_last_whole_line(folder, tmp_path):
    out = tmp_path / "out.jsonl"
    done = json.dumps({"id": "batch_req_1", "custom_id": "r0", "response": {"status_code": 200}})
    out.write_text(done + '\n{"id": "batch_req_2", "custom_id": "r1", "resp')
    assert answered(out) == {"r0"} and out.read_text() == done + "\n"
    out.write_text(done)  # whole, but for the line's end
    assert answered(out) == {"r0"} and out.read_text() == done + "\n"
    assert answered(tmp_path / "none.jsonl") == set()
    for text in ("hello\n", line("a"), '{"notes": ["one", "two"]}', line("a").rstrip()):
        out.write_text(text)
        with pytest.raises(DataError, match="an answer of a batch; give another file"):
            answered(out)
        assert out.read_text() == text


def test_what_failed_for_the_servers_reasons_is_asked_again(tmp_path):
    out = tmp_path / "out.jsonl"
    answers = {"a": 200, "b": 400, "c": 429, "d": 503, "e": 500}
    out.write_text(
        "".join(json.dumps({"custom_id": n, "response": {"status_code": s}}) + "\n" for n, s in answers.items())
    )
    assert answered(out) == {"a", "b"} and list(read(out)) == ["a", "b"]
    # Where putting it in place broke off, the next run does it.
    whole = out.read_bytes()
    (tmp_path / "out.jsonl.kept").write_bytes(whole)
    out.write_bytes(whole[:20] + b"x" * 500)
    assert answered(out) == {"a", "b"} and out.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


def test_two_runs_do_not_write_to_one_file(tmp_path):
    held = kept_from_others(tmp_path / "out")
    with kept_from_others(tmp_path / "out"), pytest.raises(DataError, match="another run holds"):
        held.__enter__()


def test_answers_that_cannot_be_written_stop_the_run(folder, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text(line("a") + line("b"))
    with pytest.raises(DataError, match="run again to go on"):
        run(folder, read_batch(file), Path("/dev/full"), concurrency=1)
    with pytest.raises(DataError, match="give another file"):
        run(folder, read_batch(file), tmp_path / "none" / "out.jsonl")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "holds no request"),
        ("{\n", "line 1: not JSON"),
        (line("a", body={"temperature": math.nan}), "line 1: not JSON .NaN is no JSON value"),
        ("[" * 100_000 + "\n", "line 1: not JSON"),
        (line("a") + line("a"), "line 2: custom_id 'a' is said twice"),
        (line("a", method="GET"), "method must be POST"),
        (line("a", url="/v1/embeddings"), "url one of"),
        (line("a", body=[]), "expected an object with custom_id"),
        (line("a", body={"stream": True}), "a batch has no streams"),
    ],
)
def test_a_malformed_batch_is_refused_before_any_work(tmp_path, text, message):
    file = tmp_path / "in.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_batch(file)


def test_bodies_as_deep_as_can_be_read_are_answered(folder, tmp_path):
    file, out, limit = tmp_path / "in.jsonl", tmp_path / "out.jsonl", sys.getrecursionlimit()
    good: list[str] = []
    for depth in range(limit - 120, limit, 5):
        deep = line(f"d{depth}", body={"deep": 0}).replace('"deep": 0', f'"deep": {"[" * depth + "]" * depth}')
        file.write_text(deep)
        with suppress(DataError):
            read_batch(file)
            good.append(deep)
    file.write_text("".join(good))
    run(folder, read_batch(file), out)
    assert len(read(out)) == len(good) > 0


def test_the_verb_asks_only_what_is_not_answered(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text(line("a") + line("b") + line("c"))
    for asked in (3, 0):
        with pytest.raises(SystemExit) as stop:
            cli(["batch", str(file), str(out), "--model", f"tiny={folder}", "--json"])
        assert not stop.value.code
        assert json.loads(capsys.readouterr().out) == {"num": 3, "asked": asked, "failed": 0}
    assert set(read(out)) == {"a", "b", "c"}


def test_what_cannot_be_asked_or_answered_is_told_before_any_work(capsys, folder, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text(line("a"))
    for flags, code, message in (
        (["--model", "nothere"], 3, "nothere"),
        (["--model", f"tiny={folder}", "--adapter", f"x={tmp_path}"], 4, "no adapter in"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli(["batch", str(file), str(tmp_path / "out.jsonl"), *flags])
        told = capsys.readouterr().err
        assert stop.value.code == code and message in told and told.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        cli(["batch", str(file), os.devnull, "--model", f"tiny={folder}"])
    assert stop.value.code == 2 and "cannot hold answers" in capsys.readouterr().err


def test_a_batch_may_name_adapters(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    adapter = write_adapter(folder, tmp_path / "adapter", 1)
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    body = {"messages": [{"role": "user", "content": "def a"}], "max_tokens": 12, "seed": 3}
    file.write_text("".join(line(name, body={**body, "model": name}) for name in ("tiny", "tiny:own", "tiny:none")))
    with pytest.raises(SystemExit):
        cli(["batch", str(file), str(out), "--model", f"tiny={folder}", "--adapter", f"own={adapter}", "--json"])
    told = {name: one["response"] for name, one in read(out).items()}
    assert [told[name]["status_code"] for name in ("tiny", "tiny:own", "tiny:none")] == [200, 200, 404]
    texts = [told[name]["body"]["choices"][0]["message"]["content"] for name in ("tiny", "tiny:own")]
    engine = load(folder)
    engine.load_adapter("own", adapter)
    expected = [engine.chat(body["messages"], max_tokens=12, seed=3, adapter=name).text for name in (None, "own")]
    assert texts == expected and texts[0] != texts[1]
