"""The vocabulary head on a CPU in one sweep over tiles of the embedding. N rows, D model, V vocab, K candidates.

Tiles are read independently by a few threads and merged in order by the caller:

    products = embedding[tile] @ hidden.T           torch, one thread a tile
    top, mass, moment, cell masses, weights         read_tile, relative to the largest z known when the tile began
    part = weights @ soft_source[tile]              torch, only rows for which the tile matters
    running totals                                  merge_tile, rescaled as in online softmax

With m the largest z, s = sum e^(z-m) and t = sum (z-m) e^(z-m): log-normaliser m + log s, entropy log s - t/s. A sample
is found by walking tile masses, then cell masses, and computing the products of one cell again.

What a tile may leave out depends on the largest z of the tiles merged before it began, which is always every tile
LAG or more before it. So the number of threads does not change a bit of any result.

Rows that top_k or top_p filter are read from the best tokens the sweep keeps (candidates.py), or where those are too
few from a second sweep that leaves out every token past a cut.
"""

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from presswork.ops.linear.fast import MIN_ROWS
from presswork.ops.vocab_head import _kernels as kernels
from presswork.ops.vocab_head._cuts import find_cut
from presswork.ops.vocab_head._intrinsics import TURNED
from presswork.ops.vocab_head.arrays import BITS, Cuts, bits, flat_weights, sorted_edits
from presswork.ops.vocab_head.candidates import Candidates, candidate_limits, filtered_rows, read_in_parts
from presswork.ops.vocab_head.classes import TILE, ClassWeights
from presswork.ops.vocab_head.reading import Query, Reading, concatenate
from presswork.ops.vocab_head.threads import LAG, Submit, run_now, share_threads, worker_threads
from presswork.ops.vocab_head.totals import Totals, to_reading

MAX_ROWS = 256  # rows a sweep; more rows are read in turns so that memory stays bounded
CUT_BYTES = 2**26  # for whole rows of logits, only while looking for a wide nucleus; 64 rows at V = 262,144
_NO_CLASSES = (np.empty(0, np.int32), np.empty(0, np.int32))
_ROW_PADDING = 32  # without it all rows of a tile of 2048 would compete for the same cache lines


def can_tile(query: Query) -> bool:
    """Whether the compiled loops know the device, the number format and the layout."""
    weights = (query.embedding, query.soft_source)
    return query.embedding.dtype in BITS and all(w.device.type == "cpu" and w.is_contiguous() for w in weights)


def read_tiled(query: Query) -> Reading:
    """Every reading without a matrix over the vocabulary; rows in turns of MAX_ROWS."""
    rows = query.hidden.shape[0]
    if rows <= MAX_ROWS:
        return _read_rows(query)
    return concatenate([_read_rows(query.select(slice(i, i + MAX_ROWS))) for i in range(0, rows, MAX_ROWS)])


def _read_rows(query: Query) -> Reading:
    with worker_threads(*share_threads(*query.hidden.shape, query.embedding.shape[0])) as submit:
        sweep = _Sweep(query)  # in here, because torch's own threads would go on spinning after its large operations
        sweep.run(submit)
        totals = sweep.totals(sweep.sample(submit))
        sweep.spare.clear()
        return to_reading(query, totals, partial(_read_by_cuts, submit))


def _read_by_cuts(submit: Submit, query: Query) -> Reading:
    """Rows whose top_k or top_p keeps more tokens than a sweep does: find where each is cut, then sweep with the cuts.

    Both times with the same rows, so that the products agree to the bit.
    """
    parts = []
    at_once = min(MAX_ROWS, max(1, CUT_BYTES // (4 * query.embedding.shape[0])))
    for start in range(0, query.hidden.shape[0], at_once):
        part = query.select(slice(start, start + at_once))
        sweep = _Sweep(replace(part, top_k=None, top_p=None))
        sweep.cuts = sweep.find_cuts(submit, part.top_k, part.top_p)
        sweep.run(submit)
        parts.append(to_reading(sweep.query, sweep.totals(sweep.sample(submit)), read_in_parts))
    return concatenate(parts)


@dataclass(slots=True)
class _Workspace:
    """Buffers of one tile on its way; the arrays are views of the tensors' bits."""

    tall: Tensor
    products: Tensor
    probs: Tensor
    part: Tensor
    z: np.ndarray
    moment: np.ndarray
    best: np.ndarray
    drawn_best: np.ndarray
    heap_z: np.ndarray
    heap_id: np.ndarray
    heap_count: np.ndarray
    probs_row: np.ndarray
    filled: int = 0


def _find_cut(z: np.ndarray, top_k: int, top_p: float) -> tuple[Any, Any]:
    e = np.empty_like(z)
    return find_cut(z, e, kernels.masses(z, e), top_k, top_p)


class _Sweep:
    """State of one sweep of at most MAX_ROWS rows."""

    def __init__(self, query: Query) -> None:
        self.query = query
        self.embedding, self.source = query.embedding.detach(), query.soft_source.detach()
        self.dtype = self.embedding.dtype
        self.rows, self.width = query.hidden.shape
        self.vocab = self.embedding.shape[0]
        self.num_tiles = -(-self.vocab // TILE)
        self.tile_width = min(TILE, self.vocab)
        padded = -(-self.rows // TURNED) * TURNED
        self.hidden = torch.zeros(padded, self.width, dtype=self.dtype)
        self.hidden[: self.rows] = query.hidden.detach()
        # Products of fewer rows take other kernels, with other last bits.
        self.height = max(self.rows, MIN_ROWS) if self.rows else 0
        self.hidden_tall = self.hidden.T.contiguous()
        self._prepare_rows()
        self._prepare_totals()
        self.cuts = Cuts(np.full(self.rows, -np.inf, np.float32), np.zeros(self.rows, np.int64))
        self.spare: deque[_Workspace] = deque()
        self._prepare_draw(query.class_weights)

    def _prepare_draw(self, weights: ClassWeights | None) -> None:
        """Sums over the tokens that may be drawn: under class weights not those of the row's distribution."""
        self.weights, self.shift = flat_weights(weights, self.rows)
        self.drawn_tops, self.drawn_masses, self.drawn_top = self.tile_tops, self.tile_masses, self.top
        self.tiles, self.classes = range(self.num_tiles), None if weights is None else weights.classes
        if weights is not None:
            self.tiles = weights.classes.living_tiles
            self.drawn_tops, self.drawn_masses = self.tile_tops.copy(), self.tile_masses.copy()
            self.drawn_top = self.top.copy()
            self.chosen[:] = -np.inf
        self.drawn_best = np.full(self.rows, -1)

    def _prepare_rows(self) -> None:
        query, rows = self.query, self.rows
        self.edits = sorted_edits(query.edits, rows)
        cap = query.softcap
        self.inverse_cap = np.float32(0.0 if cap is None else 1.0 / cap)
        temperature = query.temperature.detach().numpy().astype(np.float64)
        self.scale = ((1.0 if cap is None else cap) / temperature).astype(np.float32)
        ids = query.token_ids
        self.token_ids = np.empty((rows, 0), np.int64) if ids is None else ids.long().contiguous().numpy()
        self.limits = np.full(rows, min(query.top_logprobs, self.vocab))
        self.soft_rows = np.zeros(rows, np.bool_) if query.soft_rows is None else query.soft_rows.numpy().copy()
        if query.top_k is not None or query.top_p is not None:
            self.limits = candidate_limits(query).numpy()
            self.soft_rows &= ~filtered_rows(query).numpy()

    def _prepare_totals(self) -> None:
        rows, tiles = self.rows, self.num_tiles
        kept = int(self.limits.max(initial=0))
        self.tile_tops = np.full((tiles, rows), -np.inf, np.float32)
        self.tile_masses = np.zeros((tiles, rows))
        self.tile_cells = -(-self.tile_width // kernels.CELL)
        self.cells = np.zeros((rows, tiles * self.tile_cells), np.float32)
        self.finite = np.ones(rows, np.bool_)
        self.chosen = np.full((rows, self.token_ids.shape[1]), np.nan, np.float32)
        self.top = np.full(rows, -np.inf, np.float32)
        self.mass, self.moment = np.zeros(rows), np.zeros(rows)
        self.best = np.zeros(rows, np.int64)
        self.kept_z, self.kept_id = np.empty((rows, kept), np.float32), np.empty((rows, kept), np.int64)
        self.kept_count, self.kept_worst = np.zeros(rows, np.int64), np.full(rows, -np.inf, np.float32)
        self.soft = np.zeros((rows if self.soft_rows.any() else 0, self.source.shape[1]), np.float32)

    def _workspace(self) -> _Workspace:
        rows, padded = self.rows, self.hidden.shape[0]
        soft = len(self.soft)
        kept = self.kept_z.shape[1]
        half = self.dtype == torch.bfloat16
        return _Workspace(
            tall=torch.empty(self.tile_width + 16 if half else 0, padded, dtype=self.dtype),
            products=torch.empty(TURNED if half else self.height, self.tile_width + _ROW_PADDING, dtype=self.dtype),
            probs=torch.zeros(padded if soft else 1, self.tile_width, dtype=self.dtype),
            part=torch.empty(padded if soft else 0, self.source.shape[1], dtype=self.dtype),
            z=np.empty(self.tile_width, np.float32),
            moment=np.empty(rows),
            best=np.empty(rows, np.int64),
            drawn_best=np.empty(rows, np.int64),
            heap_z=np.empty((rows, kept), np.float32),
            heap_id=np.empty((rows, kept), np.int64),
            heap_count=np.empty(rows, np.int64),
            probs_row=np.empty(rows, np.int64),
        )

    def run(self, submit: Submit) -> None:
        """Read all tiles with tokens, at most LAG at a time, merging the oldest before each new one."""
        pending: deque[tuple[int, Future[_Workspace]]] = deque()
        for tile in self.tiles:
            if len(pending) == LAG:
                self._merge(*pending.popleft())
            space = self.spare.pop() if self.spare else self._workspace()
            so_far = self.top.copy(), self.kept_worst.copy(), self.drawn_top.copy()
            pending.append((tile, submit(self._read, tile, space, *so_far)))
        while pending:
            self._merge(*pending.popleft())

    @torch.inference_mode()  # the caller's mode does not reach other threads, and its buffers may need it
    def _read(
        self, tile: int, space: _Workspace, best_so_far: np.ndarray, kept_so_far: np.ndarray, drawn_so_far: np.ndarray
    ) -> _Workspace:
        first = tile * TILE
        width = min(TILE, self.vocab - first)
        self._multiply(self.embedding[first : first + width], space)
        living = _NO_CLASSES if self.classes is None else self.classes.in_tile(tile)
        space.filled = kernels.read_tile(
            bits(space.tall), bits(space.products), width, first, self.inverse_cap, self.scale, best_so_far,
            kept_so_far, *self.edits, *self.cuts, self.token_ids, self.soft_rows, self.limits, space.z, self.cells,
            self.tile_tops[tile], self.tile_masses[tile], space.moment, space.best, self.finite, self.chosen,
            space.heap_z, space.heap_id, space.heap_count, bits(space.probs), space.probs_row,
            self.weights.log_weight, self.weights.wanted, *living, drawn_so_far, self.drawn_tops[tile],
            self.drawn_masses[tile], space.drawn_best,
        )  # fmt: skip
        if space.filled:
            # Few distinct heights, because the matmul library prepares a kernel for each.
            height = -(-space.filled // TURNED) * TURNED
            weights, part = space.probs[:height, :width], space.part[:height]
            torch.mm(weights, self.source[first : first + width], out=part)
        return space

    def find_cuts(self, submit: Submit, top_k: Int[Tensor, "N"] | None, top_p: Float[Tensor, "N"] | None) -> Cuts:
        """Where top_k and top_p end each row, from a matrix of all its logits."""
        all_z = np.empty((self.rows, self.vocab), np.float32)
        pending: deque[Future[_Workspace]] = deque()
        for tile in range(self.num_tiles):
            if len(pending) == LAG:
                self.spare.append(pending.popleft().result())
            space = self.spare.pop() if self.spare else self._workspace()
            pending.append(submit(self._scale, tile, space, all_z))
        self.spare.extend(done.result() for done in pending)
        ks = np.zeros(self.rows, np.int64) if top_k is None else top_k.numpy()
        ps = np.ones(self.rows) if top_p is None else top_p.double().numpy()
        rows = [submit(_find_cut, all_z[i], min(int(ks[i]), self.vocab), float(ps[i])) for i in range(self.rows)]
        found = [row.result() for row in rows]
        return Cuts(np.array([z for z, _ in found], np.float32), np.array([j for _, j in found], np.int64))

    @torch.inference_mode()
    def _scale(self, tile: int, space: _Workspace, all_z: np.ndarray) -> _Workspace:
        first = tile * TILE
        width = min(TILE, self.vocab - first)
        self._multiply(self.embedding[first : first + width], space)
        kernels.scale_tile(
            bits(space.tall), bits(space.products), width, first, self.inverse_cap, self.scale, *self.edits,
            space.z, all_z,
        )  # fmt: skip
        return space

    def _multiply(self, weights: Float[Tensor, "T D"], space: _Workspace) -> None:
        width = weights.shape[0]
        if self.dtype == torch.bfloat16:
            # A third faster than hidden @ weights.T, transposition included: the small operand is the one repacked.
            torch.mm(weights, self.hidden_tall, out=space.tall[:width])
        else:
            torch.mm(self.hidden[: self.height], weights.T, out=space.products[: self.height, :width])

    def _merge(self, tile: int, done: "Future[_Workspace]") -> None:
        space = done.result()
        kernels.merge_tile(
            self.tile_tops[tile], self.tile_masses[tile], space.moment, space.best, space.heap_z, space.heap_id,
            space.heap_count, space.probs_row, bits(space.part), space.filled, self.top, self.mass, self.moment,
            self.best, self.limits, self.kept_z, self.kept_id, self.kept_count, self.kept_worst, self.soft,
        )  # fmt: skip
        if self.classes is not None:
            above = self.drawn_tops[tile] > self.drawn_top
            self.drawn_top[above] = self.drawn_tops[tile][above]
            self.drawn_best[above] = space.drawn_best[above]
        self.spare.append(space)

    def sample(self, submit: Submit) -> np.ndarray:
        """One id a row from its uniform number, or the most likely one."""
        sample = np.where(self.drawn_best >= 0, self.drawn_best, self.best)
        if self.query.uniform is None:
            return sample
        uniform = self.query.uniform.double().contiguous().numpy()
        step = self.rows if submit is run_now else -(-self.rows // LAG)
        # Unlike `.numpy()` this leaves the memory resizable, which FSDP asks of its parameters.
        embedding = np.from_dlpack(self.embedding.view(BITS[self.embedding.dtype]))
        shared = (
            bits(self.hidden), embedding, self.inverse_cap, self.scale, *self.edits, *self.cuts,
            uniform, self.tile_cells, self.drawn_tops, self.drawn_masses, self.cells, self.drawn_top,
            *self.weights, sample,
        )  # fmt: skip
        starts = range(0, self.rows, step) if self.rows else ()
        for done in [submit(kernels.sample_rows, i, min(i + step, self.rows), *shared) for i in starts]:
            done.result()
        return sample

    def totals(self, sample: np.ndarray) -> Totals:
        """What the sweep found, as tensors that share the arrays' memory."""
        top, mass = torch.from_numpy(self.top), torch.from_numpy(self.mass)
        kept_z, kept_id = self.kept_z, self.kept_id
        if kept_z.size:
            missing = np.arange(kept_z.shape[1]) >= self.kept_count[:, None]
            kept_z[missing], kept_id[missing] = -np.inf, -1
            order = np.lexsort((kept_id, -kept_z))
            kept_z, kept_id = np.take_along_axis(kept_z, order, axis=1), np.take_along_axis(kept_id, order, axis=1)
        soft = None
        if self.query.soft_rows is not None:
            soft = torch.from_numpy(self.soft) if len(self.soft) else torch.zeros(self.rows, self.source.shape[1])
        return Totals(
            top=top,
            mass=mass,
            moment=torch.from_numpy(self.moment),
            best=torch.from_numpy(self.best),
            sample=torch.from_numpy(sample),
            finite=torch.from_numpy(self.finite),
            chosen_z=None if self.query.token_ids is None else torch.from_numpy(self.chosen),
            candidates=Candidates(torch.from_numpy(kept_z), torch.from_numpy(kept_id), top, mass),
            soft=soft,
            shift=self.shift,
        )
