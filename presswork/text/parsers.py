r"""What a reply's token ids hold besides its answer: reasoning channels and tool calls.

Both are found by token id, so text that merely spells a mark is never mistaken for one.

    <|channel>thought\n REASONING <channel|> ANSWER
    <|tool_call>call:NAME{key:VALUE,...}<tool_call|>

where a VALUE is <|"|>text<|"|>, true, false, null, a number, [VALUE,...] or {key:VALUE,...}.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from presswork.text.tokenizer import Tokenizer

CHANNEL_OPEN, CHANNEL_CLOSE, CHANNEL_NAME = "<|channel>", "<channel|>", "thought\n"
CALL_OPEN, CALL_CLOSE, QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
MAX_DEPTH = 32

_NAME = re.compile(r"\s*call:([^\s{}]+)\s*\{")
_KEY = re.compile(r"\s*([^\s{}\[\],:][^{}\[\],:]*):")
_WORD = re.compile(r"[^\s{}\[\],:]+")
_SPACE = re.compile(r"\s*")
_INTEGER = re.compile(r"-?[0-9]{1,300}\Z")
_NUMBER = re.compile(r"-?[0-9]{1,300}(\.[0-9]{1,300})?([eE][+-]?[0-9]{1,3})?\Z")
_CONSTANTS = {"true": True, "false": False, "null": None, "None": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A function the model wants called."""

    name: str
    arguments: dict[str, Any]


def split_reasoning(token_ids: Sequence[int], tokenizer: Tokenizer) -> tuple[list[int] | None, list[int]]:
    """Separate what a reply says inside channel marks from the rest.

    A channel that the reply never closes runs to its end; the reasoning of several channels is put together.

    Returns: The reasoning without marks and channel name (None when there is no channel), and the other ids in order.
    """
    opening, closing = tokenizer.id_of(CHANNEL_OPEN), tokenizer.id_of(CHANNEL_CLOSE)
    ids = list(token_ids)
    if opening is None or closing is None or opening not in ids:
        return None, ids
    reasoning: list[int] = []
    answer: list[int] = []
    channel: list[int] | None = None
    for token_id in ids:
        if token_id == opening:
            reasoning += _without_name(channel or [], tokenizer)
            channel = []
        elif channel is None:
            answer.append(token_id)
        elif token_id == closing:
            reasoning += _without_name(channel, tokenizer)
            channel = None
        else:
            channel.append(token_id)
    return reasoning + _without_name(channel or [], tokenizer), answer


def name_length(channel: Sequence[int], tokenizer: Tokenizer, *, is_whole: bool = False) -> int | None:
    """How many of a channel's first ids are its name, None while more ids could make one of them; pure.

    A token that holds the name's newline and more white space goes with it. Of a channel that is whole already, a name
    without its newline is one too.
    """
    text = tokenizer.decode(channel)
    if text.startswith(CHANNEL_NAME):
        return len(channel) if not text[len(CHANNEL_NAME) :].strip() else 0
    if not CHANNEL_NAME.startswith(text):
        return 0
    if not is_whole:
        return None
    return len(channel) if text == CHANNEL_NAME.strip() else 0


def _without_name(channel: list[int], tokenizer: Tokenizer) -> list[int]:
    """The channel's ids after its name."""
    for count in range(1, len(channel) + 1):
        length = name_length(channel[:count], tokenizer)
        if length is not None:
            return channel[length:]
    return channel[name_length(channel, tokenizer, is_whole=True) or 0 :]


def parse_tool_calls(token_ids: Sequence[int], tokenizer: Tokenizer) -> tuple[list[ToolCall], list[int]]:
    """Take the tool calls out of a reply.

    A call that is malformed or never closed is no call: its ids, marks included, stay where they were.

    Returns: The calls in order, and the remaining ids.
    """
    opening, closing = tokenizer.id_of(CALL_OPEN), tokenizer.id_of(CALL_CLOSE)
    calls: list[ToolCall] = []
    rest: list[int] = []
    if opening is None or closing is None:
        return calls, list(token_ids)
    pending: list[int] | None = None
    for token_id in token_ids:
        if token_id == opening:
            rest += pending or []
            pending = [token_id]
        elif pending is None:
            rest.append(token_id)
        else:
            pending.append(token_id)
            if token_id == closing:
                call = read_call(pending[1:-1], tokenizer)
                if call is None:
                    rest += pending
                else:
                    calls.append(call)
                pending = None
    return calls, rest + (pending or [])


def read_call(ids: list[int], tokenizer: Tokenizer) -> ToolCall | None:
    """The call between two marks, None where it is malformed."""
    reader = _Reader(_segments(ids, tokenizer))
    try:
        name = reader.match(_NAME).group(1)
        arguments = reader.members(depth=1)
        reader.end()
    except _MalformedError:
        return None
    return ToolCall(name=name, arguments=arguments)


def _segments(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    """The call's text cut at quote tokens: even entries are syntax, odd ones the strings between quotes."""
    quote = tokenizer.id_of(QUOTE)
    if quote is None:
        return tokenizer.decode(ids, skip_special_tokens=False).split(QUOTE)
    pieces: list[list[int]] = [[]]
    for token_id in ids:
        if token_id == quote:
            pieces.append([])
        else:
            pieces[-1].append(token_id)
    return [tokenizer.decode(piece, skip_special_tokens=False) for piece in pieces]


class _MalformedError(ValueError):
    """The text between the marks is no tool call; never leaves this module."""


class _Reader:
    """Reads values from left to right: over the characters of syntax segments, and whole string segments."""

    def __init__(self, segments: list[str]):
        self._segments = segments
        self._segment = 0
        self._position = 0

    def match(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = pattern.match(self._segments[self._segment], self._position)
        if found is None:
            raise _MalformedError(pattern.pattern)
        self._position = found.end()
        return found

    def take(self, mark: str) -> bool:
        """Step over a mark and the white space before it, if it comes next."""
        self.match(_SPACE)
        if not self._segments[self._segment].startswith(mark, self._position):
            return False
        self._position += len(mark)
        return True

    def text(self) -> str | None:
        """The string that comes next, if one does."""
        self.match(_SPACE)
        at_end = self._position == len(self._segments[self._segment])
        if not at_end or self._segment + 2 >= len(self._segments):
            return None
        self._segment += 2
        self._position = 0
        return self._segments[self._segment - 1]

    def members(self, depth: int) -> dict[str, Any]:
        """`key:VALUE,...}` after the opening brace."""
        found: dict[str, Any] = {}
        for _ in self._items("}"):
            key = self.text()
            if key is None:
                key = self.match(_KEY).group(1).strip()
            elif not self.take(":"):
                raise _MalformedError("no colon after a key")
            found[key] = self.value(depth)
        return found

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise _MalformedError("nested too deeply")
        string = self.text()
        if string is not None:
            return string
        if self.take("{"):
            return self.members(depth + 1)
        if self.take("["):
            return [self.value(depth + 1) for _ in self._items("]")]
        return _bare(self.match(_WORD).group())

    def end(self) -> None:
        self.match(_SPACE)
        if (self._segment, self._position) != (len(self._segments) - 1, len(self._segments[-1])):
            raise _MalformedError("text after the call")

    def _items(self, closing: str) -> Iterator[None]:
        """Once for each comma-separated item, which the caller reads, until the closing mark."""
        if self.take(closing):
            return
        yield
        while self.take(","):
            yield
        if not self.take(closing):
            raise _MalformedError(f"no {closing}")


def _bare(word: str) -> bool | int | float | None:
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    if _INTEGER.match(word):
        return int(word)
    if _NUMBER.match(word) and math.isfinite(float(word)):
        return float(word)
    raise _MalformedError(word)
