"""Turning a stream of ids into a stream of final text, and finding stop strings in it."""

import codecs
from collections.abc import Iterable, Sequence

from presswork.errors import RequestError
from presswork.text.tokenizer import Tokenizer


class IncrementalDecoder:
    """Decodes ids as they arrive, giving out only text that no later id can change.

    Invariant: the pushed texts and the flushed one, joined, equal `tokenizer.decode` of all ids, however the ids were
    split (tests/text/test_incremental_decoder.py). Held back are: the start of an unfinished UTF-8 character, a run of
    byte-fallback tokens until it ends (one wrong byte turns the whole run into U+FFFD), and, for tokenizers whose
    decoder is "whole", everything. Work is linear in the number of ids: nothing already given out is decoded again.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, is_continuation: bool = False):
        """Args: is_continuation: the text follows another, so a leading space stays, as in `decode_continuation`."""
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        kinds = {"byte_level": _ByteText, "piecewise": _PieceText, "whole": _WholeText}
        self._text: _ByteText | _PieceText | _WholeText = kinds[tokenizer.decoder_kind](tokenizer)
        if is_continuation and isinstance(self._text, _PieceText):
            self._text.skip_head()

    def push(self, ids: Iterable[int]) -> str:
        """Take more ids; returns the text that became final (often one push behind, '' when nothing did)."""
        return self._text.push(self._tokenizer.visible(ids, self._skip))

    def flush(self) -> str:
        """The text still held back; call once, at the end."""
        return self._text.flush()


class _ByteText:
    """Byte-level BPE: the text is the UTF-8 reading of all tokens' bytes, so only an open character waits."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: list[int]) -> str:
        return self._utf8.decode(b"".join(map(self._tokenizer.token_bytes, ids)))

    def flush(self) -> str:
        return self._utf8.decode(b"", True)


class _PieceText:
    """Tokens with a text each: a run of byte tokens waits for the token that ends it."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._run: list[int] = []
        # Ids seen while there is no text yet: until some appears, a decoder may still be dropping a leading space.
        self._head: list[int] | None = []

    def push(self, ids: list[int]) -> str:
        is_byte = self._tokenizer.byte_values.__contains__
        end = next((n for n in range(len(ids), 0, -1) if not is_byte(ids[n - 1])), 0)
        if end == 0:
            self._run += ids
            return ""
        ready = self._run + ids[:end]
        self._run = ids[end:]
        return self._read(ready)

    def flush(self) -> str:
        ready, self._run = self._run, []
        return self._read(ready)

    def skip_head(self) -> None:
        """Read the first ids as if text stood before them. Mutates self; call before any push."""
        self._head = None

    def _read(self, ids: list[int]) -> str:
        if self._head is None:
            return self._tokenizer.decode_continuation(ids, skip_special_tokens=False)
        self._head += ids
        text = self._tokenizer.decode(self._head, skip_special_tokens=False)
        if text:
            self._head = None
        return text


class _WholeText:
    """Decoders that look at the end of the text, or change it as a whole: everything waits for the flush."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []

    def push(self, ids: list[int]) -> str:
        self._ids += ids
        return ""

    def flush(self) -> str:
        ids, self._ids = self._ids, []
        return self._tokenizer.decode(ids, skip_special_tokens=False)


class StopScanner:
    """Finds the first stop string in a stream of text, giving out only text that cannot be part of one.

    The first stop string is the one that is complete first; of two that end together, the longer. The result does not
    depend on how the text is split. Every character is looked at once per stop string.
    """

    def __init__(self, stops: Sequence[str]):
        """Raises: RequestError when a stop is not a string or is empty."""
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise RequestError(f"stop: got {stops!r}, expected a list of non-empty strings")
        # Longest first, so that the longer of two stops ending together is met first.
        self._stops = sorted(set(stops), key=lambda stop: (-len(stop), stop))
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._held = ""
        self._hit: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text.

        Returns: The text that is safe to show, and the stop string once one is complete. Text from the stop string on
        is dropped, in this push and all later ones.
        """
        if self._hit is not None:
            return "", self._hit
        pending = self._held + text
        for position, character in enumerate(text, start=len(self._held) + 1):
            hit = self._step(character)
            if hit is not None:
                self._hit, self._held = hit, ""
                return pending[: position - len(hit)], hit
        split = len(pending) - max(self._matched, default=0)
        self._held = pending[split:]
        return pending[:split], None

    def flush(self) -> str:
        """The text held back because it might have started a stop string; call once, at the end."""
        held, self._held = self._held, ""
        return held

    def _step(self, character: str) -> str | None:
        """Advance every stop string by one character; returns the one completed."""
        for n, (stop, borders) in enumerate(zip(self._stops, self._borders, strict=True)):
            matched = self._matched[n]
            while matched and stop[matched] != character:
                matched = borders[matched]
            self._matched[n] = matched + (stop[matched] == character)
            if self._matched[n] == len(stop):
                return stop
        return None


def _borders(pattern: str) -> list[int]:
    """For each prefix length, the length of its longest proper prefix that also ends it (Knuth, Morris, Pratt)."""
    borders = [0] * (len(pattern) + 1)
    length = 0
    for n in range(1, len(pattern)):
        while length and pattern[n] != pattern[length]:
            length = borders[length]
        length += pattern[n] == pattern[length]
        borders[n + 1] = length
    return borders
