"""Items of the Responses API: a request's as turns and tools, an answer's as they open, grow and close."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from presswork.errors import RequestError
from presswork.server.generation import Bit
from presswork.server.sse import readable
from presswork.server.turns import call, declaration, plain_text, result, result_text
from presswork.text.parsers import ToolCall
from presswork.text.parts import Piece

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ToolKind:
    """What a client calls a tool: of which kind, by which name, in which namespace."""

    kind: str
    name: str
    namespace: str | None = None


def tools_of(given: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, ToolKind]]:
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
    return declaration(tool["name"], tool.get("description"), tool.get("parameters"), tool.get("strict"))


# What was said or done elsewhere, and is no part of a prompt.
_SKIPPED = (
    "web_search_call", "file_search_call", "computer_call", "computer_call_output", "image_generation_call",
    "code_interpreter_call", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "mcp_call",
    "local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output", "apply_patch_call",
    "apply_patch_call_output", "tool_search_call", "tool_search_output", "additional_tools", "program",
    "program_output",
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
class AnswerItems:
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
