"""Where text is cut in the middle of a token, the model may spell the cut anew.

Text tokenised in parts is not tokenised as a whole is: a line break and the indentation behind it may be one token, and
two that no training text has in a row where the text is cut between them. So what stands in a token at a cut is given
up, and the model may write any token there that begins (left of what it writes) or ends (right of it) with it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from presswork.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Border:
    """A position at a cut: it repeats the bytes `given`, and may add more; `banned` None means that there is none."""

    given: bytes = b""
    banned: Int[Tensor, "B"] | None = None

    @property
    def num_tokens(self) -> int:
        return 0 if self.banned is None else 1


def cut_after(tokenizer: Tokenizer, prefix: str, vocab_size: int) -> tuple[list[int], Border]:
    """(the prefix's tokens, special ones included, but for the last, given up; the border behind them); pure."""
    ids = tokenizer.encode(prefix)
    given = tokenizer.all_token_bytes[ids[-1]] if ids else b""
    # Without a token before it the model could not read the border causally.
    if len(ids) < 2 or not prefix.encode().endswith(given):
        return ids, Border()
    border = _border(tokenizer, given, vocab_size, at_start=True)
    return ids[: len(ids) - border.num_tokens], border


def cut_before(tokenizer: Tokenizer, prefix: str, suffix: str, vocab_size: int) -> tuple[list[int], Border]:
    """(the suffix's tokens without what is given up; the border before them); pure.

    The tokens are those the suffix has directly behind the prefix: gaps often end as prefixes do, with a line break or
    within a line. Where one token lies across the cut, its part in the suffix is given up, else the first token.
    """
    text, known = suffix.encode(), tokenizer.all_token_bytes
    backwards: list[int] = []
    num_left = len(text)
    for token in reversed(tokenizer.encode(prefix + suffix, add_special_tokens=False)):
        if num_left == 0 or len(known[token]) > num_left:
            break
        backwards.append(token)
        num_left -= len(known[token])
    ids, given = backwards[::-1], text[:num_left]
    border = _border(tokenizer, given or b"".join(known[token] for token in ids[:1]), vocab_size, at_start=False)
    is_spelled = b"".join(known[token] for token in ids) == text[num_left:]
    if not is_spelled or (given and border.banned is None):
        # Special tokens have no bytes, and a tokenizer that normalises has others.
        return tokenizer.encode(suffix, add_special_tokens=False), Border()
    return (ids if given else ids[border.num_tokens :]), border


def _border(tokenizer: Tokenizer, given: bytes, vocab_size: int, *, at_start: bool) -> Border:
    """No border where nothing is given up, or no other token begins or ends with it."""
    fits = bytes.startswith if at_start else bytes.endswith
    allowed = [i for i, text in enumerate(tokenizer.all_token_bytes[:vocab_size]) if given and fits(text, given)]
    if not allowed or [tokenizer.all_token_bytes[i] for i in allowed] == [given]:
        return Border()
    is_banned = torch.ones(vocab_size, dtype=torch.bool)
    is_banned[allowed] = False
    return Border(given=given, banned=is_banned.nonzero()[:, 0])
