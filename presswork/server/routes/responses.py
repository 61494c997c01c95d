"""OpenAI's responses, without memory: what a conversation was is in the request."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from presswork.engine.events import Done, Reply
from presswork.errors import RequestError
from presswork.server.constraints import of_response_format, of_tool_choice, only_one
from presswork.server.errors import HttpError
from presswork.server.generation import Ask, Bit, Written, bits, num_reasoning_tokens, written
from presswork.server.registry import Lease
from presswork.server.routes.common import new_id, now, server_of, streamed, whole
from presswork.server.sse import event, readable
from presswork.server.wire import CanvasFields, refuse, sampling
from presswork.text.parsers import ToolCall
from presswork.text.parts import Piece

router = APIRouter()


class ResponsesRequest(CanvasFields):
    """A body of POST /v1/responses."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    # Honoured by doing nothing: nothing is stored, so there is nothing to store, include or find again.
    store: bool | None = None
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
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
    """A request as the engine takes it, and what its answer repeats of it."""

    ask: Ask
    model: str
    body: ResponsesRequest
    id: str = field(default_factory=lambda: new_id("resp").replace("-", "_"))
    created: int = field(default_factory=now)


@router.post("/v1/responses")
async def responses(request: Request, body: ResponsesRequest) -> Response:
    """Answer a list of items."""
    refuse(body, _NEUTRAL)
    server = server_of(request)
    if body.stream:
        return await streamed(request, _streamed(request, body), _error_event)

    async def answer() -> Response:
        async with server.registry.use(body.model) as lease:
            asked = _read(body, lease)
            (found,) = await written(lease, [asked.ask])
            assert found.reply is not None
            server.metrics.count(lease.name, found.reply)
            items = _Items(asked.id)
            for bit in (Piece("reasoning", found.reasoning), Piece("text", found.text), *found.calls):
                if not isinstance(bit, Piece) or bit.text:
                    items.take(bit)
            items.close()
            return JSONResponse(_response(asked, items.done, _status(found.reply), _usage(lease, found)))

    return await whole(request, answer())


def _read(body: ResponsesRequest, lease: Lease) -> ResponsesAsk:
    """Check a body against a model. Raises RequestError."""
    # Agents declare tools that only the original service runs; those are left out.
    tools = [_tool(tool) for tool in body.tools or [] if tool.get("type") == "function"]
    constraint = only_one({
        "text.format": of_response_format((body.text or {}).get("format")),
        "tool_choice": of_tool_choice(body.tool_choice, tools, is_parallel=bool(body.parallel_tool_calls)),
    })  # fmt: skip
    params = sampling(
        body,
        lease.model.defaults,
        max_tokens=body.max_output_tokens,
        seed=body.seed,
        temperature=body.temperature,
        top_p=body.top_p,
        constraint=constraint,
        adapter=lease.adapter,
    )
    turns = turns_of(body.input)
    if body.instructions:
        turns = [{"role": "system", "content": body.instructions}, *turns]
    effort = (body.reasoning or {}).get("effort")
    variables = {} if effort is None else {"enable_thinking": effort not in ("none", "instant", "minimal")}
    shown = [] if body.tool_choice == "none" else tools
    ids = lease.model.encode_chat(turns, tools=shown or None, template_variables=variables)
    return ResponsesAsk(ask=Ask(prompt_ids=ids, params=params), model=body.model or lease.name, body=body)


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(tool.get("name"), str):
        raise RequestError(f"a tool of type function needs a name, got {str(tool)[:80]!r}")
    function = {
        "name": tool["name"],
        "description": tool.get("description") or "",
        "parameters": tool.get("parameters") or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function}


def turns_of(given: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Items as turns that templates read. Raises RequestError for items that cannot be read as such."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    turns: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for number, item in enumerate(given):
        where, kind = f"input[{number}]", item.get("type", "message")
        if kind == "message":
            turns.append({"role": item.get("role"), "content": _content(item.get("content"), where)})
        elif kind == "function_call":
            name, call_id = str(item.get("name")), str(item.get("call_id"))
            names[call_id] = name
            function = {"name": name, "arguments": item.get("arguments") or "{}"}
            call = {"id": call_id, "type": "function", "function": function}
            # Calls in a row are one turn.
            if turns and turns[-1].get("tool_calls"):
                turns[-1]["tool_calls"].append(call)
            else:
                turns.append({"role": "assistant", "content": "", "tool_calls": [call]})
        elif kind == "function_call_output":
            call_id = str(item.get("call_id"))
            if call_id not in names:
                raise RequestError(f"{where}: call_id {call_id[:60]!r} names no call before it")
            text = _content(item.get("output"), where)
            turns.append({"role": "tool", "tool_call_id": call_id, "name": names[call_id], "content": text})
        elif kind == "item_reference":
            raise RequestError(f"{where}: nothing is stored here that could be referred to; send the item itself")
        # Reasoning of earlier turns, and calls of tools that run elsewhere, are no part of a prompt.
    return turns


def _content(given: Any, where: str) -> str:
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise RequestError(f"{where}: content must be a text or a list of parts, got {str(given)[:80]!r}")
    texts = []
    for part in given:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("input_text", "output_text", "text") or not isinstance(part.get("text"), str):
            raise RequestError(f"{where}: parts of type {str(kind)[:40]!r} are not supported here; send text")
        texts.append(part["text"])
    return "\n".join(texts)


@dataclass(slots=True)
class _Items:
    """Output items as they open, grow and close, and the events that say so."""

    response_id: str
    done: list[dict[str, Any]] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    _kind: str | None = None
    _text: str = ""

    def take(self, bit: Bit) -> None:
        """Take in one more bit. Mutates self."""
        if isinstance(bit, Piece):
            self._open(bit.kind)
            self._text += bit.text
            for piece in readable(bit.text):
                self._tell(f"response.{_DELTAS[bit.kind]}.delta", delta=piece, content_index=0, **self._logprobs())
        elif isinstance(bit, ToolCall):
            self.close()
            self._call(bit)

    def close(self) -> None:
        """Finish the item that is open. Mutates self."""
        if self._kind is None:
            return
        name, part = _DELTAS[self._kind], _part(self._kind, self._text)
        self._tell(f"response.{name}.done", text=self._text, content_index=0, **self._logprobs())
        self._tell("response.content_part.done", part=part, content_index=0)
        item = self._item("completed", [part])
        self._tell("response.output_item.done", item=item)
        self.done.append(item)
        self._kind, self._text = None, ""

    def _open(self, kind: str) -> None:
        if self._kind == kind:
            return
        self.close()
        self._kind = kind
        self._tell("response.output_item.added", item=self._item("in_progress", []))
        self._tell("response.content_part.added", part=_part(kind, ""), content_index=0)

    def _logprobs(self) -> dict[str, Any]:
        return {"logprobs": []} if self._kind == "text" else {}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        if self._kind == "reasoning":
            return {"id": self._id("rs"), "type": "reasoning", "summary": [], "content": content, "status": status}
        head = {"id": self._id("msg"), "type": "message", "role": "assistant"}
        return {**head, "status": status, "content": content}

    def _call(self, call: ToolCall) -> None:
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        item = {"id": self._id("fc"), "type": "function_call", "call_id": self._id("call"), "name": call.name}
        self._tell("response.output_item.added", item={**item, "arguments": "", "status": "in_progress"})
        for piece in readable(arguments):
            self._tell("response.function_call_arguments.delta", delta=piece)
        self._tell("response.function_call_arguments.done", arguments=arguments, name=call.name)
        whole = {**item, "arguments": arguments, "status": "completed"}
        self._tell("response.output_item.done", item=whole)
        self.done.append(whole)

    def _id(self, kind: str) -> str:
        return f"{kind}_{self.response_id.partition('_')[2]}_{len(self.done)}"

    def _tell(self, kind: str, **fields: Any) -> None:
        told: dict[str, Any] = {"type": kind, "output_index": len(self.done), **fields}
        if "item" not in fields:
            told["item_id"] = self._id({"reasoning": "rs", "text": "msg"}.get(self._kind or "", "fc"))
        self.events.append((kind, told))


_DELTAS = {"text": "output_text", "reasoning": "reasoning_text"}


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


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
        "parallel_tool_calls": bool(body.parallel_tool_calls),
        "previous_response_id": None,
        "reasoning": body.reasoning,
        "store": False,
        "temperature": asked.ask.params.temperature,
        "text": body.text or {"format": {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_p": asked.ask.params.top_p,
        "truncation": "disabled",
        "usage": usage,
        "metadata": body.metadata or {},
    }


async def _streamed(request: Request, body: ResponsesRequest) -> AsyncIterator[bytes]:
    server = server_of(request)
    async with server.registry.use(body.model) as lease:
        asked = _read(body, lease)
        items, found, number = _Items(asked.id), Written(), 0

        def told(kind: str, fields: dict[str, Any]) -> bytes:
            nonlocal number
            number += 1
            return event({"type": kind, "sequence_number": number - 1, **fields}, kind)

        async for _, bit in bits(lease, [asked.ask]):
            if number == 0:
                started = {"response": _response(asked, [], "in_progress", None)}
                yield told("response.created", started)
                yield told("response.in_progress", started)
            found.add(bit)
            items.take(bit)
            if isinstance(bit, Done):
                items.close()
                server.metrics.count(lease.name, bit.reply)
            for kind, fields in items.events:
                yield told(kind, fields)
            items.events.clear()
        assert found.reply is not None
        status = _status(found.reply)
        yield told(f"response.{status}", {"response": _response(asked, items.done, status, _usage(lease, found))})


def _error_event(error: HttpError) -> bytes:
    return event({"type": "error", "code": str(error.status), "message": error.message, "param": error.param}, "error")
