"""Conversations as templates take them, out of what clients send."""

from collections.abc import Mapping, Sequence
from typing import Any

from presswork.errors import RequestError

_SYSTEM = ("system", "developer")


def one_system(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The turns with one system turn at most, which is the first.

    Agents send several, and some in the middle of a conversation; templates refuse that, or make turns of them that no
    model was trained on. Those at the beginning are joined; what comes later is added to the user turn before it, so
    that the beginning stays what it was.
    """
    found = [dict(turn) for turn in turns]
    first = next((i for i, turn in enumerate(found) if turn.get("role") not in _SYSTEM), len(found))
    made: list[dict[str, Any]] = []
    if first:
        texts = [plain_text(turn.get("content"), f"messages[{i}]") for i, turn in enumerate(found[:first])]
        made.append({**found[0], "role": "system", "content": "\n\n".join(texts)})
    for place, turn in enumerate(found[first:], start=first):
        if turn.get("role") not in _SYSTEM:
            made.append(turn)
            continue
        text = plain_text(turn.get("content"), f"messages[{place}]")
        note = f"<system-reminder>\n{text}\n</system-reminder>"
        if made and made[-1].get("role") == "user":
            before = plain_text(made[-1].get("content"), f"messages[{place - 1}]")
            made[-1] = {**made[-1], "content": f"{before}\n\n{note}"}
        else:
            made.append({"role": "user", "content": note})
    return made


def chat_turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI's turns as templates read them: results know which function they are of, and are text.

    What is malformed is left for the template's own checks.
    """
    turns: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for number, message in enumerate(messages):
        turn = dict(message)
        if turn.get("role") == "tool":
            turn["content"] = result_text(turn.get("content"), f"messages[{number}]")
            known = names.get(str(turn.get("tool_call_id")))
            if known is not None and not turn.get("name"):
                turn["name"] = known
        elif turn.get("role") == "assistant":
            turn["content"] = _said(turn.get("content"))
            for one in turn.get("tool_calls") or []:
                function = one.get("function") if isinstance(one, Mapping) else None
                if isinstance(function, Mapping):
                    names[str(one.get("id"))] = str(function.get("name"))
        turns.append(turn)
    return turns


def _said(content: Any) -> Any:
    """What an assistant said: nothing is a text too, and so is a refusal."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return content
    return [
        {"type": "text", "text": part["refusal"]}
        if isinstance(part, Mapping) and part.get("type") == "refusal" and isinstance(part.get("refusal"), str)
        else part
        for part in content
    ]  # fmt: skip


def chat_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI's tools with everything that templates read of them; malformed ones stay as they are."""
    made = []
    for tool in tools:
        function = tool.get("function")
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            plain = declaration(function["name"], function.get("description"), function.get("parameters"))
            made.append({**tool, **plain, "function": {**function, **plain["function"]}})
        else:
            made.append(dict(tool))
    return made


def result_text(content: Any, where: str) -> str:
    """What a tool gave, as text. Pictures and files are named and left out: a conversation goes on without them.

    Raises: RequestError for what is neither text nor a list of parts.
    """
    if content is None:
        return ""
    if isinstance(content, list):
        content = [_named_part(part) for part in content]
    return plain_text(content, where)


def _named_part(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str) or isinstance(part.get("text"), str):
        return part
    return {"type": "text", "text": f"[{kind[:40]} left out: this model reads text]"}


def declaration(name: str, description: Any, parameters: Any, strict: Any = None) -> dict[str, Any]:
    """A tool as templates read it; `strict` asks that calls are kept to the parameters, or the request refused."""
    function = {
        "name": name,
        "description": description or "",
        "parameters": parameters or {"type": "object", "properties": {}},
        **({"strict": True} if strict is True else {}),
    }
    return {"type": "function", "function": function}


def call(call_id: str, name: str, arguments: Any) -> dict[str, Any]:
    """One call of an assistant's turn."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(call_id: str, names: Mapping[str, str], where: str, field: str, text: str) -> dict[str, Any]:
    """What a tool gave, as a turn of its own.

    Args: names: functions of the calls before it, by id. field: in which the client names the call.
    Raises: RequestError where there was no such call.
    """
    if call_id not in names:
        raise RequestError(f"{where}: {field} {call_id[:60]!r} names no call before it")
    return {"role": "tool", "tool_call_id": call_id, "name": names[call_id], "content": text}


def plain_text(content: Any, where: str) -> str:
    """A content that is text, or parts of it. Raises RequestError for anything else."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise RequestError(f"{where}.content must be a text or a list of parts of type text")
    return "\n".join(text for text in texts if text is not None)
