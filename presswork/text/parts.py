"""A reply's parts as its tokens arrive: reasoning, text and tool calls, each as soon as it is certain.

What comes out, put together, is what `split_reasoning` and `parse_tool_calls` find in the whole reply
(tests/text/test_parts.py), however the tokens were split.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from presswork.text.parsers import (
    CALL_CLOSE,
    CALL_OPEN,
    CHANNEL_CLOSE,
    CHANNEL_OPEN,
    ToolCall,
    name_length,
    read_call,
)
from presswork.text.stream import IncrementalDecoder, StopScanner
from presswork.text.tokenizer import Tokenizer

Kind = Literal["text", "reasoning"]


@dataclass(frozen=True, slots=True)
class Piece:
    """More of a reply's text or of its reasoning."""

    kind: Kind
    text: str


class PartReader:
    """Splits a reply into its parts.

    A tool call is held back until it is whole, a channel's beginning until its name is known.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), *, is_continuation: bool = False):
        """Args:
        stops: strings that end the text; what stands behind the first of them is no part of it.
        is_continuation: as IncrementalDecoder.
        """
        self._tokenizer = tokenizer
        self._outputs = {
            "text": _Output(tokenizer, stops, is_continuation=is_continuation),
            "reasoning": _Output(tokenizer, stops, is_continuation=False),
        }
        self._channel_marks = tokenizer.id_of(CHANNEL_OPEN), tokenizer.id_of(CHANNEL_CLOSE)
        self._call_marks = tokenizer.id_of(CALL_OPEN), tokenizer.id_of(CALL_CLOSE)
        self._name: list[int] | None = None  # of the open channel, while it may still be one
        self._in_channel = False
        self._call: list[int] | None = None
        self._call_places: list[int] = []
        self._found: list[Piece | ToolCall] = []
        self._num_pushed = 0
        self._text_places: list[int] = []

    def push(self, ids: Iterable[int]) -> list[Piece | ToolCall]:
        """Take more tokens; returns what became certain. Mutates self."""
        opening, closing = self._channel_marks
        for token in ids:
            if None not in self._channel_marks and token == opening:
                self._close_channel()
                self._in_channel, self._name = True, []
            elif not self._in_channel:
                self._answer(token)
            elif token == closing:
                self._close_channel()
            else:
                self._reason(token)
            self._num_pushed += 1
        return self._taken()

    def text_places(self) -> list[int]:
        """Which tokens, counted from the reply's first, turned out to be text since this was last asked; ascending.

        Special tokens among them and tokens behind a stop string count too. Mutates self.
        """
        found, self._text_places = self._text_places, []
        return found

    def preview(self, ids: Iterable[int]) -> str:
        """The text that these tokens would add if they were the last; self stays as it is."""
        # The tokenizer is shared, not copied.
        twin = copy.deepcopy(self, {id(self._tokenizer): self._tokenizer})
        found = twin.push(ids) + twin.flush()
        return "".join(part.text for part in found if isinstance(part, Piece) and part.kind == "text")

    def flush(self) -> list[Piece | ToolCall]:
        """What was held back; call once, at the end. A call that was never closed is nothing. Mutates self."""
        self._close_channel()
        self._call = None
        for kind, output in self._outputs.items():
            self._add(kind, output.flush())
        return self._taken()

    def _close_channel(self) -> None:
        if self._name is not None:
            self._write("reasoning", self._name[name_length(self._name, self._tokenizer, is_whole=True) or 0 :])
        self._in_channel, self._name = False, None

    def _reason(self, token: int) -> None:
        if self._name is None:
            self._write("reasoning", [token])
            return
        self._name.append(token)
        length = name_length(self._name, self._tokenizer)
        if length is not None:
            self._write("reasoning", self._name[length:])
            self._name = None

    def _answer(self, token: int) -> None:
        opening, closing = self._call_marks
        if None not in self._call_marks and token == opening:
            self._answer_with(self._call or [], self._call_places)
            self._call, self._call_places = [token], [self._num_pushed]
        elif self._call is None:
            self._answer_with([token], [self._num_pushed])
        else:
            self._call.append(token)
            self._call_places.append(self._num_pushed)
            if token == closing:
                call = read_call(self._call[1:-1], self._tokenizer)
                if call is None:
                    self._answer_with(self._call, self._call_places)
                else:
                    self._found.append(call)
                self._call, self._call_places = None, []

    def _answer_with(self, ids: Sequence[int], places: Sequence[int]) -> None:
        self._text_places += places
        self._write("text", ids)

    def _write(self, kind: Kind, ids: Sequence[int]) -> None:
        self._add(kind, self._outputs[kind].push(ids))

    def _add(self, kind: str, text: str) -> None:
        if not text:
            return
        last = self._found[-1] if self._found else None
        if isinstance(last, Piece) and last.kind == kind:
            self._found[-1] = Piece(last.kind, last.text + text)
        else:
            self._found.append(Piece("text" if kind == "text" else "reasoning", text))

    def _taken(self) -> list[Piece | ToolCall]:
        found, self._found = self._found, []
        return found


class _Output:
    """The text of one kind of tokens, up to a stop string."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], *, is_continuation: bool):
        self._decoder = IncrementalDecoder(tokenizer, is_continuation=is_continuation)
        self._scanner = StopScanner(stops) if stops else None

    def push(self, ids: Iterable[int]) -> str:
        text = self._decoder.push(ids)
        return text if self._scanner is None else self._scanner.push(text)[0]

    def flush(self) -> str:
        text = self._decoder.flush()
        return text if self._scanner is None else self._scanner.push(text)[0] + self._scanner.flush()
