"""From committed tokens to text: where a reply ends, and which text is already certain."""

from collections.abc import Sequence
from dataclasses import dataclass

from presswork.engine.events import FinishReason
from presswork.engine.params import SamplingParams
from presswork.text.stream import IncrementalDecoder, StopScanner
from presswork.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What `OutputText.take` made of the offered tokens: how many it kept, their certain text, and why it ended."""

    num_tokens: int
    text: str
    finish_reason: FinishReason | None = None
    stop_match: str | int | None = None


class OutputText:
    """Cuts a stream of tokens at end tokens, stop strings and max_tokens, and decodes it as it becomes certain."""

    def __init__(self, tokenizer: Tokenizer | None, params: SamplingParams, end_ids: frozenset[int], max_tokens: int):
        self._params, self._end_ids, self._max_tokens = params, end_ids, max_tokens
        # A constraint is about every byte, a leading space too, which some tokenizers drop from a text's beginning.
        is_exact = params.constraint is not None
        self._decoder = None if tokenizer is None else IncrementalDecoder(tokenizer, is_continuation=is_exact)
        self._scanner = StopScanner(params.stop) if params.stop else None
        self.token_ids: list[int] = []

    @property
    def num_left(self) -> int:
        """Tokens that may still be written."""
        return self._max_tokens - len(self.token_ids)

    def take(self, ids: Sequence[int], *, is_last: bool = False) -> Taken:
        """Append tokens until the reply ends or they run out; the last ones end it like max_tokens. Mutates self."""
        pieces: list[str] = []
        for count, token in enumerate(ids, start=1):
            self.token_ids.append(token)
            ended = self._step(token, pieces)
            if ended is not None:
                reason, match = ended
                return Taken(num_tokens=count, text="".join(pieces), finish_reason=reason, stop_match=match)
        if not is_last:
            return Taken(num_tokens=len(ids), text="".join(pieces))
        reason, match = self._cut(pieces)
        return Taken(num_tokens=len(ids), text="".join(pieces), finish_reason=reason, stop_match=match)

    def flush(self) -> tuple[str, str | None]:
        """(text that was held back, stop string found in it); call once, when no more tokens come."""
        tail = "" if self._decoder is None else self._decoder.flush()
        if self._scanner is None:
            return tail, None
        emitted, match = self._scanner.push(tail)
        return (emitted, match) if match is not None else (emitted + self._scanner.flush(), None)

    def _step(self, token: int, pieces: list[str]) -> tuple[FinishReason, str | int | None] | None:
        """Text of one token goes to pieces; returns how the reply ends with it, if it does."""
        count = len(self.token_ids)
        may_stop = count > self._params.min_tokens
        if may_stop and token in self._end_ids:
            text, match = self.flush()
            pieces.append(text)
            return "stop", token if match is None else match
        text = "" if self._decoder is None else self._decoder.push([token])
        match = None
        if self._scanner is not None:
            text, match = self._scanner.push(text) if may_stop else (text, None)
        pieces.append(text)
        if match is not None:
            return "stop", match
        return self._cut(pieces) if count >= self._max_tokens else None

    def _cut(self, pieces: list[str]) -> tuple[FinishReason, str | None]:
        """The reply ends here, unasked. Mutates self; held back text goes to pieces."""
        text, match = self.flush()
        pieces.append(text)
        return ("length", None) if match is None else ("stop", match)
