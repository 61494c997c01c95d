"""Pinned positions of a request: what is checked before it runs, and which of them lie in a canvas.

V vocabulary, D model width.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import torch
from jaxtyping import Float
from torch import Tensor

from presswork.diffusion.sampler import Pins
from presswork.engine.params import SamplingParams
from presswork.errors import RequestError


def with_ends_held_off(
    params: SamplingParams, end_ids: AbstractSet[int], max_tokens: int, vocab_size: int
) -> SamplingParams:
    """The parameters with min_tokens so high that no end comes before the last pin; pure.

    A last pin that is an end token ends the text itself; an earlier one is a token like any other.

    Raises:
        RequestError: a pin past max_tokens or outside the vocabulary.

    A constraint says itself where texts end.
    """
    if not params.pins:
        return params
    for position, token in params.pins:
        if token >= vocab_size:
            raise RequestError(f"pins: token id {token} at position {position} is not in 0..{vocab_size - 1}")
    last, token = params.pins[-1]
    if last >= max_tokens:
        raise RequestError(
            f"pins reach position {last}, but the context has room for {max_tokens} tokens behind the prompt; "
            "positions count from 0"
        )
    if params.constraint is not None:
        return params
    wanted = last if token in end_ids else last + 1
    return params.changed(min_tokens=max(params.min_tokens, wanted))


def canvas_pins(
    pins: Sequence[tuple[int, int]], first: int, length: int, embedding: Float[Tensor, "V D"]
) -> Pins | None:
    """The pins in a canvas whose first position is the request's `first`, None where there are none; pure."""
    inside = [(position - first, token) for position, token in pins if first <= position < first + length]
    if not inside:
        return None
    positions, tokens = torch.tensor(inside, device=embedding.device).unbind(1)
    return Pins(positions=positions, tokens=tokens, embeddings=embedding[tokens])
