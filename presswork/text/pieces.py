"""A canvas in pieces that can be shown: whole characters, each with the tokens that hold it."""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

from presswork.text.tokenizer import Tokenizer

_MAX_UTF8 = 4


def until_end(ids: Sequence[int], end_ids: AbstractSet[int]) -> Sequence[int]:
    """A canvas up to its first end token."""
    return ids[: next((i for i, token in enumerate(ids) if token in end_ids), len(ids))]


def pieces(tokenizer: Tokenizer | None, ids: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    """(text, first position, position after the last): a character split over several tokens is one piece.

    Special tokens have no text: they would be shown by name, and noise is full of them.
    """
    first, pending = 0, b""
    for position, token in enumerate(ids):
        data = b"" if tokenizer is None or token in tokenizer.special_ids else tokenizer.token_bytes(token)
        try:
            text = (pending + data).decode()
        except UnicodeDecodeError as error:
            # An unfinished character may still be completed by the next token.
            if error.end == len(pending + data) and len(pending + data) - error.start < _MAX_UTF8:
                pending += data
                continue
            text = (pending + data).decode(errors="replace")
        yield text, first, position + 1
        first, pending = position + 1, b""
    if pending:
        yield "", first, len(ids)
