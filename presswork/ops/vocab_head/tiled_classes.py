"""The classes of a vocabulary on a CPU, in one sweep over chunks of living tokens. N rows, D model, C classes.

Chunks (classes.py) are read independently by a few threads and merged in order by the caller:

    products = embedding[chunk] @ hidden.T          torch, one thread a chunk
    top, mass, moment, best of every piece          read_chunk
    running sums of every class                     merge_pieces

A piece is summed relative to its own top and a class relative to its own, so no class vanishes beside a likelier one.
Nothing a chunk does depends on another, so the number of threads does not change a bit of any result.
"""

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from presswork.ops.vocab_head import _class_kernels as kernels
from presswork.ops.vocab_head._intrinsics import TURNED
from presswork.ops.vocab_head.arrays import bits, sorted_edits
from presswork.ops.vocab_head.classes import PIECE, Chunk, ClassReading, TokenClasses, concatenate_classes
from presswork.ops.vocab_head.reading import Query
from presswork.ops.vocab_head.threads import LAG, Submit, share_threads, worker_threads

MAX_ROWS = 256  # rows a sweep; more rows are read in turns so that memory stays bounded


def read_classes_tiled(query: Query, classes: TokenClasses) -> ClassReading:
    """Every class without a matrix over the vocabulary; rows in turns of MAX_ROWS."""
    starts = range(0, max(query.hidden.shape[0], 1), MAX_ROWS)
    return concatenate_classes([_read_rows(query.select(slice(i, i + MAX_ROWS)), classes) for i in starts])


def _read_rows(query: Query, classes: TokenClasses) -> ClassReading:
    sweep = _Sweep(query, classes)
    living = sum(chunk.width for chunk in classes.chunks)
    with worker_threads(*share_threads(query.hidden.shape[0], query.hidden.shape[1], living)) as submit:
        sweep.run(submit)
    return sweep.reading()


@dataclass(slots=True)
class _Workspace:
    """Buffers of one chunk on its way."""

    gathered: Tensor
    products: Tensor
    z: np.ndarray
    magnitude: np.ndarray
    tops: np.ndarray
    masses: np.ndarray
    moments: np.ndarray
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
        shape = (classes.num_classes, padded)
        self.top = np.full(shape, kernels.LOWEST, np.float32)
        self.mass, self.moment = np.zeros(shape), np.zeros(shape)
        self.best = np.full(shape, -1, np.int32)
        self.finite = np.ones(padded, np.bool_)
        self.spare: deque[_Workspace] = deque()

    def _workspace(self) -> _Workspace:
        padded = len(self.scale)
        width = max(chunk.width for chunk in self.chunks)
        gathered = max((chunk.width for chunk in self.chunks if chunk.first < 0), default=0)
        pieces = (max(len(chunk.piece_class) for chunk in self.chunks), padded)
        return _Workspace(
            gathered=torch.empty(gathered, self.embedding.shape[1], dtype=self.embedding.dtype),
            products=torch.empty(width, padded, dtype=self.embedding.dtype),
            z=np.empty((PIECE, padded), np.float32),
            magnitude=np.empty(padded, np.int32),
            tops=np.empty(pieces, np.float32),
            masses=np.empty(pieces, np.float32),
            moments=np.empty(pieces, np.float32),
            bests=np.empty(pieces, np.int32),
        )

    def run(self, submit: Submit) -> None:
        """Read all chunks, at most LAG at a time, merging the oldest before each new one."""
        pending: deque[tuple[Chunk, Future[_Workspace]]] = deque()
        for chunk in self.chunks:
            if len(pending) == LAG:
                self._merge(*pending.popleft())
            space = self.spare.pop() if self.spare else self._workspace()
            pending.append((chunk, submit(self._read, chunk, space)))
        while pending:
            self._merge(*pending.popleft())

    @torch.inference_mode()  # the caller's mode does not reach other threads, and its buffers may need it
    def _read(self, chunk: Chunk, space: _Workspace) -> _Workspace:
        if chunk.first < 0:
            weights = space.gathered[: chunk.width]
            torch.index_select(self.embedding, 0, torch.from_numpy(chunk.ids), out=weights)
        else:
            weights = self.embedding[chunk.first : chunk.first + chunk.width]
        torch.mm(weights, self.hidden_tall, out=space.products[: chunk.width])
        kernels.read_chunk(
            bits(space.products), chunk.ids, chunk.columns, chunk.piece_starts, self.inverse_cap, self.scale,
            *self.edits, space.z, space.magnitude, self.finite, space.tops, space.masses, space.moments, space.bests,
        )  # fmt: skip
        return space

    def _merge(self, chunk: Chunk, done: "Future[_Workspace]") -> None:
        space = done.result()
        kernels.merge_pieces(
            chunk.piece_class, space.tops, space.masses, space.moments, space.bests,
            self.top, self.mass, self.moment, self.best,
        )  # fmt: skip
        self.spare.append(space)

    def reading(self) -> ClassReading:
        """What the sweep found, in every row."""
        columns = (torch.from_numpy(sums[:, : self.rows]).T for sums in (self.top, self.mass, self.moment, self.best))
        top, mass, moment, best = (column.contiguous() for column in columns)
        finite = torch.from_numpy(self.finite[: self.rows])
        return ClassReading.from_sums(top=top, mass=mass, moment=moment, best=best.long(), finite=finite)
