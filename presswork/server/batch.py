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

_ID = "batch_req_"
_BEGINNING = f'{{"id": "{_ID}'.encode()
_PASSING, _TRIES = (429, 503), 5
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request of a batch."""

    custom_id: str
    url: str
    content: bytes


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
    """The custom_ids that a file of answers holds for good. Mutates the file.

    A last line that broke is cut off. What failed for reasons of the server's (a full queue, a model that could not be
    loaded) is asked again, and taken out.

    Raises: DataError where it holds something else.
    """
    if not file.exists():
        return set()
    _put_in_place(file)
    data = file.read_bytes()
    whole, last = data[: data.rfind(b"\n") + 1], data[data.rfind(b"\n") + 1 :]
    found, kept = set(), []
    for number, line in enumerate(whole.splitlines(keepends=True), start=1):
        answer = _answer_of(line)
        if answer is None:
            raise DataError(f"{file}, line {number}: not an answer of a batch; give another file")
        if _is_final(answer):
            found.add(answer["custom_id"])
            kept.append(line)
    if last and _answer_of(last) is not None:
        with file.open("ab") as opened:
            opened.write(b"\n")
        return answered(file)
    if last and not last.startswith(_BEGINNING[: len(last)]):
        raise DataError(f"{file} ends in something else than an answer of a batch; give another file")
    if last or len(kept) < len(whole.splitlines()):
        _rewrite(file, b"".join(kept))
    return found


def _rewrite(file: Path, data: bytes) -> None:
    """Give a file other contents, all or none of them wherever this breaks off; who has it open keeps it."""
    partial, staged = _beside(file, "partial"), _beside(file, "kept")
    try:
        with partial.open("wb") as opened:
            opened.write(data)
            os.fsync(opened.fileno())
        partial.replace(staged)
    except OSError as error:
        raise DataError(f"{partial} cannot be written: {error}; give another file") from error
    _put_in_place(file)


def _put_in_place(file: Path) -> None:
    """Do what a rewrite that broke off left to do."""
    staged = _beside(file, "kept")
    if not staged.exists():
        return
    try:
        with file.open("r+b") as opened:
            opened.write(staged.read_bytes())
            opened.truncate()
            os.fsync(opened.fileno())
        staged.unlink()
    except OSError as error:
        raise DataError(f"{file} cannot be written: {error}; give another file") from error


def _beside(file: Path, kind: str) -> Path:
    return file.with_name(f"{file.name}.{kind}")


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
                    data = _as_line(answer)
                    try:
                        if opened.write(data) != len(data):
                            raise OSError("only part of an answer was taken")
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


def _as_line(answer: dict[str, Any]) -> bytes:
    try:
        return json.dumps(answer, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a character in the custom_id, which has to come back
        return json.dumps(answer).encode() + b"\n"


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON value")


def _read_line(where: str, line: str) -> BatchLine:
    try:
        record = json.loads(line, parse_constant=_refuse_constant)
        fields = record if isinstance(record, dict) else {}
        content = json.dumps(fields.get("body")).encode()
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    custom_id, url, body = fields.get("custom_id"), fields.get("url"), fields.get("body")
    if not isinstance(custom_id, str) or not isinstance(body, dict):
        raise DataError(f"{where}: expected an object with custom_id, method, url and body")
    if fields.get("method") != "POST" or url not in _PATHS:
        raise DataError(f"{where}: method must be POST and url one of {', '.join(_PATHS)}, got {str(url)[:60]!r}")
    if body.get("stream"):
        raise DataError(f"{where}: a batch has no streams; leave out stream")
    return BatchLine(custom_id, url, content)


async def _ask(client: httpx.AsyncClient, line: BatchLine) -> dict[str, Any]:
    for attempt in range(_TRIES):
        headers = {"Content-Type": "application/json"}
        response = await client.post(line.url, content=line.content, headers=headers)
        if response.status_code not in _PASSING or attempt == _TRIES - 1:
            break
        await asyncio.sleep(float(response.headers.get("retry-after", "1")))
    try:
        body = response.json()
    except ValueError:
        body = {"error": {"message": "the answer is not JSON"}}
    answer = {
        "status_code": response.status_code,
        "request_id": response.headers.get("x-request-id"),
        "body": body,
    }
    error = None
    if response.status_code != 200:
        error = {"code": str(response.status_code), "message": body["error"]["message"]}
    return {"id": f"{_ID}{uuid.uuid4().hex[:24]}", "custom_id": line.custom_id, "response": answer, "error": error}


def _answer_of(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    fields = found if isinstance(found, dict) else {}
    is_answer = isinstance(fields.get("custom_id"), str) and isinstance(fields.get("response"), dict)
    return fields if is_answer else None


def _is_final(answer: dict[str, Any]) -> bool:
    status = answer["response"].get("status_code", 200)
    return status == 200 or (400 <= status < 500 and status not in _PASSING)
