"""OpenAI's responses, without memory: what a conversation was is in the request."""

import json
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from presswork.engine.events import Done, Reply
from presswork.errors import RequestError
from presswork.server.constraints import form_and_calls, of_response_format
from presswork.server.errors import HttpError, openai_body
from presswork.server.generation import Ask, Bit, Written, bits, fitted, num_reasoning_tokens, unless_late
from presswork.server.registry import Lease
from presswork.server.routes.common import checked_effort, counted, new_id, now, server_of, streamed, whole
from presswork.server.sse import COMMENT, event, readable
from presswork.server.turns import call, declaration, one_system, plain_text, result, result_text
from presswork.server.wire import CanvasFields, Listed, Wire, or_none, refuse, sampling
from presswork.text.parsers import ToolCall
from presswork.text.parts import Piece

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True, slots=True)
class ToolKind:
    """What a client calls a tool: of which kind, by which name, in which namespace."""

    kind: str
    name: str
    namespace: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesAsk:
    """A request as the engine takes it, and what its answer repeats of it.

    Args: kinds: of each tool that is not called as a plain function, by the name that the model knows.
    """

    ask: Ask
    model: str
    body: ResponsesRequest
    kinds: "Mapping[str, ToolKind]"
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
            items = _Items(asked.id, asked.kinds)
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
    tools, kinds = _tools(body.tools or [])
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


def _tools(given: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, ToolKind]]:
    """(declarations as templates read them; what those are to the client that are no plain functions).

    Agents declare tools that only the original service runs; those are left out. A namespace is a list of functions,
    which the model knows by both names; a custom tool takes one text.
    """
    made: list[dict[str, Any]] = []
    kinds: dict[str, ToolKind] = {}
    for tool in given:
        kind = tool.get("type")
        if kind == "function":
            made.append(_tool(tool))
        elif kind == "custom":
            parameters = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
            made.append(_tool({**tool, "parameters": parameters}))
            kinds[tool["name"]] = ToolKind("custom", tool["name"])
        elif kind == "namespace":
            _add_namespace(tool, made, kinds)
        else:
            logger.info("a tool of type %.40r is not run here and left out", kind)
    return made, kinds


def _add_namespace(tool: Mapping[str, Any], made: list[dict[str, Any]], kinds: dict[str, ToolKind]) -> None:
    """The functions of a namespace. Mutates made and kinds. Raises RequestError."""
    inners = tool.get("tools") or []
    if not isinstance(tool.get("name"), str) or not isinstance(inners, list):
        raise RequestError(f"a namespace needs a name and a list of tools, got {str(tool)[:80]!r}")
    for inner in inners:
        if not isinstance(inner, Mapping) or inner.get("type") != "function":
            logger.info("a tool of %.40r that is no function is left out", tool["name"])
            continue
        plain = _tool(inner)
        name = _joined(tool["name"], inner["name"])
        plain["function"]["name"] = name
        made.append(plain)
        kinds[name] = ToolKind("function", inner["name"], tool["name"])


def _joined(namespace: Any, name: str) -> str:
    """The name that the model knows a function by: two namespaces may have functions of one name."""
    if not isinstance(namespace, str) or not namespace:
        return name
    return f"{namespace}{name}" if namespace.endswith("_") else f"{namespace}__{name}"


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(tool.get("name"), str):
        raise RequestError(f"a tool needs a name, got {str(tool)[:80]!r}")
    return declaration(tool["name"], tool.get("description"), tool.get("parameters"))


# What was said or done elsewhere, and is no part of a prompt.
_SKIPPED = (
    "web_search_call", "file_search_call", "computer_call", "computer_call_output", "image_generation_call",
    "code_interpreter_call", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "mcp_call",
)  # fmt: skip
_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
_OUTPUTS = ("function_call_output", "custom_tool_call_output")


def turns_of(given: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Items as turns that templates read. Raises RequestError for items that cannot be read as such."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    turns: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    thoughts: list[str] = []
    for number, item in enumerate(given):
        where, kind = f"input[{number}]", item.get("type") or ("message" if "role" in item else "item_reference")
        if not isinstance(kind, str):
            raise RequestError(f"{where}.type must be a name, got {str(kind)[:40]!r}")
        if kind == "message":
            turns.append({"role": item.get("role"), "content": _content(item.get("content"), where)})
        elif kind in _CALLS:
            _add_call(turns, names, item, kind)
        elif kind in _OUTPUTS:
            text = result_text(item.get("output"), where)
            turns.append(result(str(item.get("call_id")), names, where, "call_id", text))
        elif kind == "reasoning":
            parts = item.get("content")
            thoughts = [str(part.get("text")) for part in parts if isinstance(part, Mapping)] if _is_list(parts) else []
            continue
        elif kind == "item_reference":
            raise RequestError(f"{where}: nothing is stored here that could be referred to; send the item itself")
        elif kind not in _SKIPPED:
            raise RequestError(f"{where}: items of type {str(kind)[:40]!r} are not supported here; leave them out")
        if thoughts and turns and turns[-1]["role"] == "assistant":
            turns[-1]["reasoning"] = "\n".join(thoughts)
        thoughts = []
    return turns


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _add_call(turns: list[dict[str, Any]], names: dict[str, str], item: Mapping[str, Any], kind: str) -> None:
    """A call belongs to the turn that the assistant is in. Mutates turns and names."""
    name, call_id = _joined(item.get("namespace"), str(item.get("name"))), str(item.get("call_id"))
    names[call_id] = name
    arguments = item.get(_CALLS[kind])
    if kind == "custom_tool_call":
        arguments = {"input": arguments}
    if not (turns and turns[-1]["role"] == "assistant"):
        turns.append({"role": "assistant", "content": ""})
    turns[-1].setdefault("tool_calls", []).append(call(call_id, name, arguments or "{}"))


def _content(given: Any, where: str) -> str:
    parts = []
    for part in given if isinstance(given, list) else []:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("input_text", "output_text", "text", "refusal"):
            raise RequestError(f"{where}: parts of type {str(kind)[:40]!r} are not supported here; send text")
        parts.append({"text": part.get("refusal")} if kind == "refusal" else part)
    return plain_text(parts or given, where)


@dataclass(slots=True)
class _Items:
    """Output items as they open, grow and close, and the events that say so."""

    response_id: str
    kinds: Mapping[str, ToolKind] = field(default_factory=dict)
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

    def close(self, status: str = "completed") -> None:
        """Finish the item that is open. Mutates self."""
        if self._kind is None:
            return
        name, part = _DELTAS[self._kind], _part(self._kind, self._text)
        self._tell(f"response.{name}.done", text=self._text, content_index=0, **self._logprobs())
        self._tell("response.content_part.done", part=part, content_index=0)
        item = self._item(status, [part])
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
        own = self.kinds.get(call.name, ToolKind("function", call.name))
        if own.kind == "custom":
            kind, name, value = "custom_tool_call", "input", str(call.arguments.get("input", ""))
            told = "response.custom_tool_call_input"
        else:
            kind, name, value = "function_call", "arguments", json.dumps(call.arguments, ensure_ascii=False)
            told = "response.function_call_arguments"
        item = {"id": self._id("fc"), "type": kind, "call_id": self._id("call"), "name": own.name}
        if own.namespace is not None:
            item["namespace"] = own.namespace
        self._tell("response.output_item.added", item={**item, name: "", "status": "in_progress"})
        for piece in readable(value):
            self._tell(f"{told}.delta", delta=piece)
        self._tell(f"{told}.done", **{name: value}, **({"name": own.name} if name == "arguments" else {}))
        whole = {**item, name: value, "status": "completed"}
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
        self._items: _Items | None = None

    def begun(self, asked: ResponsesAsk, items: _Items) -> list[bytes]:
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
        items, found = _Items(asked.id, asked.kinds), Written()
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
