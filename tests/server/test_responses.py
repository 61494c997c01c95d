"""OpenAI's client drives responses; a stream's items are those of the whole response."""

import json

import httpx
import openai
import pytest

from presswork.engine.loader import load
from presswork.errors import NonFiniteError, RequestError
from presswork.server.config import ServerConfig
from presswork.server.items import AnswerItems, tools_of, turns_of
from presswork.server.routes import responses
from presswork.text.parsers import ToolCall
from presswork.text.parts import Piece
from tests.server.conftest import serving

SLOW = {"canvas_length": 400, "max_denoising_steps": 60, "stability_threshold": 64}
TOOL = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {"at": {"type": "string", "maxLength": 6}}, "required": ["at"]},
}


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_response_is_what_the_engine_says(client, folder):
    told = client.responses.create(model="tiny", input="def add", max_output_tokens=20, extra_body={"seed": 3})
    expected = load(folder).chat([{"role": "user", "content": "def add"}], max_tokens=20, seed=3)
    assert told.output_text == expected.text
    assert told.status == {"stop": "completed", "length": "incomplete"}[expected.finish_reason]
    assert told.usage.output_tokens == expected.usage.completion_tokens


def test_a_stream_says_what_the_whole_response_says(client):
    for more in ({}, {"tools": [TOOL, {"type": "web_search"}], "tool_choice": "required"}):
        ask = dict(model="tiny", input="def add", max_output_tokens=60, extra_body={"seed": 3}, **more)
        whole = client.responses.create(**ask)
        events = list(client.responses.create(**ask, stream=True))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert events[0].type == "response.created" and events[-1].type == f"response.{whole.status}"

        def shown(response):
            return [
                {key: value for key, value in item.items() if key not in ("id", "call_id")}
                for item in json.loads(response.model_dump_json())["output"]
            ]

        assert shown(events[-1].response) == shown(whole)
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == whole.output_text
    arguments = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    assert set(json.loads(arguments)) == {"at"}


def test_a_schema_is_kept_to(client):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    told = client.responses.create(
        model="tiny", input="def", max_output_tokens=60,
        text={"format": {"type": "json_schema", "name": "a", "schema": schema}},
    )  # fmt: skip
    assert isinstance(json.loads(told.output_text)["n"], int)


def test_items_are_turns():
    given = [
        {"role": "developer", "content": [{"type": "input_text", "text": "You look."}]},
        {"type": "message", "role": "user", "content": "look"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": "x"}'},
        {"type": "function_call", "call_id": "c2", "name": "look", "arguments": '{"at": "y"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "seen"},
        {"type": "web_search_call", "id": "w"},
        {"type": "local_shell_call", "call_id": "s", "action": {}, "status": "completed"},
        {"type": "local_shell_call_output", "id": "s", "output": "done"},
        {"type": "apply_patch_call", "call_id": "p"},
    ]
    turns = turns_of(given)
    assert [turn["role"] for turn in turns] == ["developer", "user", "assistant", "tool"]
    assert [call["id"] for call in turns[2]["tool_calls"]] == ["c1", "c2"]
    assert turns[2]["content"] == "I look." and turns[2]["reasoning"] == "hm"
    assert turns[3] == {"role": "tool", "tool_call_id": "c1", "name": "look", "content": "seen"}
    for bad, message in (
        ({"type": "item_reference", "id": "x"}, "nothing is stored"),
        ({"type": "function_call_output", "call_id": "c", "output": ""}, "names no call"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "'input_image' are not supported"),
        ({"type": None, "id": "msg_1"}, "nothing is stored"),
        ({"type": "compaction"}, "items of type 'compaction'"),
    ):
        with pytest.raises(RequestError, match=message):
            turns_of([bad])


def test_items_open_grow_and_close_in_order():
    items = AnswerItems("resp_1")
    for bit in (Piece("reasoning", "hm"), Piece("text", "so "), Piece("text", "on"), ToolCall(name="f", arguments={})):
        items.take(bit)
    items.close()
    assert [item["type"] for item in items.done] == ["reasoning", "message", "function_call"]
    assert items.done[1]["content"][0]["text"] == "so on"
    ids = {
        fields.get("item_id") or fields["item"]["id"] for kind, fields in items.events if fields["output_index"] == 2
    }
    assert ids == {items.done[2]["id"]}


@pytest.mark.parametrize(
    "body, message",
    [
        ({}, "input is missing"),
        ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id is not supported"),
        ({"input": "a", "background": True}, "background is not supported"),
        ({"input": "a", "temprature": 1}, "temprature"),
    ],
)
def test_what_cannot_be_honoured_is_400_and_named(served, body, message):
    told = httpx.post(f"{served.url}/v1/responses", json=body)
    assert told.status_code == 400 and message in told.json()["error"]["message"]


def test_namespaces_and_custom_tools_are_called_by_their_own_names(client):
    inner = {**TOOL, "name": "search"}
    for tools, kind in (
        ([{"type": "namespace", "name": "docs", "tools": [inner]}], "function_call"),
        ([{"type": "custom", "name": "patch", "description": "x"}], "custom_tool_call"),
    ):
        ask = dict(
            model="tiny", input="def", tools=tools, tool_choice="required", max_output_tokens=80,
            parallel_tool_calls=False, extra_body={"seed": 3},
        )  # fmt: skip
        (item,) = client.responses.create(**ask).output
        assert item.type == kind
        if kind == "function_call":
            assert item.name == "search" and item.namespace == "docs"
        else:
            assert item.name == "patch" and isinstance(item.input, str)
        last = list(client.responses.create(**ask, stream=True))[-1].response.output[0]
        assert last.type == kind and last.name == item.name


def test_functions_of_one_name_in_two_namespaces_are_told_apart():
    def space(name):
        inner = [{"type": "function", "name": "look"}, {"type": "web_search"}]
        return {"type": "namespace", "name": name, "tools": inner}

    made, kinds = tools_of([space("mcp__a__"), space("mcp__b"), {"type": "function", "name": "look"}])
    assert [one["function"]["name"] for one in made] == ["mcp__a__look", "mcp__b__look", "look"]
    items = AnswerItems("resp_1", kinds)
    for name in ("mcp__b__look", "look"):
        items.take(ToolCall(name=name, arguments={}))
    assert [(one["name"], one.get("namespace")) for one in items.done] == [("look", "mcp__b"), ("look", None)]
    (turn,) = turns_of(
        [{"type": "function_call", "call_id": "c", "name": "look", "namespace": "mcp__b", "arguments": "{}"}]
    )
    assert turn["tool_calls"][0]["function"]["name"] == "mcp__b__look"


def test_pictures_in_results_do_not_end_a_conversation():
    turns = turns_of([
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": "data:..."}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ])  # fmt: skip
    assert turns[1]["content"] == "[input_image left out: this model reads text]"
    assert turns[2]["content"] == "no"


@pytest.mark.parametrize(
    "body",
    [
        {"input": [{"type": []}]}, {"input": "a", "tools": [{"type": "namespace", "name": "a", "tools": 5}]},
        {"input": "a", "stream_options": {"drafts": True}},
    ],
)  # fmt: skip
def test_malformed_items_are_400(served, body):
    assert httpx.post(f"{served.url}/v1/responses", json=body).status_code == 400


def test_a_stream_begins_with_created_however_late_its_text_is(folder, monkeypatch):
    config = ServerConfig(models={"tiny": str(folder)}, keep_alive_s=0.02)
    with serving(config) as slow, openai.OpenAI(base_url=f"{slow.url}/v1", api_key="none", max_retries=0) as client:
        ask = dict(model="tiny", input="def add", max_output_tokens=400, extra_body={"ignore_eos": True, **SLOW})
        with client.responses.stream(**ask) as stream:
            events = list(stream)
        assert events[0].type == "response.created" and events[-1].type == "response.incomplete"
        raw = [event for event in client.responses.create(**ask, stream=True)]
        assert "keepalive" in {event.type for event in raw}
        assert [event.sequence_number for event in raw] == list(range(len(raw)))


def test_a_deadline_ends_the_response_as_failed(folder):
    config = ServerConfig(models={"tiny": str(folder)}, keep_alive_s=0.02, deadline_s=0.3)
    with serving(config) as slow:
        body = {"input": "def add", "stream": True, "max_output_tokens": 400, "ignore_eos": True, **SLOW}
        told = httpx.post(f"{slow.url}/v1/responses", json={**body, "max_denoising_steps": 1000}, timeout=60).text
    last = json.loads(told.rstrip().rpartition("\ndata: ")[2])
    assert last["type"] == "response.failed" and last["response"]["error"]["code"] == "server_error"


def test_tokens_of_a_request_are_counted(client):
    told = client.responses.input_tokens.count(model="tiny", input="def add")
    assert (
        told.input_tokens
        == client.responses.create(model="tiny", input="def add", max_output_tokens=1).usage.input_tokens
    )


def test_an_error_in_the_middle_ends_the_response_as_failed(served, monkeypatch):
    async def broken(lease, asks):
        yield 0, Piece("text", "so ")
        raise NonFiniteError("the model produced NaN")

    monkeypatch.setattr(responses, "bits", broken)
    told = httpx.post(f"{served.url}/v1/responses", json={"input": "a", "stream": True}).text
    events = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: {")]
    assert events[-1]["type"] == "response.failed" and events[-1]["response"]["error"]["message"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
