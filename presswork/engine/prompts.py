"""Prompts as people give them: texts, conversations, token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from presswork.engine.events import Reply
from presswork.errors import RequestError, UnsupportedError
from presswork.text.chat import ChatTemplate
from presswork.text.parsers import parse_tool_calls, split_reasoning
from presswork.text.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]


class PromptReader:
    """Turns prompts into token ids, and replies to conversations back into their parts."""

    def __init__(self, tokenizer: Tokenizer | None, template: ChatTemplate | None, name: str):
        self._tokenizer, self._template, self._name = tokenizer, template, name

    def read(self, prompt: object, prompt_token_ids: object, raw: bool) -> tuple[list[list[int]], bool]:
        """(token ids of each prompt, whether a single one was given). Raises RequestError."""
        if (prompt is None) == (prompt_token_ids is None):
            raise RequestError("give either a prompt text (or a list of texts) or prompt_token_ids")
        if isinstance(prompt, str):
            return [self.encode(prompt, raw=raw)], True
        if isinstance(prompt, Sequence):
            if not all(isinstance(text, str) for text in prompt):
                raise RequestError("prompt must be a text or a list of texts; token ids go into prompt_token_ids")
            return [self.encode(text, raw=raw) for text in prompt], False
        if not isinstance(prompt_token_ids, Sequence) or isinstance(prompt_token_ids, (str, bytes)):
            raise RequestError(f"prompt_token_ids must be a list of token ids, got {type(prompt_token_ids).__name__}")
        if prompt_token_ids and isinstance(prompt_token_ids[0], Sequence):
            return [list(ids) for ids in prompt_token_ids], False
        return [list(prompt_token_ids)], True

    def encode(self, text: str, *, raw: bool) -> list[int]:
        """A text as one user turn where there is a chat template, unless raw."""
        if self._template is not None and not raw:
            return self.chat([{"role": "user", "content": text}], None, None)
        return self.ids(text, add_special_tokens=True)

    def chat(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None, variables: Mapping[str, Any] | None
    ) -> list[int]:
        """A conversation through the chat template. Raises UnsupportedError, TemplateError."""
        if self._template is None:
            raise UnsupportedError(f"model {self._name!r} has no chat template; use generate with plain text")
        checked = self._template.check_variables(variables or {})
        text = self._template.render(messages, tools=None if tools is None else list(tools), **checked)
        return self.ids(text, add_special_tokens=False)

    def ids(self, value: str | Sequence[int], *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text; ids are taken as they are. Raises UnsupportedError."""
        if not isinstance(value, str):
            return list(value)
        if self._tokenizer is None:
            raise UnsupportedError(f"model {self._name!r} has no tokenizer; give token ids")
        return self._tokenizer.encode(value, add_special_tokens=add_special_tokens)

    def parse(self, reply: Reply) -> Reply:
        """The reply with reasoning and tool calls taken out of its text."""
        if self._tokenizer is None:
            return reply
        reasoning, answer = split_reasoning(reply.token_ids, self._tokenizer)
        calls, rest = parse_tool_calls(answer, self._tokenizer)
        if reasoning is None and not calls:
            return reply
        text = self._tokenizer.decode(rest)
        if isinstance(reply.stop_match, str):
            text = text.partition(reply.stop_match)[0]
        return replace(
            reply,
            text=text,
            reasoning=None if reasoning is None else self._tokenizer.decode(reasoning),
            tool_calls=calls,
        )
