"""Anthropic's messages."""

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from presswork.engine.events import Done, Draft, Reply
from presswork.errors import RequestError
from presswork.server.constraints import form_and_calls, of_response_format
from presswork.server.errors import HttpError, anthropic_body
from presswork.server.generation import Ask, Bit, Logprobs, State, Written, bits, fitted
from presswork.server.registry import Lease
from presswork.server.routes.common import counted, new_id, server_of, streamed, whole
from presswork.server.sse import event, readable
from presswork.server.turns import call, declaration, one_system, plain_text, result, result_text
from presswork.server.wire import CanvasFields, Listed, Wire, refuse, sampling
from presswork.text.parsers import ToolCall
from presswork.text.parts import Piece

router = APIRouter()

# Changes with every request of Claude Code, and would keep every prompt from being found again.
_BILLING = "x-anthropic-billing-header:"


class OutputConfig(Wire):
    """What an answer is to be like; effort is a hint that changes nothing here."""

    effort: str | None = None
    format: dict[str, Any] | None = None
    task_budget: dict[str, Any] | None = None


class CountRequest(Wire):
    """A body of POST /v1/messages/count_tokens."""

    messages: Listed[dict[str, Any]]
    model: str | None = None
    system: str | Listed[dict[str, Any]] | None = None
    tools: Listed[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    context_management: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None
    mcp_servers: Listed[dict[str, Any]] | None = None
    speed: str | None = None
    user_profile_id: str | None = None


class MessagesRequest(CanvasFields):
    """A body of POST /v1/messages."""

    max_tokens: int
    messages: Listed[dict[str, Any]]
    model: str | None = None
    system: str | Listed[dict[str, Any]] | None = None
    stop_sequences: Listed[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    tools: Listed[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    # Honoured by doing nothing: about whoever sends the request, or about a cache that needs no telling here.
    metadata: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None
    diagnostics: dict[str, Any] | None = None
    user_profile_id: str | None = None
    # Refused where they ask for anything.
    service_tier: str | None = None
    context_management: dict[str, Any] | None = None
    container: str | dict[str, Any] | None = None
    mcp_servers: Listed[dict[str, Any]] | None = None
    speed: str | None = None
    inference_geo: str | None = None


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "service_tier": ("auto", "standard_only"), "container": (), "mcp_servers": ([],), "speed": ("standard",),
    "inference_geo": (),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesAsk:
    """A request as the engine takes it.

    Args: is_cut: the context leaves less than max_tokens.
    """

    ask: Ask
    model: str
    is_cut: bool
    id: str = field(default_factory=lambda: new_id("msg"))


@router.post("/v1/messages")
async def messages(request: Request, body: MessagesRequest) -> Response:
    """Answer a conversation."""
    refuse(body, _NEUTRAL)
    server = server_of(request)
    if body.stream:
        request_id = request.scope["state"]["request_id"]

        def on_error(error: HttpError) -> bytes:
            return event(anthropic_body(error, request_id), "error")

        return await streamed(request, _streamed(request, body), on_error, lambda: event({"type": "ping"}, "ping"))

    async def answer() -> Response:
        async with server.registry.use(body.model) as lease:
            asked = await lease.read(_read, body, lease)
            (found,) = await counted(request, lease, [asked.ask])
            return JSONResponse(_message(asked, found))

    return await whole(request, answer())


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request, body: CountRequest) -> dict[str, int]:
    """Tokens that a conversation's prompt has."""
    async with server_of(request).registry.use(body.model) as lease:
        return {"input_tokens": len(await lease.read(_prompt_ids, body, lease))}


def _read(body: MessagesRequest, lease: Lease) -> MessagesAsk:
    """Check a body against a model. Raises RequestError."""
    _check_context_management(body.context_management)
    tools = [_tool(tool, number) for number, tool in enumerate(body.tools or [])]
    choice = body.tool_choice or {}
    kinds = {None: None, "auto": "auto", "none": "none", "any": "required", "tool": {"name": choice.get("name")}}
    if not isinstance(choice.get("type"), str | None) or choice.get("type") not in kinds:
        raise RequestError(f"tool_choice.type must be auto, any, tool or none, got {str(choice.get('type'))[:40]!r}")
    is_parallel = choice.get("disable_parallel_tool_use") is not True
    wanted = kinds[choice.get("type")]
    name = "output_config.format"
    form = of_response_format(None if body.output_config is None else body.output_config.format, name)
    constraint = form_and_calls(name, form, tools, wanted, is_parallel=is_parallel)
    params = sampling(
        body,
        lease.model.defaults,
        max_tokens=body.max_tokens,
        seed=body.seed,
        temperature=body.temperature,
        top_p=body.top_p,
        stop=body.stop_sequences,
        constraint=constraint,
        adapter=lease.adapter,
    )
    ids = _prompt_ids(body, lease, can_think=constraint is None)
    room = fitted(params, len(ids), lease)
    return MessagesAsk(
        ask=Ask(prompt_ids=ids, params=room, max_calls=None if is_parallel else 1),
        model=body.model or lease.name,
        is_cut=room.max_tokens != params.max_tokens,
    )


def _prompt_ids(body: MessagesRequest | CountRequest, lease: Lease, *, can_think: bool = True) -> list[int]:
    """A conversation as the model reads it; a last turn of the assistant's is gone on with."""
    turns = turns_of(body.messages)
    if body.system is not None:
        turns = [{"role": "system", "content": _system(body.system)}, *turns]
    turns = one_system(turns)
    tools = [_tool(tool, number) for number, tool in enumerate(body.tools or [])]
    if (body.tool_choice or {}).get("type") == "none":
        tools = []
    thinking = (body.thinking or {}).get("type")
    if thinking not in (None, "enabled", "disabled", "adaptive"):
        raise RequestError(f"thinking.type must be enabled, adaptive or disabled, got {str(thinking)[:40]!r}")
    # A form leaves no room for thoughts before it.
    variables = {} if thinking is None else {"enable_thinking": can_think and thinking != "disabled"}
    begun = ""
    if turns and turns[-1]["role"] == "assistant" and not turns[-1].get("tool_calls"):
        begun = turns.pop()["content"] or ""
    ids = lease.model.encode_chat(turns, tools=tools or None, template_variables=variables)
    if begun:
        assert lease.model.tokenizer is not None
        ids = ids + lease.model.tokenizer.encode_plain(begun)
    return ids


def _system(given: str | list[dict[str, Any]]) -> str:
    if isinstance(given, str):
        return given
    return plain_text([block for block in given if not str(block.get("text")).startswith(_BILLING)], "system")


def turns_of(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Anthropic's turns as templates read them: tool uses are calls, their results turns of their own.

    Raises: RequestError.
    """
    turns: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for number, message in enumerate(given):
        where, role, content = f"messages[{number}]", message.get("role"), message.get("content")
        if role not in ("user", "assistant", "system"):
            raise RequestError(f"{where}.role must be user or assistant, got {str(role)[:40]!r}")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(blocks, list):
            raise RequestError(f"{where}.content must be a text or a list of blocks, got {str(content)[:80]!r}")
        turns += _turns_of(where, str(role), blocks, names)
    return turns


def _turns_of(where: str, role: str, blocks: Sequence[Any], names: dict[str, str]) -> list[dict[str, Any]]:
    """The turns of one message. Mutates names, the functions of calls by id."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, block in enumerate(blocks):
        at = f"{where}.content[{number}]"
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking") or ""))
        elif kind == "redacted_thinking":
            continue  # nothing here can read it
        elif kind == "tool_use" and role == "assistant":
            names[str(block.get("id"))] = str(block.get("name"))
            calls.append(call(str(block.get("id")), str(block.get("name")), block.get("input") or {}))
        elif kind == "tool_result" and role == "user":
            text = result_text(block.get("content"), at)
            shown = f"Error: {text}" if block.get("is_error") else text
            results.append(result(str(block.get("tool_use_id")), names, at, "tool_use_id", shown))
        else:
            raise RequestError(f"{at}: blocks of type {str(kind)[:40]!r} are not supported here; send text")
    turns = list(results)
    if texts or calls or thoughts or not results:
        turn: dict[str, Any] = {"role": role, "content": "\n".join(texts)}
        if thoughts:
            turn["reasoning"] = "\n".join(thoughts)
        turns.append({**turn, "tool_calls": calls} if calls else turn)
    return turns


def _tool(tool: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A declaration as templates read it. Raises RequestError for tools that this server does not run."""
    if tool.get("type") not in (None, "custom") or not isinstance(tool.get("name"), str):
        shown = str(tool.get("type") or tool)[:60]
        raise RequestError(f"tools[{number}]: {shown!r} is not served here; give functions, with name and input_schema")
    return declaration(tool["name"], tool.get("description"), tool.get("input_schema"), tool.get("strict"))


def _check_context_management(given: Mapping[str, Any] | None) -> None:
    """Raises RequestError where anything but earlier thinking is to be taken out: templates leave that out anyway."""
    edits = (given or {}).get("edits") or []
    if not isinstance(edits, list):
        raise RequestError(f"context_management.edits must be a list, got {str(edits)[:60]!r}")
    kinds = [str(one.get("type")) if isinstance(one, Mapping) else str(one) for one in edits]
    wrong = [kind for kind in kinds if not kind.startswith("clear_thinking")]
    if wrong:
        raise RequestError(f"context_management: {wrong[0][:60]!r} is not done here; leave it out")


def _message(asked: MessagesAsk, found: Written) -> dict[str, Any]:
    assert found.reply is not None
    content: list[dict[str, Any]] = []
    num_calls = 0
    for part in found.parts:
        if isinstance(part, ToolCall):
            content.append(_tool_use(asked.id, num_calls, part))
            num_calls += 1
        elif part.kind == "reasoning":
            content.append({"type": "thinking", "thinking": part.text, "signature": ""})
        else:
            content.append({"type": "text", "text": part.text})
    return {
        **_head(asked),
        "content": content,
        **_stop(asked, found.reply, has_calls=num_calls > 0),
        "usage": _usage(found.reply),
    }


def _head(asked: MessagesAsk) -> dict[str, Any]:
    return {"id": asked.id, "type": "message", "role": "assistant", "model": asked.model}


def _stop(asked: MessagesAsk, reply: Reply, *, has_calls: bool) -> dict[str, Any]:
    if reply.finish_reason == "length":
        return {"stop_reason": "model_context_window_exceeded" if asked.is_cut else "max_tokens", "stop_sequence": None}
    if isinstance(reply.stop_match, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": reply.stop_match}
    return {"stop_reason": "tool_use" if has_calls else "end_turn", "stop_sequence": None}


def _usage(reply: Reply) -> dict[str, int]:
    usage = reply.usage
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }


def _tool_use(reply_id: str, number: int, call: ToolCall) -> dict[str, Any]:
    name = f"toolu_{reply_id.rpartition('-')[2]}_{number}"
    return {"type": "tool_use", "id": name, "name": call.name, "input": call.arguments}


async def _streamed(request: Request, body: MessagesRequest) -> AsyncGenerator[bytes, None]:
    server = server_of(request)
    async with server.registry.use(body.model) as lease:
        asked = await lease.read(_read, body, lease)
        blocks = _Blocks(asked.id)
        begun = False
        async with aclosing(bits(lease, [asked.ask])) as coming:
            async for _, bit in coming:
                if not begun:
                    begun = True
                    usage = {"input_tokens": len(asked.ask.prompt_ids), "output_tokens": 0}
                    empty = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
                    yield event({"type": "message_start", "message": {**_head(asked), **empty}}, "message_start")
                for one in blocks.events(bit):
                    yield one
                if isinstance(bit, Done):
                    server.metrics.count(lease.name, bit.reply)
                    delta = _stop(asked, bit.reply, has_calls=blocks.num_calls > 0)
                    last = {"type": "message_delta", "delta": delta, "usage": _usage(bit.reply)}
                    yield event(last, "message_delta")
        yield event({"type": "message_stop"}, "message_stop")


@dataclass(slots=True)
class _Blocks:
    """Content blocks as they open, grow and close.

    Args:
        open_kind: of the block that is open, None where none is.
    """

    reply_id: str
    index: int = -1
    open_kind: str | None = None
    num_calls: int = 0

    def events(self, bit: Bit) -> list[bytes]:
        """The events that one more bit makes. Mutates self."""
        if isinstance(bit, Piece):
            kind, name = ("thinking", "thinking") if bit.kind == "reasoning" else ("text", "text")
            made = self._opened(kind, {"type": kind, name: "", **({"signature": ""} if kind == "thinking" else {})})
            return made + [self._delta({"type": f"{kind}_delta", name: piece}) for piece in readable(bit.text)]
        if isinstance(bit, ToolCall):
            told = _tool_use(self.reply_id, self.num_calls, bit)
            self.num_calls += 1
            made = self._closed() + self._opened("tool_use", {**told, "input": {}})
            pieces = readable(json.dumps(bit.arguments, ensure_ascii=False))
            made += [self._delta({"type": "input_json_delta", "partial_json": piece}) for piece in pieces]
            return made + self._closed()
        if isinstance(bit, (Draft, State, Logprobs)):
            return []
        return self._closed()

    def _opened(self, kind: str, block: dict[str, Any]) -> list[bytes]:
        if self.open_kind == kind:
            return []
        made = self._closed()
        self.index, self.open_kind = self.index + 1, kind
        start = {"type": "content_block_start", "index": self.index, "content_block": block}
        return [*made, event(start, "content_block_start")]

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return event({"type": "content_block_delta", "index": self.index, "delta": delta}, "content_block_delta")

    def _closed(self) -> list[bytes]:
        if self.open_kind is None:
            return []
        self.open_kind = None
        return [event({"type": "content_block_stop", "index": self.index}, "content_block_stop")]
