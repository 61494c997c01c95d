"""The classes of a vocabulary on a CPU, in one sweep over chunks of living tokens. N rows, D model, C classes.

Chunks (classes.py) are read a few at a time, each by one thread, then merged in order, each thread for some rows:

    products = embedding[chunk] @ hidden.T          torch, one thread a chunk
    top, mass, moment, best of every piece          read_chunk
    running sums of every class                     merge_pieces

A piece is summed relative to its own top and a class relative to its own, so no class vanishes beside a likelier one.
The running sums of TURNED rows stay in a core's cache while several chunks are merged into them.
Nothing a chunk does depends on another, so the number of threads does not change a bit of any result.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from presswork.ops.vocab_head import _class_kernels as kernels
from presswork.ops.vocab_head._intrinsics import TURNED
from presswork.ops.vocab_head.arrays import bits, sorted_edits
from presswork.ops.vocab_head.classes import Chunk, ClassReading, TokenClasses, concatenate_classes
from presswork.ops.vocab_head.reading import Query
from presswork.ops.vocab_head.threads import LAG, Submit, share_threads, wait_for, worker_threads

MAX_ROWS = 256  # rows a sweep; more rows are read in turns so that memory stays bounded


def read_classes_tiled(query: Query, classes: TokenClasses) -> ClassReading:
    """Every class without a matrix over the vocabulary; rows in turns of MAX_ROWS."""
    starts = range(0, max(query.hidden.shape[0], 1), MAX_ROWS)
    return concatenate_classes([_read_rows(query.select(slice(i, i + MAX_ROWS)), classes) for i in starts])


def _read_rows(query: Query, classes: TokenClasses) -> ClassReading:
    living = sum(chunk.width for chunk in classes.chunks)
    with worker_threads(*share_threads(query.hidden.shape[0], query.hidden.shape[1], living)) as submit:
        sweep = _Sweep(query, classes)
        sweep.run(submit)
        return sweep.reading()


@dataclass(slots=True)
class _Workspace:
    """Buffers of one chunk on its way."""

    gathered: Tensor
    products: Tensor
    sums: np.ndarray
    bests: np.ndarray


class _Sweep:
    """State of one sweep of at most MAX_ROWS rows."""

    def __init__(self, query: Query, classes: TokenClasses) -> None:
        self.embedding, self.chunks = query.embedding.detach(), classes.chunks
        self.rows = query.hidden.shape[0]
        self.edits = sorted_edits(query.edits, self.rows)
        cap = query.softcap
        self.inverse_cap = np.float32(0.0 if cap is None else 1.0 / cap)
        padded = -(-self.rows // TURNED) * TURNED
        self.hidden_tall = torch.zeros(query.hidden.shape[1], padded, dtype=self.embedding.dtype)
        self.hidden_tall[:, : self.rows] = query.hidden.detach().T
        self.scale = np.ones(padded, np.float32)
        temperature = query.temperature.detach().numpy().astype(np.float64)
        self.scale[: self.rows] = (1.0 if cap is None else cap) / temperature
        shape = (padded // TURNED, classes.num_classes, TURNED)
        self.top = np.full(shape, kernels.LOWEST, np.float32)
        self.mass, self.moment = np.zeros(shape), np.zeros(shape)
        self.best = np.full(shape, -1, np.int32)
        self.finite = np.ones(padded, np.bool_)

    def _workspace(self) -> _Workspace:
        padded = len(self.scale)
        width = max(chunk.width for chunk in self.chunks)
        gathered = max((chunk.width for chunk in self.chunks if chunk.first < 0), default=0)
        groups, pieces = padded // TURNED, max(len(chunk.piece_class) for chunk in self.chunks)
        return _Workspace(
            gathered=torch.empty(gathered, self.embedding.shape[1], dtype=self.embedding.dtype),
            products=torch.empty(width, padded, dtype=self.embedding.dtype),
            sums=np.empty((groups, pieces, 3, TURNED), np.float32),
            bests=np.empty((groups, pieces, TURNED), np.int32),
        )

    def run(self, submit: Submit) -> None:
        """Read LAG chunks at a time, then merge them."""
        spaces = [self._workspace() for _ in self.chunks[:LAG]]
        for start in range(0, len(self.chunks), LAG):
            read = list(zip(self.chunks[start : start + LAG], spaces, strict=False))
            wait_for([submit(self._read, chunk, space) for chunk, space in read])
            wait_for([submit(self._merge, group, read) for group in range(len(self.top))])

    @torch.inference_mode()  # the caller's mode does not reach other threads, and its buffers may need it
    def _read(self, chunk: Chunk, space: _Workspace) -> None:
        if chunk.first < 0:
            weights = space.gathered[: chunk.width]
            torch.index_select(self.embedding, 0, torch.from_numpy(chunk.ids), out=weights)
        else:
            weights = self.embedding[chunk.first : chunk.first + chunk.width]
        torch.mm(weights, self.hidden_tall, out=space.products[: chunk.width])
        kernels.read_chunk(
            bits(space.products), chunk.ids, chunk.columns, chunk.piece_starts, self.inverse_cap, self.scale,
            *self.edits, self.finite, space.sums, space.bests,
        )  # fmt: skip

    def _merge(self, group: int, read: list[tuple[Chunk, _Workspace]]) -> None:
        totals = (self.top[group], self.mass[group], self.moment[group], self.best[group])
        for chunk, space in read:
            kernels.merge_pieces(chunk.piece_class, space.sums[group], space.bests[group], *totals)

    def reading(self) -> ClassReading:
        """What the sweep found, in every row."""
        sums = (self.top, self.mass, self.moment, self.best)
        top, mass, moment, best = (torch.from_numpy(s).mT.flatten(0, 1)[: self.rows] for s in sums)
        finite = torch.from_numpy(self.finite[: self.rows])
        return ClassReading.from_sums(top=top, mass=mass, moment=moment, best=best.long(), finite=finite)
