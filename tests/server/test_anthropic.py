"""Anthropic's own client drives messages; streams say what whole answers say."""

import anthropic
import httpx
import pytest

from presswork.engine.loader import load
from presswork.errors import RequestError
from presswork.server.generation import Written
from presswork.server.routes.anthropic import _Blocks, turns_of
from presswork.text.parsers import ToolCall
from presswork.text.parts import Piece
from presswork.text.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "def add"}]
TOOLS = [
    {
        "name": "look",
        "description": "Look somewhere.",
        "input_schema": {
            "type": "object", "properties": {"at": {"type": "string", "maxLength": 6}}, "required": ["at"],
        },
    },
]  # fmt: skip


@pytest.fixture(scope="module")
def client(served):
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0) as client:
        yield client


def test_a_message_is_what_the_engine_says(client, folder):
    told = client.messages.create(model="tiny", messages=HELLO, max_tokens=20, extra_body={"seed": 3})
    expected = load(folder).chat(HELLO, max_tokens=20, seed=3)
    assert "".join(block.text for block in told.content) == expected.text
    assert told.stop_reason == {"stop": "end_turn", "length": "max_tokens"}[expected.finish_reason]
    usage = told.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == expected.usage.prompt_tokens
    assert usage.output_tokens == expected.usage.completion_tokens


def test_a_stream_says_what_the_whole_message_says(client):
    for more in ({}, {"stop_sequences": ["e"]}, {"tools": TOOLS, "tool_choice": {"type": "any"}}):
        ask = dict(model="tiny", messages=HELLO, max_tokens=60, extra_body={"seed": 3}, **more)
        whole = client.messages.create(**ask)
        with client.messages.stream(**ask) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_message()
        assert [block.model_dump(exclude={"id"}) for block in final.content] == [
            block.model_dump(exclude={"id"}) for block in whole.content
        ]
        assert (final.stop_reason, final.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
        assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
        assert final.usage.output_tokens == whole.usage.output_tokens


def test_a_stop_sequence_is_named(client):
    num_stopped = 0
    for seed in range(8):
        told = client.messages.create(
            model="tiny", messages=HELLO, max_tokens=200, stop_sequences=["e", "a", "\n"], extra_body={"seed": seed}
        )
        if told.stop_reason == "stop_sequence":
            num_stopped += 1
            assert told.stop_sequence in ("e", "a", "\n")
            assert not any(told.stop_sequence in block.text for block in told.content)
    assert num_stopped


def test_a_forced_tool_is_used(client):
    for choice in ({"type": "any"}, {"type": "tool", "name": "look"}):
        choice["disable_parallel_tool_use"] = True
        told = client.messages.create(
            model="tiny", messages=HELLO, max_tokens=60, tools=TOOLS, tool_choice=choice, system="You look."
        )
        (block,) = told.content
        assert told.stop_reason == "tool_use" and block.name == "look" and set(block.input) == {"at"}


def test_a_begun_answer_is_gone_on_with_and_tokens_are_counted(client, folder):
    plain = client.messages.count_tokens(model="tiny", messages=HELLO).input_tokens
    begun = [*HELLO, {"role": "assistant", "content": "return total"}]
    num_begun = len(Tokenizer.from_folder(folder).encode_plain("return total"))
    assert client.messages.count_tokens(model="tiny", messages=begun).input_tokens == plain + num_begun
    system = client.messages.count_tokens(model="tiny", messages=HELLO, system=[{"type": "text", "text": "You add."}])
    assert system.input_tokens > plain
    told = client.messages.create(model="tiny", messages=begun, max_tokens=4)
    assert told.role == "assistant"


def test_turns_of_tools_are_calls_and_results():
    given = [
        {"role": "user", "content": [{"type": "text", "text": "look", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "so"}, {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "x"}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "is_error": True,
             "content": [{"type": "text", "text": "seen"}]},
            {"type": "text", "text": "and?"},
        ]},
    ]  # fmt: skip
    assert turns_of(given) == [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": "so", "reasoning": "hm", "tool_calls": [
            {"id": "t1", "type": "function", "function": {"name": "look", "arguments": {"at": "x"}}}
        ]},
        {"role": "tool", "tool_call_id": "t1", "name": "look", "content": "Error: seen"},
        {"role": "user", "content": "and?"},
    ]  # fmt: skip
    with pytest.raises(RequestError, match="names no call before it"):
        turns_of([{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t9", "content": "x"}]}])
    with pytest.raises(RequestError, match="'image' are not supported"):
        turns_of([{"role": "user", "content": [{"type": "image", "source": {}}]}])


def test_pictures_in_results_do_not_end_a_conversation():
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}
    turns = turns_of([
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "look", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [image]}]},
    ])  # fmt: skip
    assert turns[1]["content"] == "[image left out: this model reads text]"


def test_models_are_listed_in_anthropics_shape(client):
    assert "tiny" in [model.id for model in client.models.list()]
    found = client.models.retrieve("tiny")
    assert found.type == "model" and found.max_input_tokens == 512


@pytest.mark.parametrize("more", [{"tool_choice": {"type": []}}, {"context_management": {"edits": 5}}])
def test_malformed_fields_are_400(served, more):
    body = {"max_tokens": 4, "messages": [{"role": "user", "content": "a"}], **more}
    assert httpx.post(f"{served.url}/v1/messages", json=body).status_code == 400


def test_blocks_open_grow_and_close_in_order():
    blocks = _Blocks("msg-1")
    bits = [Piece("reasoning", "hm"), Piece("text", "so "), ToolCall(name="f", arguments={"a": 1}), Piece("text", "x")]
    told = b"".join(b"".join(blocks.events(bit)) for bit in bits).decode()
    kinds = [line.split('"type":"')[1].split('"')[0] for line in told.splitlines() if line.startswith("data:")]
    start, delta, stop = "content_block_start", "content_block_delta", "content_block_stop"
    assert kinds == [start, delta, stop] * 3 + [start, delta]
    assert [f'"index":{i}' in told for i in range(5)] == [True, True, True, True, False]


@pytest.mark.parametrize(
    "body, message",
    [
        ({"messages": HELLO}, "max_tokens is missing"),
        ({"messages": HELLO, "max_tokens": 4, "mcp_servers": [{"url": "x"}]}, "mcp_servers is not supported"),
        ({"messages": HELLO, "max_tokens": 4, "tools": [{"type": "web_search_20250305", "name": "w"}]}, "web_search"),
        ({"messages": HELLO, "max_tokens": 4, "tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"messages": HELLO, "max_tokens": 4, "thinking": {"type": "maybe"}}, "thinking.type"),
        ({"messages": HELLO, "max_tokens": 4, "context_management": {"edits": [{"type": "x"}]}}, "context_management"),
        ({"messages": [{"role": "robot", "content": "x"}], "max_tokens": 4}, "role must be user or assistant"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_400_in_anthropics_shape(served, body, message):
    for stream in (False, True):
        told = httpx.post(f"{served.url}/v1/messages", json={**body, "stream": stream})
        assert told.status_code == 400 and told.json()["type"] == "error"
        assert told.json()["error"]["type"] == "invalid_request_error" and message in told.json()["error"]["message"]
        assert told.json()["request_id"] == told.headers["x-request-id"]


def test_more_tokens_than_the_context_has_are_what_it_has_left(client):
    told = client.messages.create(model="tiny", messages=HELLO, max_tokens=20_000, extra_body={"seed": 3})
    assert told.usage.output_tokens > 0
    assert told.stop_reason in ("end_turn", "model_context_window_exceeded")


def test_what_claude_code_sends_is_taken(served, client):
    body = {
        "model": "tiny", "max_tokens": 4, "stream": False, "metadata": {"user_id": "u"},
        "diagnostics": {"previous_message_id": None}, "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": {"type": "thinking_turns"}}]},
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=aaaaa;"},
            {"type": "text", "text": "You add.", "cache_control": {"type": "ephemeral"}},
        ],
        "messages": [*HELLO, {"role": "system", "content": "Be brief."}],
    }  # fmt: skip
    told = httpx.post(f"{served.url}/v1/messages?beta=true", json=body)
    assert told.status_code == 200, told.text
    assert told.headers["request-id"] == told.headers["x-request-id"]
    # The billing line changes with every request; the prompt must not.
    counts = []
    for mark in ("aaaaa", "b"):
        billing = {"type": "text", "text": f"x-anthropic-billing-header: cch={mark};"}
        system = [billing, {"type": "text", "text": "You add."}]
        counts.append(client.messages.count_tokens(model="tiny", messages=HELLO, system=system).input_tokens)
    assert counts[0] == counts[1]


def test_parts_keep_their_order(served):
    found = Written()
    for bit in (Piece("text", "a"), ToolCall(name="f", arguments={}), Piece("text", "b"), Piece("text", "c")):
        found.add(bit)
    assert found.parts == [Piece("text", "a"), ToolCall(name="f", arguments={}), Piece("text", "bc")]
    assert found.text == "abc" and len(found.calls) == 1
