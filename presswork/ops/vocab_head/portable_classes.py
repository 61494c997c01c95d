"""The sweep of tiled_classes.py in torch alone, for any device and number format. N rows, T tokens, C classes."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from presswork.ops.vocab_head.classes import Chunk, ClassReading, TokenClasses, concatenate_classes
from presswork.ops.vocab_head.portable import MAX_ROWS, scaled
from presswork.ops.vocab_head.reading import Query

_LOWEST = -1e38  # the top of a class without tokens: differences of tops stay finite


def read_classes_portable(query: Query, classes: TokenClasses) -> ClassReading:
    """Every class without a matrix over the vocabulary; rows in turns of MAX_ROWS."""
    starts = range(0, max(query.hidden.shape[0], 1), MAX_ROWS)
    return concatenate_classes([_Sweep(query.select(slice(i, i + MAX_ROWS)), classes).read() for i in starts])


class _Sweep:
    """Running sums of at most MAX_ROWS rows."""

    def __init__(self, query: Query, classes: TokenClasses) -> None:
        self.query, self.classes = query, classes
        self.hidden = query.hidden.to(query.embedding.dtype)
        device, shape = query.hidden.device, (query.hidden.shape[0], classes.num_classes)
        self.class_of = classes.class_of.to(device).long()
        self.finite = torch.ones(shape[0], dtype=torch.bool, device=device)
        self.top = torch.full(shape, _LOWEST, device=device)
        self.mass = torch.zeros(shape, dtype=torch.float64, device=device)
        self.moment = torch.zeros_like(self.mass)
        self.best = torch.full(shape, len(self.class_of), device=device)

    def read(self) -> ClassReading:
        for chunk in self.classes.chunks:
            self._read_chunk(chunk)
        return ClassReading.from_sums(
            top=self.top, mass=self.mass, moment=self.moment, best=self.best, finite=self.finite
        )

    def _read_chunk(self, chunk: Chunk) -> None:
        ids = torch.from_numpy(chunk.ids).to(self.hidden.device).long()
        raw = self.hidden @ self.query.embedding[ids].T
        self.finite &= raw.isfinite().all(dim=1)
        self._add(scaled(self.query, raw, ids[None]), ids)

    def _add(self, z: Float[Tensor, "N T"], ids: Int[Tensor, "T"]) -> None:
        column = self.class_of[ids].expand_as(z)
        chunk_top = torch.full_like(self.top, _LOWEST).scatter_reduce(1, column, z, "amax")
        is_best = (z == chunk_top.gather(1, column)) & (z > -torch.inf)
        no_id = torch.full_like(self.best, len(self.class_of))
        best = no_id.scatter_reduce(1, column, torch.where(is_best, ids, len(self.class_of)), "amin")
        new_top = torch.maximum(self.top, chunk_top)
        old = torch.where(self.top == new_top, self.best, no_id)
        self.best = torch.minimum(old, torch.where(chunk_top == new_top, best, no_id))
        drop = (z - new_top.gather(1, column)).double().clamp(min=-800.0)
        e = drop.exp()
        rise = (self.top - new_top).double().clamp(min=-800.0)
        decay = rise.exp()
        self.moment = ((self.moment + rise * self.mass) * decay).scatter_add(1, column, drop * e)
        self.mass = (self.mass * decay).scatter_add(1, column, e)
        self.top = new_top
