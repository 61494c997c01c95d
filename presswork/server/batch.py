"""Many requests from a file, in OpenAI's batch format, without a socket between them and the engine.

    in    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
    out   {"id": "batch_req_...", "custom_id": "a", "response": {"status_code": 200, "request_id": ..., "body": {...}},
           "error": null}

Answers are written as they come, one a line. A run that broke off goes on behind the last whole line.
"""

import asyncio
import json
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from starlette.types import ASGIApp

from presswork.errors import DataError

_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request of a batch."""

    custom_id: str
    url: str
    body: dict[str, Any]


def read_batch(file: Path) -> list[BatchLine]:
    """All requests of a file. Raises DataError naming the first line that is none, or a custom_id said twice."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    found: dict[str, BatchLine] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        one = _read_line(f"{file}, line {number}", line)
        if one.custom_id in found:
            raise DataError(f"{file}, line {number}: custom_id {one.custom_id!r} is said twice")
        found[one.custom_id] = one
    if not found:
        raise DataError(f"{file} holds no request")
    return list(found.values())


def answered(file: Path) -> set[str]:
    """The custom_ids that a file of answers holds; cuts a last line off that broke. Mutates the file.

    Raises: DataError where it holds something else.
    """
    if not file.exists():
        return set()
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    found = set()
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            found.add(json.loads(line)["custom_id"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}, line {number}: not an answer of a batch; give another file") from error
    if len(whole) < len(data):
        os.truncate(file, len(whole))
    return found


async def run_batch(
    app: ASGIApp, lines: list[BatchLine], out: Path, *, concurrency: int, on_done: Callable[[bool], None]
) -> None:
    """Answer requests, so many at a time, and append each answer as it comes.

    Args: on_done: called after each with whether it was answered well.
    Raises: DataError where the answers cannot be written; those that were stay.
    """
    waiting = iter(lines)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    try:
        # Unbuffered: what could not be written is not tried again when the file is closed.
        opened = out.open("ab", buffering=0)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error}; give another file") from error
    with opened:
        async with httpx.AsyncClient(transport=transport, base_url="http://batch", timeout=None) as client:

            async def keep_asking() -> None:
                for line in waiting:
                    answer = await _ask(client, line)
                    try:
                        opened.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
                    except OSError as error:
                        raise DataError(f"{out} cannot be written: {error}; run again to go on") from error
                    on_done(answer["response"]["status_code"] == 200)

            tasks = [asyncio.ensure_future(keep_asking()) for _ in range(min(concurrency, len(lines)))]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def _read_line(where: str, line: str) -> BatchLine:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    fields = record if isinstance(record, dict) else {}
    custom_id, url, body = fields.get("custom_id"), fields.get("url"), fields.get("body")
    if not isinstance(custom_id, str) or not isinstance(body, dict):
        raise DataError(f"{where}: expected an object with custom_id, method, url and body")
    if fields.get("method") != "POST" or url not in _PATHS:
        raise DataError(f"{where}: method must be POST and url one of {', '.join(_PATHS)}, got {str(url)[:60]!r}")
    if body.get("stream"):
        raise DataError(f"{where}: a batch has no streams; leave out stream")
    return BatchLine(custom_id, url, body)


async def _ask(client: httpx.AsyncClient, line: BatchLine) -> dict[str, Any]:
    response = await client.post(line.url, json=line.body)
    answer = {
        "status_code": response.status_code,
        "request_id": response.headers.get("x-request-id"),
        "body": response.json(),
    }
    error = None if response.status_code == 200 else {"code": str(response.status_code), "message": _message(answer)}
    return {"id": f"batch_req_{uuid.uuid4().hex[:24]}", "custom_id": line.custom_id, "response": answer, "error": error}


def _message(answer: dict[str, Any]) -> str:
    return answer["body"]["error"]["message"]
