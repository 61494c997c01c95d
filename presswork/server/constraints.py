"""What a body asks a reply to be kept to, as a language of the engine."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from presswork.errors import ConstraintError, RequestError
from presswork.grammar.json_schema import Work
from presswork.grammar.languages import Choices, Either, JsonSchema, Regex, TextLanguage, ToolCalls
from presswork.grammar.tool_calls import MAX_TOOLS_WORK, tool_calls_expression

logger = logging.getLogger(__name__)

_ANY_OBJECT = {"type": "object"}
_ANY_OBJECT_WORK = 2  # of a tool that is called with one
_MAX_PARALLEL_CALLS = 4


def of_response_format(given: Mapping[str, Any] | None, name: str = "response_format") -> TextLanguage | None:
    """OpenAI's response_format; None is free text. Raises RequestError.

    Args: name: of the field that holds it.
    """
    if given is None or given.get("type") == "text":
        return None
    if given.get("type") == "json_object":
        inner = given.get("schema", _ANY_OBJECT)  # llama.cpp's way of naming one
        if not isinstance(inner, Mapping):
            raise RequestError(f"{name}.schema must be an object, got {str(inner)[:80]!r}")
        return JsonSchema(dict(inner))
    if given.get("type") != "json_schema":
        kind = str(given.get("type"))[:40]
        raise RequestError(f"{name}.type must be text, json_object or json_schema, got {kind!r}")
    # The Responses API has the schema beside the type, the chat API one level below.
    holder = given.get("json_schema", given)
    schema = holder.get("schema") if isinstance(holder, Mapping) else None
    if not isinstance(schema, Mapping):
        raise RequestError(f"{name} of type json_schema needs a schema, an object; give one")
    return JsonSchema(dict(schema))


def of_structured_outputs(given: Mapping[str, Any] | None) -> TextLanguage | None:
    """vLLM's structured_outputs: one of json, regex and choice. Raises RequestError."""
    if given is None:
        return None
    if len(given) != 1 or not set(given) <= {"json", "regex", "choice"}:
        raise RequestError(f"structured_outputs takes one of json, regex and choice, got {sorted(given)[:5]}")
    ((kind, value),) = given.items()
    if kind == "json" and isinstance(value, Mapping):
        return JsonSchema(dict(value))
    if kind == "regex" and isinstance(value, str):
        return Regex(value)
    if kind == "choice" and isinstance(value, Sequence) and not isinstance(value, str):
        return Choices(list(value))
    raise RequestError(f"structured_outputs.{kind} is malformed: got {str(value)[:80]!r}")


def of_tool_choice(
    choice: str | Mapping[str, Any] | None, tools: Sequence[Mapping[str, Any]], *, is_parallel: bool
) -> TextLanguage | None:
    """What a tool_choice forces; None where the model may choose. Raises RequestError.

    Args: choice: "auto", "none", "required", or an object that names a function.
    """
    if choice in (None, "auto", "none"):
        return None
    if not tools:
        raise RequestError(f"tool_choice is {choice!r}, and there are no tools; give some")
    if choice == "required":
        return ToolCalls(_usable(tools), max_calls=_MAX_PARALLEL_CALLS if is_parallel else 1)
    name = _named(choice)
    if name is None:
        raise RequestError(f"tool_choice must be auto, none, required or name a function, got {str(choice)[:80]!r}")
    # OpenAI's meaning of a named function: exactly one call of it.
    named = [tool for tool in tools if _tool_name(tool) == name]
    return ToolCalls(_usable(named or tools), names=[name], max_calls=1)


def only_one(languages: Mapping[str, TextLanguage | None]) -> TextLanguage | None:
    """The language that is asked for. Raises RequestError where two fields ask for one."""
    asked = {name: language for name, language in languages.items() if language is not None}
    if len(asked) > 1:
        raise RequestError(f"{' and '.join(asked)} ask for different forms of one reply; leave one of them out")
    return next(iter(asked.values()), None)


def or_calls(
    language: TextLanguage | None, tools: Sequence[Mapping[str, Any]], choice: Any, *, is_parallel: bool
) -> TextLanguage | None:
    """A form of the answer, beside which a model with tools may also call them."""
    if language is None or not tools or choice not in (None, "auto"):
        return language
    calls = ToolCalls(_usable(tools), max_calls=_MAX_PARALLEL_CALLS if is_parallel else 1)
    return Either([language, calls])


def form_and_calls(
    name: str, form: TextLanguage | None, tools: Sequence[Mapping[str, Any]], choice: Any, *, is_parallel: bool
) -> TextLanguage | None:
    """What a reply is kept to by the form of its answer, the tools, and which of them must be called.

    Args: name: of the field that holds the form.
    Raises: RequestError where both ask for something.
    """
    return only_one({
        name: or_calls(form, tools, choice, is_parallel=is_parallel),
        "tool_choice": of_tool_choice(choice, tools, is_parallel=is_parallel),
    })  # fmt: skip


def _usable(tools: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The tools, those whose parameters cannot be kept to with any object for them, unless they say `strict`.

    Agents pass on the tools of others, and cannot change them.
    """
    found: list[Mapping[str, Any]] = []
    work, wasted = Work(MAX_TOOLS_WORK - _ANY_OBJECT_WORK * len(tools)), 0
    for tool in tools:
        function = tool.get("function")
        if isinstance(function, Mapping) and function.get("strict") is not True:
            left = work.left
            try:
                tool_calls_expression([tool], work=work)
            except ConstraintError as error:
                # What is not kept to costs the others nothing, within bounds.
                wasted += left - work.left
                if wasted <= MAX_TOOLS_WORK // 2:
                    work.left = left
                logger.info("the parameters of tool %.60r are not kept to: %s", _tool_name(tool), error)
                tool = {**tool, "function": {**function, "parameters": _ANY_OBJECT}}
        found.append(tool)
    return found


def _tool_name(tool: Mapping[str, Any]) -> Any:
    function = tool.get("function")
    return function.get("name") if isinstance(function, Mapping) else None


def _named(choice: str | Mapping[str, Any] | None) -> str | None:
    if not isinstance(choice, Mapping):
        return None
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
    return name if isinstance(name, str) else None
