"""OpenAI's own client: its helpers, tools by name, adapters, and thoughts apart from the text in every protocol."""

import asyncio
import json

import httpx
import openai
import pydantic
import pytest

from presswork.engine.loader import load
from presswork.server.config import ServerConfig
from presswork.text.parsers import CHANNEL_CLOSE, CHANNEL_OPEN
from tests.server.conftest import serving, write_adapter
from tests.server.test_openai import HELLO, TOOLS


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


class Found(pydantic.BaseModel):
    """What a schema asks for."""

    n: int
    far: bool


def test_the_clients_helpers_for_forms_and_streams_work(client):
    ask = dict(model="tiny", messages=HELLO, max_tokens=60, seed=4)
    parsed = client.chat.completions.parse(**ask, response_format=Found).choices[0].message.parsed
    assert isinstance(parsed, Found)
    items = client.responses.parse(
        model="tiny", input=HELLO, max_output_tokens=60, text_format=Found, extra_body={"seed": 4}
    )
    assert isinstance(items.output_parsed, Found)
    with client.chat.completions.stream(**ask, response_format=Found) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        whole = stream.get_final_completion()
    assert "".join(deltas) == whole.choices[0].message.content and whole.choices[0].message.parsed == parsed


def test_the_asynchronous_client_streams_too(served, client):
    ask = dict(model="tiny", messages=HELLO, max_tokens=30, seed=4)

    async def streamed() -> str:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as asynchronous:
            chunks = await asynchronous.chat.completions.create(**ask, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices])

    assert asyncio.run(streamed()) == client.chat.completions.create(**ask).choices[0].message.content


def test_the_client_is_told_what_these_models_do_not_make(client):
    for call in (
        lambda: client.embeddings.create(model="tiny", input="a"),
        lambda: client.images.generate(model="tiny", prompt="a"),
        lambda: client.audio.speech.create(model="tiny", voice="alloy", input="a"),
    ):
        with pytest.raises(openai.InternalServerError, match="no such output") as raised:
            call()
        assert raised.value.status_code == 501


def test_a_named_function_is_called_once(client):
    """However many calls the model could make: parallel ones are OpenAI's default."""
    choice = {"type": "function", "function": {"name": "look"}}
    for seed in range(4):
        told = client.chat.completions.create(
            model="tiny", messages=HELLO, tools=TOOLS, tool_choice=choice, max_tokens=200, seed=seed
        )
        assert [call.function.name for call in told.choices[0].message.tool_calls] == ["look"]


def test_strict_tools_are_kept_to_or_refused_in_every_protocol(served):
    odd = {"type": "object", "properties": {"n": {"not": {}}}}
    for strict, status in ((True, 400), (False, 200)):
        own = {"name": "odd", "strict": strict}
        function = {"type": "function", **own, "parameters": odd}
        bodies = {
            "chat/completions": {
                "messages": HELLO, "tools": [{"type": "function", "function": {**own, "parameters": odd}}],
                "tool_choice": "required", "max_tokens": 60,
            },
            "responses": {"input": "a", "tools": [function], "tool_choice": "required", "max_output_tokens": 60},
            "messages": {
                "messages": HELLO, "tools": [{**own, "input_schema": odd}], "tool_choice": {"type": "any"},
                "max_tokens": 60,
            },
        }  # fmt: skip
        for path, body in bodies.items():
            told = httpx.post(f"{served.url}/v1/{path}", json={"model": "tiny", **body}, timeout=60)
            assert told.status_code == status, (path, told.text)


def test_adapters_of_one_model_answer_side_by_side(folder, tmp_path):
    adapters = {name: write_adapter(folder, tmp_path / name, seed) for seed, name in enumerate(("one", "two"))}
    engine = load(folder)
    with serving(ServerConfig(models={"tiny": str(folder)}, adapters={"tiny": adapters})) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["tiny", "tiny:one", "tiny:two"]
        texts = []
        for name in (None, "one", "two"):
            if name is not None:
                engine.load_adapter(name, adapters[name])
            asked = f"tiny:{name}" if name else "tiny"
            told = client.chat.completions.create(model=asked, messages=HELLO, max_tokens=24, seed=3)
            texts.append(told.choices[0].message.content)
            assert texts[-1] == engine.chat(HELLO, max_tokens=24, seed=3, adapter=name).text and told.model == asked
        assert len(set(texts)) == 3
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="tiny:three", messages=HELLO)


@pytest.fixture(scope="module")
def thinking(folder) -> tuple[dict, str, str]:
    """(a request whose reply has thoughts before its text, the thoughts, the text)."""
    engine = load(folder)
    ids = [engine.tokenizer.encode(mark, add_special_tokens=False)[0] for mark in (CHANNEL_OPEN, CHANNEL_CLOSE)]
    some = sorted({token for word in ("thought\n", "add", "(") for token in engine.tokenizer.encode_plain(word)})
    asked = {"max_tokens": 24, "max_denoising_steps": 4, "allowed_token_ids": [*ids, *some]}
    for seed in range(400):
        reply = engine.chat(HELLO, seed=seed, **asked)
        if reply.reasoning and reply.text:
            return {**asked, "model": "tiny", "seed": seed}, reply.reasoning, reply.text
    raise AssertionError("no seed gives thoughts")


def test_thoughts_are_apart_from_the_text_in_every_protocol(served, thinking):
    asked, reasoning, text = thinking
    del asked["max_tokens"]

    def post(path, **body):
        return httpx.post(f"{served.url}/v1/{path}", json={**asked, **body}, timeout=60)

    def events(path, **body):
        lines = post(path, stream=True, **body).text.splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]

    chat = {"messages": HELLO, "max_tokens": 24}
    message = post("chat/completions", **chat).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (reasoning, text)
    listed = post("chat/completions", logprobs=True, **chat).json()["choices"][0]["logprobs"]["content"]
    assert bytes(byte for one in listed for byte in one["bytes"]).decode("utf-8", "replace") == text
    chunks = [one["choices"][0] for one in events("chat/completions", logprobs=True, **chat) if one["choices"]]
    assert [one for chunk in chunks if chunk["logprobs"] for one in chunk["logprobs"]["content"]] == listed
    deltas = [one["choices"][0]["delta"] for one in events("chat/completions", **chat) if one["choices"]]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == reasoning
    assert "".join(delta.get("content") or "" for delta in deltas) == text
    items = post("responses", input=HELLO, max_output_tokens=24).json()["output"]
    found = {item["type"]: "".join(part["text"] for part in item["content"]) for item in items}
    assert found == {"reasoning": reasoning, "message": text}
    blocks = post("messages", **chat).json()["content"]
    found = {block["type"]: block.get("thinking") or block.get("text") for block in blocks}
    assert found == {"thinking": reasoning, "text": text}
    told = [one["delta"] for one in events("messages", **chat) if one["type"] == "content_block_delta"]
    assert "".join(delta.get("thinking", "") for delta in told) == reasoning
    assert "".join(delta.get("text", "") for delta in told) == text
