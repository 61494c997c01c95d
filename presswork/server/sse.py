"""Server-sent events: what a stream looks like on the wire."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from presswork.server.errors import HttpError, as_http, logged

logger = logging.getLogger(__name__)

_PIECE = 40  # characters of a delta, about: what the eye takes in at once
_STALL_S = 60.0  # a client that takes nothing for so long is gone

COMMENT = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def event(data: Any, name: str | None = None) -> bytes:
    """One event."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def readable(text: str) -> Iterator[str]:
    """A text in pieces that end behind words, none much longer than a line of print."""
    piece = ""
    for word in re.findall(r"\s*\S+|\s+", text):
        if piece and len(piece) + len(word) > _PIECE:
            yield piece
            piece = ""
        piece += word
    if piece:
        yield piece


class Timed:
    """Events with a sign of life whenever none came for a while, and an end to all waiting."""

    def __init__(
        self, events: AsyncIterator[bytes], *, sign: Callable[[], bytes], sign_s: float, deadline_s: float | None
    ):
        """Args: sign: gives what is sent after sign_s seconds without an event. deadline_s: from now on to the end."""
        self._events, self._sign, self._sign_s = events, sign, sign_s
        loop = asyncio.get_running_loop()
        self._until = None if deadline_s is None else loop.time() + deadline_s
        self._pending: asyncio.Task[bytes] | None = None

    def __aiter__(self) -> "Timed":
        return self

    async def __anext__(self) -> bytes:
        """Raises: TimeoutError at the deadline, and what the events raise."""
        wait_s = self._sign_s
        if self._until is not None:
            left_s = self._until - asyncio.get_running_loop().time()
            if left_s <= 0:
                raise TimeoutError
            wait_s = min(wait_s, left_s)
        if self._pending is None:
            self._pending = asyncio.ensure_future(anext(self._events))  # type: ignore[arg-type]
        done, _ = await asyncio.wait({self._pending}, timeout=wait_s)
        if done:
            task, self._pending = self._pending, None
            return task.result()
        if wait_s < self._sign_s:
            raise TimeoutError
        return self._sign()

    async def aclose(self) -> None:
        """Stop the work behind the events."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        close = getattr(self._events, "aclose", None)
        if close is not None:
            await close()


class EventResponse(Response):
    """Sends events until they end or the client is gone, which stops the work behind them.

    An error that comes after the first event is an event itself: the status has been sent by then. A client that keeps
    its connection and takes nothing counts as gone.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: Timed, on_error: Callable[[HttpError], bytes], request_id: str):
        self.status_code, self.background = 200, None
        self._first, self._rest, self._on_error, self._request_id = first, rest, on_error, request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnected(receive))
        sending = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (gone, sending):
                task.cancel()
            _, ended = await asyncio.gather(gone, sending, return_exceptions=True)
            await self._rest.aclose()
        if isinstance(ended, Exception):
            logger.info("%s: the client took nothing more: %r", self._request_id, ended)

    async def _send(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._put(send, self._first)
        try:
            async for one in self._rest:
                await self._put(send, one)
        except _StalledError:
            raise
        except Exception as error:  # noqa: BLE001 - the border of the process: told to the client, and logged
            await self._put(send, self._on_error(logged(as_http(error), error, self._request_id)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _put(self, send: Send, data: bytes) -> None:
        try:
            async with asyncio.timeout(_STALL_S):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError as error:
            raise _StalledError(f"nothing was taken for {_STALL_S:.0f} s") from error


class _StalledError(Exception):
    """A client takes nothing; never leaves this module."""


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
