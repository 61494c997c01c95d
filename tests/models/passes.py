"""Runs passes of our model in tests the way an engine would: embedded rows of several sequences, one after the other.

N rows, D model width, V vocabulary, n KV heads, S stored positions, h head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from presswork.cache.contiguous import SequenceCache
from presswork.models.attention import CachedAttention, Segment
from presswork.models.transformer import PassRows, Transformer


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The rows of one sequence in a pass: a chunk of prompt or a canvas.

    Args:
        position: absolute position of the first row; None means right after what the cache holds.
    """

    cache: SequenceCache
    x: Float[Tensor, "N D"]
    is_canvas: bool
    position: int | None = None


def ids(num: int, seed: int, low: int = 3, high: int = 60) -> Int[Tensor, "N"]:
    """Random token ids; the default range is that of the parity fixture's prompts."""
    return torch.randint(low, high, (num,), generator=torch.Generator().manual_seed(seed))


def prompt(model: Transformer, cache: SequenceCache, tokens: Int[Tensor, "N"]) -> Piece:
    """Causal rows, appended to the cache by the pass."""
    return Piece(cache=cache, x=model.embed_prompt(tokens), is_canvas=False)


def canvas(
    model: Transformer, cache: SequenceCache, tokens: Int[Tensor, "N"], belief: Float[Tensor, "N V"] | None = None,
    position: int | None = None,
) -> Piece:  # fmt: skip
    """Canvas rows; belief is the previous step's divided logits."""
    soft = None if belief is None else soft_embedding(model, belief)
    return Piece(cache=cache, x=model.embed_canvas(tokens, soft), is_canvas=True, position=position)


def soft_embedding(model: Transformer, logits: Float[Tensor, "N V"]) -> Float[Tensor, "N D"]:
    """softmax in float32, rounded to the weights' dtype, times the decoder's embedding."""
    embedding = model.decoder.embedding
    return torch.softmax(logits.float(), dim=-1).to(embedding.dtype) @ embedding


def run(
    model: Transformer, pieces: Sequence[Piece], output_rows: Int[Tensor, "M"] | None = None
) -> Float[Tensor, "M D"]:
    """One pass over all pieces; the final hidden states of the wanted rows, in order."""
    positions, is_canvas, segments = [], [], []
    start = 0
    for piece in pieces:
        num_rows = piece.x.shape[0]
        first = piece.cache.length if piece.position is None else piece.position
        positions.append(torch.arange(first, first + num_rows))
        is_canvas.append(torch.full((num_rows,), piece.is_canvas))
        segments.append(Segment(start=start, stop=start + num_rows, is_canvas=piece.is_canvas, cache=piece.cache))
        start += num_rows
    rows = PassRows(positions=torch.cat(positions), is_canvas=torch.cat(is_canvas), output_rows=output_rows)
    return model(torch.cat([piece.x for piece in pieces]), rows, CachedAttention(model.config, segments))


def run_split(model: Transformer, pieces: Sequence[Piece]) -> tuple[Float[Tensor, "N D"], ...]:
    """One pass over all pieces; each piece's hidden states."""
    return run(model, pieces).split([piece.x.shape[0] for piece in pieces])


def prefill(
    model: Transformer, tokens: Int[Tensor, "N"], *, num_first: int | None = None
) -> tuple[SequenceCache, Float[Tensor, "N D"]]:
    """A new cache holding the tokens, and their hidden states; in two chunks where num_first is given."""
    cache = SequenceCache(model.config)
    chunks = [tokens] if num_first is None else [tokens[:num_first], tokens[num_first:]]
    return cache, torch.cat([run(model, [prompt(model, cache, chunk)]) for chunk in chunks])


def capped_logits(model: Transformer, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
    """Logits in float32: the head product in the weights' dtype, then the softcap."""
    cap = model.config.final_logit_softcapping
    return cap * torch.tanh(F.linear(hidden, model.head).float() / cap)


def stored(cache: SequenceCache) -> list[tuple[Float[Tensor, "n S h"], Float[Tensor, "n S h"]]]:
    """Keys and values that a next row may still look at, layer by layer; the cache may hold a few more."""
    found = []
    for layer in cache.layers:
        assert layer.buffer is not None
        stop = layer.offset + layer.num_stored
        start = layer.offset if layer.kept is None else max(layer.offset, stop - layer.kept)
        found.append((layer.buffer.k[:, start:stop], layer.buffer.v[:, start:stop]))
    return found
