"""The sweep of tiled.py in torch alone, for any device and number format. N rows, T tile, V vocab, C cells."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from presswork.ops.vocab_head.candidates import Candidates, candidate_limits, filtered_rows, read_in_parts
from presswork.ops.vocab_head.classes import ClassWeights
from presswork.ops.vocab_head.reading import EditGroup, LogitEdits, Query, Reading, concatenate
from presswork.ops.vocab_head.totals import Totals, to_reading

TILE = 8192
CELL = 64
MAX_ROWS = 256
GATHER_ROWS = 64


def read_portable(query: Query) -> Reading:
    """Every reading without a matrix over the vocabulary; rows in turns of MAX_ROWS."""
    starts = range(0, max(query.hidden.shape[0], 1), MAX_ROWS)
    return concatenate([_Sweep(query.select(slice(start, start + MAX_ROWS))).read() for start in starts])


def _edit(x: Float[Tensor, "N T"], ids: Int[Tensor, "#N T"], edits: LogitEdits) -> Float[Tensor, "N T"]:
    for number, group in enumerate(edits.groups):
        rows = (edits.row_group == number)[:, None]
        if group.repetition_penalty != 1.0:
            seen = rows & torch.isin(ids, group.seen_ids.to(ids.device))
            x = torch.where(seen, torch.where(x > 0, x / group.repetition_penalty, x * group.repetition_penalty), x)
        if group.bias_ids.numel():
            x = x + rows * _bias(ids, group)
        x = x.masked_fill(rows & torch.isin(ids, group.banned_ids.to(ids.device)), -torch.inf)
    return x


def _bias(ids: Int[Tensor, "#N T"], group: EditGroup) -> Float[Tensor, "#N T"]:
    """What a group adds to the logits of these ids."""
    known, order = group.bias_ids.to(ids.device).sort()
    place = torch.searchsorted(known, ids.contiguous()).clamp(max=len(known) - 1)
    return torch.where(known[place] == ids, group.bias.to(ids.device)[order][place].float(), 0.0)


def scaled(query: Query, raw: Float[Tensor, "N T"], ids: Int[Tensor, "#N T"]) -> Float[Tensor, "N T"]:
    """z of these products, those that are not finite read as 0."""
    x = raw.float().nan_to_num(0.0, 0.0, 0.0)
    if query.softcap is not None:
        x = query.softcap * torch.tanh(x / query.softcap)
    if query.edits is not None:
        x = _edit(x, ids, query.edits)
    return x / query.temperature.float()[:, None]


class _Sweep:
    """State of one sweep of at most MAX_ROWS rows."""

    def __init__(self, query: Query) -> None:
        self.query = query
        rows, device = query.hidden.shape[0], query.hidden.device
        self.vocab = query.embedding.shape[0]
        self.hidden = query.hidden.to(query.embedding.dtype)
        self.top = torch.full((rows,), -torch.inf, device=device)
        self.mass = torch.zeros(rows, dtype=torch.float64, device=device)
        self.moment = torch.zeros_like(self.mass)
        self.best = torch.zeros(rows, dtype=torch.int64, device=device)
        self.finite = torch.ones(rows, dtype=torch.bool, device=device)
        self.limit = int(candidate_limits(query).max()) if rows else 0
        self.kept_z = torch.empty(rows, 0, device=device)
        self.kept_id = torch.empty(rows, 0, dtype=torch.int64, device=device)
        self.chosen = None if query.token_ids is None else torch.zeros(query.token_ids.shape, device=device)
        self.weights = None if query.class_weights is None else _Weights(query.class_weights, device)
        self.drawn_top, self.drawn_best = torch.full_like(self.top, -torch.inf), torch.full_like(self.best, -1)
        self.cells: list[Tensor] = []
        self.cell_tops: list[Tensor] = []
        self.soft: Tensor | None = None
        if query.soft_rows is not None:
            self.soft_rows = query.soft_rows & ~filtered_rows(query)
            self.soft = torch.zeros(rows, query.soft_source.shape[1], device=device)

    def read(self) -> Reading:
        for first in range(0, self.vocab, TILE):
            self._read_tile(first)
        totals = Totals(
            top=self.top,
            mass=self.mass,
            moment=self.moment,
            best=self.best,
            sample=self._sample(),
            finite=self.finite,
            chosen_z=self.chosen,
            candidates=Candidates(self.kept_z, self.kept_id, self.top, self.mass),
            soft=self.soft,
            shift=None if self.weights is None else self.weights.shift,
        )
        return to_reading(self.query, totals, read_in_parts)

    def _read_tile(self, first: int) -> None:
        raw = self.hidden @ self.query.embedding[first : first + TILE].T
        ids = torch.arange(first, first + raw.shape[1], device=raw.device)
        broken = ~raw.isfinite()
        z = scaled(self.query, raw, ids[None])
        drawn = z
        if self.weights is not None:
            broken &= self.weights.is_living(ids)
            z = self.weights.add(z, ids[None])
            drawn = self.weights.keep_wanted(z, ids[None])
        self.finite &= ~broken.any(dim=1)
        where = z.argmax(dim=1)
        largest = z.gather(1, where[:, None])[:, 0]
        self.best = torch.where(largest > self.top, first + where, self.best)
        self._keep(z, ids)
        self._choose(z, first)
        e, base = self._add(z, largest, first)
        if drawn is not z:
            largest, where = drawn.max(dim=1)
            base = largest.clamp(min=torch.finfo(torch.float32).min)
            e = (drawn - base[:, None]).clamp(min=-200.0).exp()
        self.drawn_best = torch.where(largest > self.drawn_top, first + where, self.drawn_best)
        self.drawn_top = torch.maximum(self.drawn_top, largest)
        cells = torch.nn.functional.pad(e, (0, -e.shape[1] % CELL)).unflatten(1, (-1, CELL)).sum(dim=2)
        self.cells.append(cells)
        self.cell_tops.append(base[:, None].expand_as(cells))

    def _add(self, z: Float[Tensor, "N T"], largest: Float[Tensor, "N"], first: int) -> tuple[Tensor, Tensor]:
        """Add a tile to the running sums; returns (e, the z at which e is 1)."""
        new_top = torch.maximum(self.top, largest)
        base = new_top.clamp(min=torch.finfo(torch.float32).min)
        drop = (z - base[:, None]).clamp(min=-200.0)
        e = drop.exp()
        rise = (self.top - base).double().clamp(min=-1e4)
        decay = rise.exp()
        self.moment = (self.moment + rise * self.mass) * decay + (drop * e).sum(dim=1)
        self.mass = self.mass * decay + e.sum(dim=1, dtype=torch.float64)
        self.top = new_top
        if self.soft is not None:
            weights = (e * self.soft_rows[:, None]).to(self.hidden.dtype)
            part = weights @ self.query.soft_source[first : first + TILE]
            self.soft = self.soft * decay.float()[:, None] + part.float()
        return e, base

    def _keep(self, z: Float[Tensor, "N T"], ids: Int[Tensor, "T"]) -> None:
        if not self.limit:
            return
        all_z = torch.cat([self.kept_z, z], dim=1)
        all_ids = torch.cat([self.kept_id, ids.expand(z.shape)], dim=1)
        ranked, order = all_z.sort(dim=1, descending=True, stable=True)
        self.kept_z, self.kept_id = ranked[:, : self.limit], all_ids.gather(1, order[:, : self.limit])
        self.kept_id = self.kept_id.masked_fill(self.kept_z == -torch.inf, -1)

    def _choose(self, z: Float[Tensor, "N T"], first: int) -> None:
        if self.chosen is not None and self.query.token_ids is not None:
            place = self.query.token_ids - first
            inside = (place >= 0) & (place < z.shape[1])
            self.chosen = torch.where(inside, z.gather(1, place.clamp(0, z.shape[1] - 1)), self.chosen)

    def _sample(self) -> Int[Tensor, "N"]:
        """Find the cell by its recorded mass, then compute that cell's products again."""
        best = torch.where(self.drawn_best < 0, self.best, self.drawn_best)
        if self.query.uniform is None:
            return best
        tops = torch.cat(self.cell_tops, dim=1)
        masses = torch.cat(self.cells, dim=1).double() * (tops - self.drawn_top[:, None]).double().exp()
        cell, share = _locate(masses, self.query.uniform.double().nan_to_num(0.0))
        ids = cell[:, None] * CELL + torch.arange(CELL, device=cell.device)
        inside = ids.clamp(max=self.vocab - 1)
        raw = [
            torch.bmm(self.query.embedding[inside[part]], self.hidden[part, :, None])[:, :, 0]
            for part in torch.arange(len(ids), device=ids.device).split(GATHER_ROWS)
        ]
        z = scaled(self.query, torch.cat(raw), ids).masked_fill(ids >= self.vocab, -torch.inf)
        if self.weights is not None:
            z = self.weights.keep_wanted(self.weights.add(z, inside), inside)
        weights = (z - self.drawn_top[:, None]).double().exp().nan_to_num(0.0)
        token, _ = _locate(weights, share)
        return torch.where(self.query.uniform.isnan() | (self.drawn_best < 0), best, cell * CELL + token)


class _Weights:
    """Class weights as additions to z."""

    def __init__(self, weights: ClassWeights, device: torch.device) -> None:
        self.by_slot, self.shift = weights.by_slot()
        self.slots = weights.classes.slots.to(device).long()
        self.dead = weights.classes.num_classes
        self.wanted = weights.sample_class[:, None]

    def is_living(self, ids: Int[Tensor, "T"]) -> Bool[Tensor, "T"]:
        """Which tokens are in a class."""
        return self.slots[ids] != self.dead

    def add(self, z: Float[Tensor, "N T"], ids: Int[Tensor, "#N T"]) -> Float[Tensor, "N T"]:
        """z plus the weight of each token's class."""
        return z + self.by_slot.gather(1, self.slots[ids].expand_as(z))

    def keep_wanted(self, z: Float[Tensor, "N T"], ids: Int[Tensor, "#N T"]) -> Float[Tensor, "N T"]:
        """z with minus infinity outside the row's sample class."""
        return z.masked_fill((self.wanted >= 0) & (self.slots[ids] != self.wanted), -torch.inf)


def _locate(masses: Float[Tensor, "N C"], share: Float[Tensor, "N"]) -> tuple[Int[Tensor, "N"], Float[Tensor, "N"]]:
    """(first index whose cumulative mass passes this share of the total, how far into its mass that is, 0 to 1)."""
    cdf = masses.nan_to_num(0.0).cumsum(dim=1)
    target = share[:, None] * cdf[:, -1:]
    last = masses.shape[1] - 1 - (masses > 0).flip(1).int().argmax(dim=1, keepdim=True)
    found = torch.minimum(torch.searchsorted(cdf, target, right=True), last)
    own = masses.gather(1, found)
    into = (target - (cdf.gather(1, found) - own)) / own
    return found[:, 0], into[:, 0].nan_to_num(0.0).clamp(0.0, 1.0)
