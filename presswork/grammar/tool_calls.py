"""Replies that consist of tool calls in the syntax of Gemma 4's chat template.

    <|tool_call>call:NAME{key:VALUE,...}<tool_call|>

Source: the template that ships with Gemma 4; presswork.text.parsers reads what is written here.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from presswork.errors import ConstraintError
from presswork.grammar.dialects import CALL_CLOSE, CALL_OPEN, TOOL_CALL
from presswork.grammar.expression import Expression, Mark, literal, repeat, sequence, union
from presswork.grammar.json_schema import DEFAULT_DEPTH, Work, schema_expression
from presswork.grammar.keywords import MAX_SCHEMAS

MAX_TOOLS_WORK = 4 * MAX_SCHEMAS

_NAME = re.compile(r"[^\s{}]+")


def tool_calls_expression(
    tools: Iterable[Mapping[str, Any]],
    *,
    names: Iterable[str] | None = None,
    min_calls: int = 1,
    max_calls: int | None = 1,
    depth: int = DEFAULT_DEPTH,
    work: Work | None = None,
) -> Expression:
    """Replies that call tools with arguments that satisfy their schemas, and say nothing else.

    Args:
        tools: Declarations as in OpenAI's protocol: {"type": "function", "function": {"name", "parameters"}}.
        names: The tools that may be called; without, all.
        min_calls: At least so many calls.
        max_calls: At most so many; None for any number.
        depth: As in `schema_expression`.
        work: What all declarations may take together; mutated. MAX_TOOLS_WORK without.

    Returns: The expression, in which the marks are symbols of their own. Pure.

    Raises: ConstraintError when a declaration is malformed, a name is unknown, or parameters cannot be kept to.
    """
    if min_calls < 0 or (max_calls is not None and max_calls < max(min_calls, 1)):
        raise ConstraintError(
            f"{min_calls} to {max_calls} calls are no range; give 0 <= min_calls <= max_calls, from 1"
        )
    declared: dict[str, Any] = {}
    for place, tool in enumerate(tools):
        name, parameters = _declaration(tool, place)
        if name in declared:
            raise ConstraintError(f"tool {name!r:.60} is declared twice; names must differ")
        declared[name] = parameters
    wanted = list(declared) if names is None else list(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in declared]
    if unknown or not wanted:
        found = f"tool {unknown[0]!r:.60} is not declared" if unknown else "no tool may be called"
        raise ConstraintError(f"{found}; declared are: {', '.join(declared)[:200] or 'none'}")
    work = work or Work(MAX_TOOLS_WORK)
    return repeat(union(*(_call(name, declared[name], depth, work) for name in wanted)), min_calls, max_calls)


def _declaration(tool: Any, place: int) -> tuple[str, Any]:
    """A tool's name and the schema of its arguments."""
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    if not isinstance(function, Mapping):
        raise ConstraintError(
            f'tool {place} is no function; give {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}'
        )
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConstraintError(
            f"tool {place} has the name {name!r:.60}; it must be a string without white space and braces"
        )
    return name, function.get("parameters")


def _call(name: str, parameters: Any, depth: int, work: Work) -> Expression:
    # As in OpenAI's protocol, a tool without parameters takes none.
    described = parameters if parameters is not None and parameters != {} else {"properties": {}}
    try:
        if not isinstance(described, dict) or described.get("type", "object") != "object":
            raise ConstraintError("parameters must be a schema of type object")
        arguments = schema_expression({**described, "type": "object"}, TOOL_CALL, depth=depth, shared=work)
    except ConstraintError as error:
        raise type(error)(f"tool {name!r:.60}: {error}") from None
    return sequence(Mark(CALL_OPEN), literal(f"call:{name}"), arguments, Mark(CALL_CLOSE))
