"""What the routes share: the server behind a request, and answers that end when the client is gone."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request
from fastapi.responses import Response

from presswork.errors import RequestError
from presswork.server.errors import HttpError, openai_body
from presswork.server.gaps import Filled, Gap, fill_gap
from presswork.server.generation import Ask, Written, written
from presswork.server.registry import Lease
from presswork.server.sse import COMMENT, EventResponse, Timed, event

if TYPE_CHECKING:
    from presswork.server.app import Server

_T = TypeVar("_T")


def server_of(request: Request) -> "Server":
    """The server behind a request."""
    return request.app.state.server


def new_id(kind: str) -> str:
    """An id such as `chatcmpl-...`."""
    return f"{kind}-{uuid.uuid4().hex[:24]}"


def now() -> int:
    """Seconds since 1970, as answers are stamped."""
    return int(time.time())


async def whole(request: Request, work: Awaitable[_T]) -> _T:
    """A result, unless the client is gone or the deadline passes before: then the work is cancelled.

    Raises: TimeoutError, HttpError, and what the work raises.
    """
    task: asyncio.Future[_T] = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        deadline_s = server_of(request).config.deadline_s
        await asyncio.wait({task, gone}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise HttpError(499, "the client is gone")
        raise TimeoutError
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def counted(request: Request, lease: Lease, asks: Sequence[Ask]) -> list[Written]:
    """All replies, whole, taken into the server's figures."""
    found = await written(lease, asks)
    for one in found:
        server_of(request).metrics.count(lease.name, one.finished)
    return found


async def counted_gap(request: Request, lease: Lease, gap: Gap, num: int = 1) -> Filled:
    """As fill_gap, taken into the server's figures."""
    found = await fill_gap(lease, gap, num)
    server_of(request).metrics.count_tokens(lease.name, found.prompt_tokens, found.completion_tokens)
    return found


async def streamed(
    request: Request, events: AsyncGenerator[bytes, None], on_error: Callable[[HttpError], bytes] | None = None,
    sign: Callable[[], bytes] = lambda: COMMENT,
) -> Response:  # fmt: skip
    """A stream of events. What goes wrong before the first of them is an ordinary error.

    Args: sign: gives what is sent when nothing came for a while; some clients take a comment for nothing.
    Raises: as whole.
    """
    config = server_of(request).config
    timed = Timed(events, sign=sign, sign_s=config.keep_alive_s, deadline_s=config.deadline_s)
    try:
        first = await whole(request, anext(timed))
    except BaseException:
        await timed.aclose()
        raise
    return EventResponse(first, timed, on_error or openai_error_event, request.scope["state"]["request_id"])


def openai_error_event(error: HttpError) -> bytes:
    """An error in the middle of a stream, as OpenAI's clients notice it."""
    return event(openai_body(error))


_NO_THINKING, _THINKING = ("none", "instant", "minimal"), ("low", "medium", "high", "xhigh", "max")


def checked_effort(name: str, effort: str | None) -> bool | None:
    """Whether an effort asks a model to think first; None where none is given. Raises RequestError."""
    if effort is None:
        return None
    if effort not in (*_NO_THINKING, *_THINKING):
        raise RequestError(f"{name} must be one of {', '.join((*_NO_THINKING, *_THINKING))}, got {effort[:40]!r}")
    return effort in _THINKING


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def timings(stats: Any) -> dict[str, Any]:
    """How a reply came about, beside what the protocols report."""
    return {
        "canvases": stats.num_canvases,
        "denoise_steps": stats.num_denoise_steps,
        "passes": stats.num_passes,
        "wall_s": round(stats.wall_s, 6),
        "first_text_s": None if stats.first_text_s is None else round(stats.first_text_s, 6),
        "tokens_per_s": round(stats.tokens_per_s, 3),
    }
