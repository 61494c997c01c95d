"""Where text is cut in the middle of a token, the model may spell the cut anew.

Text tokenised in parts is not tokenised as a whole is: a line break and the indentation behind it may be one token, and
two that no training text has in a row where the text is cut between them. So what stands in a token at a cut is given
up, and the model may write any token there that begins (left of what it writes) or ends (right of it) with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from presswork.text.tokenizer import Tokenizer

MOST_CHARACTERS = 64  # of a token; longer ones only shorten what is read of a text
SCORED_TOKENS = 32  # of what follows the last gap: enough to tell whether the gap leads into it
_SEEN = 4096  # characters before a gap that can have a say in how what follows it is cut into tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Border:
    """A position at a cut: it repeats the bytes `given`, and may add more; `banned` None means that there is none."""

    given: bytes = b""
    banned: Int[Tensor, "B"] | None = None

    @property
    def num_tokens(self) -> int:
        return 0 if self.banned is None else 1


def opening(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before a text, such as a begin token, without what it puts behind one."""
    marked, plain = tokenizer.encode("a"), tokenizer.encode_plain("a")
    size = len(plain)
    place = next((i for i in range(len(marked) - size + 1) if marked[i : i + size] == plain), 0)
    return marked[:place]


def cut_history(max_context: int, opening: Sequence[int], history: Sequence[int], num_tokens: int) -> list[int]:
    """An opening, and as much of the end of a history as leaves room for so many tokens of a context.

    Where there is no opening one token of the history stays whatever the room, since something must stand before them.
    """
    room = max(max_context - len(opening) - num_tokens, 0 if opening else 1)
    return [*opening, *history[max(0, len(history) - room) :]]


def cut_after(tokenizer: Tokenizer, prefix: str, vocab_size: int) -> tuple[list[int], Border]:
    """(the tokens before a text and its own but for the last, given up; the border behind them); pure.

    A special token spelled out in the text is mere text.
    """
    start, ids = opening(tokenizer), tokenizer.encode_plain(prefix)
    given = tokenizer.all_token_bytes[ids[-1]] if ids else b""
    # Without a token before it the model could not read the border causally.
    if len(start) + len(ids) < 2 or not given or not prefix.encode().endswith(given):
        return start + ids, Border()
    border = _border(tokenizer, given, vocab_size, at_start=True)
    return start + ids[: len(ids) - border.num_tokens], border


def cut_before(tokenizer: Tokenizer, prefix: str, suffix: str, vocab_size: int) -> tuple[list[int], Border]:
    """(the suffix's tokens without what is given up; the border before them); pure.

    The tokens are those the suffix has directly behind the prefix: gaps often end as prefixes do, with a line break or
    within a line. Where one token lies across the cut, its part in the suffix is given up, else the first token.
    """
    text, known = suffix.encode(), tokenizer.all_token_bytes
    backwards: list[int] = []
    num_left = len(text)
    for token in reversed(tokenizer.encode_plain(prefix[-_SEEN:] + suffix)):
        if num_left == 0 or len(known[token]) > num_left:
            break
        backwards.append(token)
        num_left -= len(known[token])
    ids, given = backwards[::-1], text[:num_left]
    border = _border(tokenizer, given or b"".join(known[token] for token in ids[:1]), vocab_size, at_start=False)
    is_spelled = b"".join(known[token] for token in ids) == text[num_left:]
    if not is_spelled or (given and border.banned is None):
        # A tokenizer that normalises has other bytes.
        return tokenizer.encode_plain(suffix), Border()
    return (ids if given else ids[border.num_tokens :]), border


def _border(tokenizer: Tokenizer, given: bytes, vocab_size: int, *, at_start: bool) -> Border:
    """No border where nothing is given up, or no other token begins or ends with it."""
    found = tokenizer.ids_that_begin_with if at_start else tokenizer.ids_that_end_with
    allowed = [i for i in found(given) if i < vocab_size] if given else []
    if not allowed or [tokenizer.all_token_bytes[i] for i in allowed] == [given]:
        return Border()
    is_banned = torch.ones(vocab_size, dtype=torch.bool)
    is_banned[allowed] = False
    return Border(given=given, banned=is_banned.nonzero()[:, 0])
