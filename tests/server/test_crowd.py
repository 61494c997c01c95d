"""Clients that share a server get what they would get alone, and leave nothing behind, whatever others do."""

import asyncio
import json
import random
import re
import time

import httpx

CHAT, FIM = "/v1/chat/completions", "/v1/fim/completions"
SCHEMA = {"type": "object", "properties": {"name": {"enum": ["add", "sub"]}}, "required": ["name"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "found", "schema": SCHEMA}}
MALFORMED = [b"", b"[1]", b'{"messages": 3}', b"[" * 5000]
KEPT = ("presswork_running", "presswork_waiting", "presswork_waiting_edits", "presswork_cache_bytes")


def bodies() -> list[tuple[str, dict]]:
    told = [{"role": "user", "content": "def add"}]
    plain = [(CHAT, {"messages": told, "max_tokens": 16 * size, "seed": size}) for size in (1, 2, 3)]
    kept = [(CHAT, {"messages": told, "response_format": FORMAT, "seed": 4})]
    return [*plain, *kept, (FIM, {"prompt": "def add(a, ", "suffix": "):\n", "max_tokens": 6, "random_seed": 5})]


def text_of(answer: dict) -> str:
    return answer["choices"][0]["message"]["content"]


async def streamed(client: httpx.AsyncClient, path: str, body: dict, num_lines: int | None = None) -> str | None:
    """A stream's text, None where it was left after so many lines; it must end once."""
    text, ends = "", []
    async with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if num_lines is not None and (num_lines := num_lines - 1) < 0:
                return None
            if line == "data: [DONE]":
                ends.append("done")
            elif line.startswith("data: "):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["delta"].get("content") or ""
                    ends += [choice["finish_reason"]] if choice["finish_reason"] else []
    assert len(ends) == 2 and ends[1] == "done"
    return text


async def crowd(url: str, alone: list[str], num_clients: int, num_rounds: int) -> list[str]:
    """What went wrong, by clients of all kinds."""
    wrong: list[str] = []
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:

        async def one_client(number: int) -> None:
            draw = random.Random(number)
            for _ in range(num_rounds):
                place = draw.randrange(len(alone))
                path, body = bodies()[place]
                kind = draw.choice(("stream", "stream", "whole", "leave", "malformed"))
                if kind == "leave":
                    await streamed(client, path, body, draw.randrange(3))
                    continue
                expected: object = alone[place]
                if kind == "malformed":
                    found, expected = (await client.post(path, content=draw.choice(MALFORMED))).status_code, 400
                elif kind == "whole":
                    found = text_of((await client.post(path, json=body)).json())
                else:
                    found = await streamed(client, path, body)
                if found != expected:
                    wrong.append(f"{kind} {path}: {found!r}")

        await asyncio.gather(*map(one_client, range(num_clients)))
    return wrong


def gauges(url: str) -> dict[str, float]:
    text = httpx.get(f"{url}/metrics").text
    return {
        name: sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(rf"{name}(\{{| )", line))
        for name in KEPT
    }


def test_a_crowd_gets_what_each_would_get_alone(served):
    alone = [text_of(httpx.post(served.url + path, json=body, timeout=60).json()) for path, body in bodies()]
    assert len(set(alone)) == len(alone) and json.loads(alone[3])["name"] in ("add", "sub")
    assert asyncio.run(crowd(served.url, alone, num_clients=16, num_rounds=5)) == []
    for _ in range(100):
        if not any(gauges(served.url).values()):
            break
        time.sleep(0.1)
    assert gauges(served.url) == dict.fromkeys(KEPT, 0.0)
