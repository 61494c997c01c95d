"""What real clients sent to `presswork serve`, recorded on the way, is answered as their code reads it.

`recorded/*.json` name the clients.
"""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from presswork.engine.engine import EngineConfig
from presswork.server.config import ServerConfig
from tests.server.conftest import serving

FOLDER = Path(__file__).parent / "recorded"
RECORDED = [
    (client, number, request)
    for client in ("llama_vim", "continue")
    for number, request in enumerate(json.loads((FOLDER / f"{client}.json").read_text())["requests"])
]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """The model that the clients were recorded with."""
    engine = EngineConfig(constraint_folder=tmp_path_factory.mktemp("constraints"))
    with serving(ServerConfig(models={"code": "code"}, engine=engine)) as served:
        yield served.url


def answer(url: str, request: dict[str, Any]) -> tuple[str, float]:
    """(body of the answer, seconds). httpx would not send an empty key as curl does."""
    body = request["body"] and json.dumps(request["body"]).encode()
    sent = urllib.request.Request(url + request["path"], body, request["headers"], method=request["method"])
    started = time.perf_counter()
    with urllib.request.urlopen(sent, timeout=120) as got:
        return got.read().decode(), time.perf_counter() - started


def events(text: str) -> list[dict[str, Any]]:
    """Objects of a stream's data lines, but for the mark of its end."""
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ") and line != "data: [DONE]"]
    return [json.loads(line) for line in lines]


def read_infill(told: str, body: dict[str, Any]) -> None:
    """llama.vim shows the content and figures by the names it asked for; a warm-up asks for nothing."""
    found = json.loads(told)
    assert set(found) == {name for name in body["response_fields"] if name}
    if body["n_predict"]:
        assert isinstance(found["content"], str) and found["truncated"] is False
        figures = [value for name, value in found.items() if name.startswith("timings/") or name == "tokens_cached"]
        assert len(figures) == 9 and all(isinstance(value, (int, float)) for value in figures)


def read_chat(told: str, body: dict[str, Any]) -> None:
    """Text is what the deltas hold; a warm-up is read by nobody."""
    if body.get("n_predict") == 0:
        assert isinstance(json.loads(told), dict)
        return
    found = events(told)
    choices = [one["choices"][0] for one in found if one["choices"]]
    assert [one for one in choices if one["delta"].get("content")]
    assert choices[-1]["finish_reason"] in ("stop", "length", "tool_calls")
    if body.get("stream_options"):
        assert found[-1]["choices"] == [] and found[-1]["usage"]["completion_tokens"] > 0
    else:
        assert all(one["choices"] for one in found)


def read_completion(told: str, body: dict[str, Any]) -> None:
    text = "".join(one["choices"][0]["text"] for one in events(told))
    assert not any(stop in text for stop in body["stop"])


def read_fim(told: str, body: dict[str, Any]) -> None:
    text = "".join(one["choices"][0]["delta"]["content"] for one in events(told))
    assert not any(stop in text for stop in body["stop"])


def read_edit(told: str, body: dict[str, Any]) -> None:
    """The region stands between the first opening fence and the last closing one."""
    content = json.loads(told)["choices"][0]["message"]["content"]
    assert 0 <= content.index("```\n") < content.rindex("\n```")


def read_apply(told: str, body: dict[str, Any]) -> None:
    assert "".join(one["choices"][0]["delta"].get("content") or "" for one in events(told))


def read_models(told: str, body: None) -> None:
    assert [one["id"] for one in json.loads(told)["data"]] == ["code"]


def read_messages(told: str, body: dict[str, Any]) -> None:
    kinds = [one["type"] for one in events(told) if one["type"] not in ("ping", "content_block_delta")]
    assert kinds[:2] == ["message_start", "content_block_start"] and kinds[-2:] == ["message_delta", "message_stop"]


READERS = {
    "/infill": read_infill,
    "/v1/chat/completions": read_chat,
    "/v1/completions": read_completion,
    "/v1/fim/completions": read_fim,
    "/v1/edit/completions": read_edit,
    "/v1/apply/completions": read_apply,
    "/v1/models": read_models,
    "/v1/messages": read_messages,
}


@pytest.mark.parametrize(
    "request_", [one for *_, one in RECORDED], ids=[f"{client}-{number}" for client, number, _ in RECORDED]
)
def test_a_recorded_request_is_answered_as_its_client_reads_it(url, request_):
    told, _ = answer(url, request_)
    READERS[request_["path"]](told, request_["body"])


def test_an_editor_that_gives_little_time_waits_less(url):
    (request,) = [one for client, _, one in RECORDED if client == "llama_vim" and one["body"].get("n_indent") == 0]
    body = request["body"]
    assert body["t_max_predict_ms"] == 250
    patient = {**request, "body": {**body, "t_max_predict_ms": None}}
    answer(url, request)
    took = [(answer(url, request)[1], answer(url, patient)[1]) for _ in range(3)]
    assert min(hurried for hurried, _ in took) < min(unhurried for _, unhurried in took) / 2
