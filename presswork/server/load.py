"""Putting a server under load, and what came of it."""

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from presswork.errors import DataError

_PROMPTS = (
    "Write a function that returns the sum of two numbers.", "Write a function that reverses a list.",
    "Write a function that counts the words of a text.", "Write a function that tells whether a number is prime.",
    "Write a function that joins two sorted lists.", "Write a function that reads a file and returns its lines.",
    "Write a function that finds the longest word.", "Write a function that returns the median of a list.",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One request under load.

    Args:
        latency_s: from sending to the end; None where it failed.
        first_text_s: to the first text, reasoning or call.
        error: what went wrong, None where nothing did.
    """

    latency_s: float | None = None
    first_text_s: float | None = None
    num_tokens: int = 0
    num_canvases: int = 0
    num_steps: int = 0
    error: str | None = None


def read_prompts(given: tuple[str, str] | None) -> list[list[dict[str, Any]]]:
    """Conversations out of a file's name and text; the built-in ones without a file. Raises DataError."""
    if given is None:
        return [_conversation(prompt) for prompt in _PROMPTS]
    name, text = given
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{name} holds no prompt")
    if not name.endswith(".jsonl"):
        return [_conversation(line) for line in lines]
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{name}, line {number}: not JSON ({error})") from error
        if isinstance(record, dict) and isinstance(record.get("messages"), list):
            found.append(record["messages"])
        elif isinstance(record, dict) and isinstance(record.get("prompt"), str):
            found.append(_conversation(record["prompt"]))
        else:
            raise DataError(f"{name}, line {number}: expected an object with prompt or messages")
    return found


async def run_load(
    url: str, prompts: Sequence[list[dict[str, Any]]], body: Mapping[str, Any], *, num: int, concurrency: int,
    rate: float | None, seed: int, api_key: str | None = None, on_done: Callable[[], None] = lambda: None,
) -> tuple[list[Result], float]:  # fmt: skip
    """Send requests, in a closed loop of so many clients, or at so many a second on average.

    Returns: the results in the order they were asked for, and the seconds from the first request to the last answer.
    """
    draw = random.Random(seed)
    asks = [{**body, "messages": draw.choice(list(prompts)), "seed": i} for i in range(num)]
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    results: list[Result] = [Result(error="not sent")] * num
    started = time.perf_counter()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(headers=headers, timeout=None, limits=limits) as client:

        async def ask(number: int) -> None:
            results[number] = await _timed(client, url, asks[number])
            on_done()

        if rate is None:
            waiting = iter(range(num))

            async def keep_asking() -> None:
                for number in waiting:
                    await ask(number)

            await asyncio.gather(*(keep_asking() for _ in range(min(concurrency, num))))
        else:
            tasks = []
            for number in range(num):
                if number:
                    await asyncio.sleep(draw.expovariate(rate))
                tasks.append(asyncio.ensure_future(ask(number)))
            await asyncio.gather(*tasks)
    return results, time.perf_counter() - started


def summary(results: Sequence[Result], wall_s: float) -> dict[str, Any]:
    """Percentiles and sums over the requests that were answered; `request_` is of each request by itself."""
    answered = [one for one in results if one.error is None]
    canvases = sum(one.num_canvases for one in answered)
    return {
        "num_ok": len(answered),
        "errors": dict(Counter(one.error for one in results if one.error is not None)),
        "wall_s": wall_s,
        "requests_per_s": len(answered) / wall_s,
        "tokens_per_s": sum(one.num_tokens for one in answered) / wall_s,
        "steps_per_canvas": sum(one.num_steps for one in answered) / canvases if canvases else None,
        "request_tokens_per_s": _percentiles([one.num_tokens / one.latency_s for one in answered if one.latency_s]),
        "request_steps_per_canvas": _percentiles(
            [one.num_steps / one.num_canvases for one in answered if one.num_canvases]
        ),
        "first_text_s": _percentiles([one.first_text_s for one in answered if one.first_text_s is not None]),
        "latency_s": _percentiles([one.latency_s for one in answered if one.latency_s is not None]),
    }


def _conversation(prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}]


async def _timed(client: httpx.AsyncClient, url: str, body: Mapping[str, Any]) -> Result:
    started = time.perf_counter()
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    try:
        async with client.stream("POST", f"{url}/v1/chat/completions", json=asked) as response:
            return await _read(response, started)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        return Result(error=f"{type(error).__name__}: {error}")


async def _read(response: httpx.Response, started: float) -> Result:
    """Take in one answer; what is not of its shape raises."""
    first_s, last = None, {}
    if response.status_code != 200:
        told = json.loads(await response.aread())
        return Result(error=f"{response.status_code} {_message(told)}")
    async for line in response.aiter_lines():
        if not line.startswith("data: {"):
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            return Result(error=_message(chunk))
        if chunk["choices"]:
            delta = chunk["choices"][0]["delta"]
            has_text = any(delta.get(key) for key in ("content", "reasoning_content", "tool_calls"))
            if has_text and first_s is None:
                first_s = time.perf_counter() - started
        else:
            last = chunk
    if not last.get("usage"):
        return Result(error="the stream ended early, or without usage")
    timings = last.get("timings") or {}
    return Result(
        latency_s=time.perf_counter() - started,
        first_text_s=first_s,
        num_tokens=last["usage"]["completion_tokens"],
        num_canvases=timings.get("canvases") or 0,
        num_steps=timings.get("denoise_steps") or 0,
    )


def _message(told: Any) -> str:
    error = told["error"]
    return str(error["message"] if isinstance(error, dict) else error)


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "mean": statistics.fmean(ordered), "max": ordered[-1]}
