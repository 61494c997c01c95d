"""Where text is cut in the middle of a token, the model may spell the cut anew.

Text tokenised in parts is not tokenised as a whole is: "total" behind a line break may be one token with it, and two
tokens that no training text has in a row where the text is cut between them. So the token at a cut is given up, and
the model may write any token there that begins (left of what it writes) or ends (right of it) with the same bytes.
It may write the same token again, so nothing is lost.
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
    """(the prefix's tokens, special ones included, without what is given up; the border behind them); pure."""
    ids = tokenizer.encode(prefix)
    if len(ids) < 2 or not prefix.encode().endswith(tokenizer.all_token_bytes[ids[-1]]):
        # Without a token before it the model could not read the border causally.
        return ids, Border()
    border = _border(tokenizer, ids[-1], vocab_size, at_start=True)
    return ids[: len(ids) - border.num_tokens], border


def cut_before(tokenizer: Tokenizer, suffix: str, vocab_size: int) -> tuple[list[int], Border]:
    """(the suffix's tokens without what is given up; the border before them); pure."""
    ids = tokenizer.encode(suffix, add_special_tokens=False)
    if not ids or not suffix.encode().startswith(tokenizer.all_token_bytes[ids[0]]):
        return ids, Border()
    border = _border(tokenizer, ids[0], vocab_size, at_start=False)
    return ids[border.num_tokens :], border


def _border(tokenizer: Tokenizer, token: int, vocab_size: int, *, at_start: bool) -> Border:
    """No border where the token has no text, or no other token begins or ends with it."""
    given = tokenizer.all_token_bytes[token]
    fits = bytes.startswith if at_start else bytes.endswith
    allowed = [i for i, text in enumerate(tokenizer.all_token_bytes[:vocab_size]) if given and fits(text, given)]
    if len(allowed) < 2:
        return Border()
    is_banned = torch.ones(vocab_size, dtype=torch.bool)
    is_banned[allowed] = False
    return Border(given=given, banned=is_banned.nonzero()[:, 0])
