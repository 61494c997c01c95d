"""OpenAI's responses, without memory: what a conversation was is in the request."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from presswork.engine.events import Done, Reply
from presswork.server.constraints import form_and_calls, of_response_format
from presswork.server.errors import HttpError, openai_body
from presswork.server.generation import Ask, Written, bits, fitted, num_reasoning_tokens, unless_late
from presswork.server.items import AnswerItems, ToolKind, tools_of, turns_of
from presswork.server.registry import Lease
from presswork.server.routes.common import checked_effort, counted, new_id, now, server_of, streamed, whole
from presswork.server.sse import COMMENT, event
from presswork.server.turns import one_system
from presswork.server.wire import CanvasFields, Listed, Wire, or_none, refuse, sampling

router = APIRouter()


class TextConfig(Wire):
    """The form of an answer."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class Reasoning(Wire):
    """How much to think; a summary is a hint, and there is none here beside the thoughts themselves."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None
    context: str | None = None
    mode: str | None = None


class StreamOptions(Wire):
    """What a stream holds beside its text: padding against those who measure it, of which there is none here."""

    include_obfuscation: bool | None = None


class ResponsesRequest(CanvasFields):
    """A body of POST /v1/responses."""

    input: str | Listed[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Listed[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    # Honoured by doing nothing: nothing is stored, so there is nothing to store, include or find again.
    store: bool | None = None
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    client_metadata: dict[str, Any] | None = None
    # Refused where they ask for anything.
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    background: bool | None = None
    truncation: str | None = None
    top_logprobs: int | None = None
    max_tool_calls: int | None = None
    service_tier: str | None = None


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "previous_response_id": (), "conversation": (), "prompt": (), "background": (False,), "truncation": ("disabled",),
    "top_logprobs": (0,), "max_tool_calls": (), "service_tier": ("auto", "default"),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesAsk:
    """A request as the engine takes it, and what its answer repeats of it.

    Args: kinds: of each tool that is not called as a plain function, by the name that the model knows.
    """

    ask: Ask
    model: str
    body: ResponsesRequest
    kinds: Mapping[str, ToolKind]
    id: str = field(default_factory=lambda: new_id("resp").replace("-", "_"))
    created: int = field(default_factory=now)


@router.post("/v1/responses")
async def responses(request: Request, body: ResponsesRequest) -> Response:
    """Answer a list of items."""
    refuse(body, _NEUTRAL)
    server = server_of(request)
    if body.stream:
        told = _Told()
        return await streamed(request, _streamed(request, body, told), told.failed, told.sign)

    async def answer() -> Response:
        async with server.registry.use(body.model) as lease:
            asked = await lease.read(_read, body, lease)
            (found,) = await counted(request, lease, [asked.ask])
            items = AnswerItems(asked.id, asked.kinds)
            for part in found.parts:
                items.take(part)
            status = _status(found.finished)
            items.close(status)
            return JSONResponse(_response(asked, items.done, status, _usage(lease, found)))

    return await whole(request, answer())


@router.post("/v1/responses/input_tokens")
async def input_tokens(request: Request, body: ResponsesRequest) -> dict[str, Any]:
    """Tokens that a request's prompt has."""
    async with server_of(request).registry.use(body.model) as lease:
        asked = await lease.read(_read, body, lease)
        return {"object": "response.input_tokens", "input_tokens": len(asked.ask.prompt_ids)}


def _read(body: ResponsesRequest, lease: Lease) -> ResponsesAsk:
    """Check a body against a model. Raises RequestError."""
    tools, kinds = tools_of(body.tools or [])
    is_parallel = body.parallel_tool_calls is not False
    form = of_response_format(None if body.text is None else body.text.format, "text.format")
    constraint = form_and_calls("text.format", form, tools, body.tool_choice, is_parallel=is_parallel)
    params = sampling(
        body,
        lease.model.defaults,
        max_tokens=or_none(body.max_output_tokens),
        seed=or_none(body.seed),
        temperature=body.temperature,
        top_p=body.top_p,
        constraint=constraint,
        adapter=lease.adapter,
    )
    turns = turns_of(body.input)
    if body.instructions:
        turns = [{"role": "system", "content": body.instructions}, *turns]
    effort = checked_effort("reasoning.effort", None if body.reasoning is None else body.reasoning.effort)
    # A form leaves no room for thoughts before it.
    variables = {} if effort is None else {"enable_thinking": effort and constraint is None}
    shown = [] if body.tool_choice == "none" else tools
    ids = lease.model.encode_chat(one_system(turns), tools=shown or None, template_variables=variables)
    ask = Ask(prompt_ids=ids, params=fitted(params, len(ids), lease), max_calls=None if is_parallel else 1)
    return ResponsesAsk(ask=ask, model=body.model or lease.name, body=body, kinds=kinds)


def _status(reply: Reply) -> str:
    return "incomplete" if reply.finish_reason == "length" else "completed"


def _usage(lease: Lease, found: Written) -> dict[str, Any]:
    assert found.reply is not None
    told = found.reply.usage
    return {
        "input_tokens": told.prompt_tokens,
        "input_tokens_details": {"cached_tokens": told.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": told.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": num_reasoning_tokens(lease, found)},
        "total_tokens": told.prompt_tokens + told.completion_tokens,
    }


def _response(
    asked: ResponsesAsk, output: Sequence[dict[str, Any]], status: str, usage: dict[str, Any] | None
) -> dict[str, Any]:
    body = asked.body
    return {
        "id": asked.id,
        "object": "response",
        "created_at": asked.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": asked.model,
        "output": list(output),
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": None if body.reasoning is None else body.reasoning.model_dump(),
        "store": False,
        "temperature": asked.ask.params.temperature,
        "text": {"format": (body.text.format if body.text else None) or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_p": asked.ask.params.top_p,
        "truncation": "disabled",
        "usage": usage,
        "metadata": body.metadata or {},
    }


class _Told:
    """What a stream has said so far: how its events are numbered, and how it ends where something goes wrong."""

    def __init__(self) -> None:
        self._number = 0
        self._asked: ResponsesAsk | None = None
        self._items: AnswerItems | None = None

    def begun(self, asked: ResponsesAsk, items: AnswerItems) -> list[bytes]:
        """The events that open a stream, once. Mutates self."""
        if self._asked is not None:
            return []
        self._asked, self._items = asked, items
        started = {"response": _response(asked, [], "in_progress", None)}
        return [self.event("response.created", started), self.event("response.in_progress", started)]

    def event(self, kind: str, fields: Mapping[str, Any]) -> bytes:
        """One event. Mutates the number."""
        self._number += 1
        return event({"type": kind, "sequence_number": self._number - 1, **fields}, kind)

    def sign(self) -> bytes:
        """A sign of life: a comment is no event to some agents, and clients want `response.created` to be the first."""
        return COMMENT if self._asked is None else self.event("keepalive", {})

    def failed(self, error: HttpError) -> bytes:
        """How a stream ends that something went wrong with: agents read why from this event and from no other."""
        if self._asked is None or self._items is None:
            return event({"type": "error", "code": str(error.status), "message": error.message, "param": error.param})
        response = _response(self._asked, self._items.done, "failed", None)
        response["error"] = {"code": openai_body(error)["error"]["code"] or "server_error", "message": error.message}
        return self.event("response.failed", {"response": response})


async def _streamed(request: Request, body: ResponsesRequest, told: _Told) -> AsyncGenerator[bytes, None]:
    server = server_of(request)
    async with server.registry.use(body.model) as lease:
        asked = await lease.read(_read, body, lease)
        items, found = AnswerItems(asked.id, asked.kinds), Written()
        # What is wrong with a request shows soon, and has a status of its own; a long prompt takes its time.
        patience_s = server.config.keep_alive_s / 2
        async with aclosing(unless_late(bits(lease, [asked.ask]), patience_s)) as coming:
            async for one in coming:
                for opening in told.begun(asked, items):
                    yield opening
                if one is None:
                    continue
                _, bit = one
                found.add(bit)
                items.take(bit)
                if isinstance(bit, Done):
                    items.close(_status(bit.reply))
                    server.metrics.count(lease.name, bit.reply)
                for kind, fields in items.events:
                    yield told.event(kind, fields)
                items.events.clear()
        status = _status(found.finished)
        last = _response(asked, items.done, status, _usage(lease, found))
        yield told.event(f"response.{status}", {"response": last})
