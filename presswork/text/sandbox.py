"""The Jinja environment that chat templates run in: no way out to Python, and a bound on what one rendering can cost.

A template comes with a checkpoint, so it is foreign code. The sandbox forbids private attributes, changing arguments
and loading files. Bounded per rendering: the length of a range, loop passes and calls together, the size of what
`+`, `*`, `**` and `~` produce, and the size of the output. Not bounded: one filter, string method or `%` asked for
a huge result (`"x".ljust(10 ** 9)`), which costs memory in proportion.
"""

import json
from collections.abc import Mapping, Sized
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from presswork.errors import TemplateError

# About ten seconds at worst; a conversation of a thousand messages stays far below.
MAX_STEPS = 5_000_000
MAX_CHARACTERS = 64_000_000
MAX_EXPONENT = 64
MAX_BITS = 4096
# No template can name this variable: it is not an identifier.
_BUDGET = "rendering budget"


class _Budget:
    """Steps one rendering may still take."""

    def __init__(self) -> None:
        self.steps_left = MAX_STEPS


class _GenerationTag(Extension):
    """`{% generation %}` marks assistant text for training masks; in a prompt its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it without ClassVar.

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _StepCounting(NodeTransformer):
    """Rewrites a parsed template so that every loop pass is a call, and every `~` one that checks its size."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_environment_call("count_step", [], node.lineno), lineno=node.lineno))
        if node.test is not None:  # Items that the condition drops never reach the body.
            node.test = nodes.And(_environment_call("count_step", [], node.lineno), node.test, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _environment_call("join_text", node.nodes, node.lineno)


def _environment_call(name: str, arguments: list[nodes.Expr], lineno: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name, lineno=lineno)
    return nodes.Call(function, arguments, [], None, None, lineno=lineno)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Jinja as chat templates expect it (trimmed tags, loop controls, tojson, raise_exception), with bounds."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, _GenerationTag])
        self.filters["tojson"] = to_json
        self.globals.pop("lipsum")
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def render_bounded(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """The template's text.

        Raises: TemplateError past a bound, and whatever the template itself raises.
        """
        parts, size = [], 0
        for part in template.generate({**variables, _BUDGET: _Budget()}):
            size += len(part)
            if size > MAX_CHARACTERS:
                raise _too_costly(f"more than {MAX_CHARACTERS} characters of output")
            parts.append(part)
        return "".join(parts)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = context.parent[_BUDGET]
        budget.steps_left -= 1
        if budget.steps_left < 0:
            raise _too_costly(f"more than {MAX_STEPS} loop passes and calls")
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            _check_power(left, right)
        elif operator == "*":
            _check_product(left, right)
        elif hasattr(left, "__len__") and hasattr(right, "__len__"):
            _check_size(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    @staticmethod
    def count_step() -> bool:
        """Called on every loop pass; the call itself is what counts."""
        return True

    @staticmethod
    def join_text(*values: object) -> str:
        """The `~` operator."""
        texts = [str(value) for value in values]
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        # jinja2 names this method as the place to change what is compiled.
        return super()._generate(_StepCounting().visit(source), *args, **kwargs)


class RefusedByTemplate(jinja2.TemplateError):
    """A template called raise_exception."""


def to_json(
    value: object, ensure_ascii: bool = False, indent: int | str | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
    """The `tojson` filter: plain JSON, without the HTML escapes of jinja2's own."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    raise RefusedByTemplate(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and (abs(right) > MAX_EXPONENT or abs(left) > MAX_RANGE):
        raise _too_costly(f"a power of numbers above {MAX_RANGE} or to more than {MAX_EXPONENT}")


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MAX_BITS:
            raise _too_costly(f"a product of more than {MAX_BITS} bits")
        return
    for value, times in ((left, right), (right, left)):
        if isinstance(value, Sized) and isinstance(times, int):
            _check_size(len(value) * times)


def _check_size(size: int) -> None:
    if size > MAX_CHARACTERS:
        raise _too_costly(f"a value of more than {MAX_CHARACTERS} characters or items")


def _too_costly(what: str) -> TemplateError:
    return TemplateError(f"chat template: stopped at {what}; use a template that does less, or shorter messages")
