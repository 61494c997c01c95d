"""Rendering chat messages into a prompt with the template that came with the checkpoint."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import jinja2
from jinja2.exceptions import SecurityError

from presswork.errors import CheckpointError, RequestError, TemplateError, UnsupportedError
from presswork.text.files import read_json_object, read_text
from presswork.text.sandbox import RefusedByTemplate, TemplateEnvironment
from presswork.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# What foreign template code may raise while it runs: jinja2's own errors and those of Python's operators.
_RENDER_FAULTS = (
    jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError,
    MemoryError,
)  # fmt: skip
_COMPILE_FAULTS = (jinja2.TemplateError, SyntaxError, RecursionError, ValueError, OverflowError)
_UNSUPPORTED_PARTS = ("image", "audio", "video", "file", "document")


_SYSTEM_ROLES = ("system", "developer")


class ChatTemplate:
    """A checkpoint's chat template; load it with `from_folder`.

    Templates run in a sandbox; what a rendering may cost at most is written in `presswork.text.sandbox`.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        *,
        special_tokens: Mapping[str, str] | None = None,
        origin: str = "chat template",
    ):
        """Compile a template.

        Args:
            source: The template, or several by name: "tool_use" is taken when there are tools, otherwise "default".
            special_tokens: Variables such as {"bos_token": "<bos>"}.
            origin: What messages call the template: its file.

        Raises: CheckpointError when a template does not compile, or there are several and none is "default".
        """
        sources = {"default": source} if isinstance(source, str) else dict(source)
        if "default" not in sources:
            raise CheckpointError(f"{origin}: chat templates {sorted(sources)}, expected one named 'default'; add it")
        self._origin = origin
        self._special_tokens = dict(special_tokens or {})
        self._environment = TemplateEnvironment()
        self._templates = {name: self._compile(text) for name, text in sources.items()}

    @classmethod
    def from_folder(cls, path: str | Path, tokenizer: Tokenizer) -> "ChatTemplate | None":
        """The template in chat_template.jinja, else under `chat_template` in tokenizer_config.json, else None.

        Raises: CheckpointError naming the file when it cannot be read or does not compile.
        """
        folder = Path(path)
        file = folder / "chat_template.jinja"
        if file.exists():
            return cls(read_text(file), special_tokens=tokenizer.special_tokens, origin=str(file))
        file = folder / "tokenizer_config.json"
        source = read_json_object(file).get("chat_template")
        if source is None:
            return None
        return cls(_configured(source, file), special_tokens=tokenizer.special_tokens, origin=str(file))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt for a conversation; encode it with `add_special_tokens=False`.

        Messages reach the template as given, with one exception: tool-call arguments in JSON text become objects,
        because templates walk through them.

        Args:
            messages: Each with a `role`, and `content` (text, or a list of text parts), `tool_calls` or `reasoning`.
            tools: Function declarations.
            add_generation_prompt: End with the opening of the model's turn.
            variables: Whatever else the template reads, such as `enable_thinking=True`.

        Raises:
            RequestError: The messages or tools are malformed.
            UnsupportedError: A part is an image or another medium.
            TemplateError: The template refused them, failed, or was stopped at a bound.
        """
        checked = check_messages(messages)
        if tools is not None and not (_is_list(tools) and all(isinstance(tool, Mapping) for tool in tools)):
            raise RequestError("tools: expected a list of function declarations (objects); check the request")
        values = {
            "documents": None, **self._special_tokens, **variables, "messages": checked,
            "tools": list(tools or []) or None, "add_generation_prompt": add_generation_prompt,
        }  # fmt: skip
        template = self._templates.get("tool_use" if tools else "default", self._templates["default"])
        try:
            return self._environment.render_bounded(template, values)
        except TemplateError:
            raise
        except _RENDER_FAULTS as error:
            raise self._failure(error) from error

    def check_variables(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of a caller's template variables. Raises RequestError for names that are not theirs to set."""
        reserved = {"self", "messages", "tools", "add_generation_prompt", "documents", *self._special_tokens}
        for name in variables:
            if not isinstance(name, str) or name in reserved or name in self._environment.globals:
                raise RequestError(f"template_variables: {name!r} cannot be set; give what the template itself reads")
        return dict(variables)

    def _compile(self, text: str) -> jinja2.Template:
        try:
            return self._environment.from_string(text)
        except _COMPILE_FAULTS as error:
            line = getattr(error, "lineno", None)
            where = f"line {line}: " if line else ""
            raise CheckpointError(
                f"{self._origin}: the chat template does not compile ({where}{_one_line(error)}); fetch the model again"
            ) from error

    def _failure(self, error: BaseException) -> TemplateError:
        if isinstance(error, RefusedByTemplate):
            return TemplateError(f"messages: refused by the chat template ({_one_line(error)}); change the messages")
        if isinstance(error, SecurityError):
            return TemplateError(f"the chat template did something unsafe ({_one_line(error)})")
        what = f"{type(error).__name__}: {_one_line(error)}"
        logger.info("%s failed on messages: %s", self._origin, what)
        return TemplateError(
            f"the chat template failed on these messages ({what}); check their fields, or the template"
        )


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies of the messages, after checking what no template can be trusted to check.

    Raises: RequestError naming the message and field; UnsupportedError for images and other media.
    """
    if not _is_list(messages) or not messages:
        raise RequestError(f"messages: got {_shown(messages)}, expected a list with at least one message")
    return [_checked_message(message, f"messages[{n}]") for n, message in enumerate(messages)]


def _checked_message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{where}: got {_shown(message)}, expected an object with role and content")
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
    if not isinstance(role, str) or not role:
        raise RequestError(f"{where}.role: got {_shown(role)}, expected a name such as 'user' or 'assistant'")
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    if content is None and not calls and not reasoning:
        raise RequestError(f"{where}: no content; give content (text or parts) or tool_calls")
    if _is_list(content):
        for n, part in enumerate(content):
            _check_part(part, f"{where}.content[{n}]")
    elif content is not None and not isinstance(content, str):
        raise RequestError(f"{where}.content: got {_shown(content)}, expected text or a list of parts")
    checked = dict(message)
    if isinstance(reasoning, str):
        # Templates call it one or the other, and so do clients.
        checked["reasoning"] = checked["reasoning_content"] = reasoning
    if role in _SYSTEM_ROLES and _is_list(content):
        # Templates trim this content as a string; a list would reach the prompt as Python shows lists.
        checked["content"] = "".join(part.get("text", "") for part in content)
    if calls is not None:
        if not _is_list(calls):
            raise RequestError(f"{where}.tool_calls: got {_shown(calls)}, expected a list of calls")
        checked["tool_calls"] = [_checked_call(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(calls)]
    return checked


def _check_part(part: Any, where: str) -> None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        raise RequestError(f"{where}: got {_shown(part)}, expected an object such as {{'type': 'text', 'text': ...}}")
    if any(medium in kind for medium in _UNSUPPORTED_PARTS):
        raise UnsupportedError(
            f"{where}: a part of type {kind!r}; images and other media are not supported yet, send text"
        )
    if kind != "text" or not isinstance(part.get("text"), str):
        raise RequestError(f"{where}: got a part of type {kind!r}, expected type 'text' with a text")


def _checked_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError(f"{where}: got {_shown(call)}, expected {{'function': {{'name': ..., 'arguments': ...}}}}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{where}.function.arguments: not JSON ({error}); send a JSON object") from error
    if not isinstance(arguments, Mapping):
        raise RequestError(f"{where}.function.arguments: got {_shown(arguments)}, expected an object or its JSON text")
    return {**call, "function": {**function, "arguments": dict(arguments)}}


def _configured(source: Any, file: Path) -> str | dict[str, str]:
    """tokenizer_config.json holds one template, or a list of {"name": ..., "template": ...}."""
    if isinstance(source, str):
        return source
    named: dict[str, str] = {}
    for entry in source if _is_list(source) else [source]:
        name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, Mapping) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str):
            raise CheckpointError(
                f"{file}: in chat_template got {_shown(entry)}, expected text, or names and templates"
            )
        named[name] = text
    return named


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
