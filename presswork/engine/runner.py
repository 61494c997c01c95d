"""Turns planned work into model passes. N rows of a pass, D model width, L canvas."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor

from presswork.cache.contiguous import SequenceCache
from presswork.engine.readings import VocabReader
from presswork.engine.scheduler import WorkItem
from presswork.models.adapters import AdaptedRows, Adapter
from presswork.models.attention import CachedAttention, Segment
from presswork.models.transformer import PassRows, Transformer
from presswork.ops.linear import is_row_stable
from presswork.ops.threads import few_threads


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slice:
    """One segment of a pass before it has rows: whose, which tokens, which mode, which outputs."""

    cache: SequenceCache
    ids: Int[Tensor, "n"]
    belief: Float[Tensor, "n D"] | None
    is_canvas: bool
    wants: str
    adapter: Adapter | None = None


class Runner:
    """Owns the model's device and dtype; stateless between passes but for the caches that requests carry."""

    def __init__(self, model: Transformer):
        self.model, self.config = model, model.config
        self.reader = VocabReader(model)
        self.device = model.decoder.embedding.device
        attended = [model.config.num_attention_heads * layer.head_dim for layer in model.config.layers]
        widths = {model.config.hidden_size, model.config.intermediate_size, model.config.moe_intermediate_size}
        widths |= set(attended)
        # Multiply-adds of the largest product: a row's, and a row's with one key.
        self._row_products, self._key_products = model.config.hidden_size * max(widths), max(attended)
        # Where a product's rows depend on its height, sharing a pass would change a request's numbers.
        stable = self.device.type == "cpu" and all(is_row_stable(model.dtype, width) for width in widths)
        self.shares_passes = stable and is_tied(model)

    @torch.no_grad()
    def run(self, items: Sequence[WorkItem]) -> list[Float[Tensor, "R D"]]:
        """One pass over every item's rows; returns each item's hidden rows: its canvas, its next token's, or none.

        Mutates the requests' caches; the pending tokens that went in are for the caller to strike off.
        """
        slices: list[_Slice] = []
        owners: list[int] = []
        for number, item in enumerate(items):
            for piece in self._slices(item):
                slices.append(piece)
                owners.append(number)
        outputs = [self.model.decoder.embedding.new_empty(0, self.config.hidden_size) for _ in items]
        for owner, hidden in zip(owners, self._passes(slices), strict=True):
            if hidden.shape[0]:
                outputs[owner] = hidden
        return outputs

    @torch.no_grad()
    def causal_hidden(
        self, cache: SequenceCache, ids: Sequence[int], adapter: Adapter | None = None
    ) -> Float[Tensor, "n D"]:
        """Append tokens to a cache and return the final hidden state of each."""
        return self._passes([self._causal(cache, ids, "all", adapter)])[0]

    @torch.no_grad()
    def canvas_hidden(
        self, cache: SequenceCache, tokens: Int[Tensor, "L"], belief: Float[Tensor, "L D"] | None,
        adapter: Adapter | None = None,
    ) -> Float[Tensor, "L D"]:  # fmt: skip
        """Final hidden state of a canvas over a cache, which is left as it was."""
        ids = tokens.to(self.device)
        piece = _Slice(cache=cache, ids=ids, belief=belief, is_canvas=True, wants="all", adapter=adapter)
        return self._passes([piece])[0]

    def _slices(self, item: WorkItem) -> list[_Slice]:
        request, slices = item.request, []
        assert request.cache is not None
        adapter = request.adapter.adapter
        if item.num_causal:
            wants = "last" if item.wants_next else "none"
            slices.append(self._causal(request.cache, request.pending[: item.num_causal], wants, adapter))
        if item.canvas_length:
            assert request.canvas is not None
            canvas = request.canvas
            slices.append(
                _Slice(
                    cache=request.cache, ids=canvas.tokens, belief=canvas.belief, is_canvas=True, wants="all",
                    adapter=adapter,
                )
            )  # fmt: skip
        return slices

    def _causal(self, cache: SequenceCache, ids: Sequence[int], wants: str, adapter: Adapter | None) -> _Slice:
        tokens = torch.tensor(ids, dtype=torch.int64, device=self.device)
        return _Slice(cache=cache, ids=tokens, belief=None, is_canvas=False, wants=wants, adapter=adapter)

    def _passes(self, slices: list[_Slice]) -> list[Tensor]:
        """Hidden rows each slice wants, from one shared pass or one pass a slice."""
        if not self.shares_passes:
            return [hidden for piece in slices for hidden in self._pass([piece])]
        # Slices under one adapter side by side; a request's causal rows stay before its canvas.
        order = sorted(range(len(slices)), key=lambda i: _adapter_key(slices[i]))
        outputs: list[Tensor] = [slices[0].ids] * len(slices)
        for i, hidden in zip(order, self._pass([slices[i] for i in order]), strict=True):
            outputs[i] = hidden
        return outputs

    def _pass(self, slices: list[_Slice]) -> list[Tensor]:
        segments: list[Segment] = []
        positions, canvas_flags, wanted, counts = [], [], [], []
        # A causal slice moves its cache's length only inside the pass; a canvas behind it starts after it.
        ends: dict[int, int] = {}
        row = 0
        for piece in slices:
            num = piece.ids.shape[0]
            first = ends.get(id(piece.cache), piece.cache.length)
            if not piece.is_canvas:
                ends[id(piece.cache)] = first + num
            segments.append(Segment(start=row, stop=row + num, is_canvas=piece.is_canvas, cache=piece.cache))
            positions.append(torch.arange(first, first + num, device=self.device))
            canvas_flags.append(torch.full((num,), piece.is_canvas, device=self.device))
            out = {"all": range(row, row + num), "last": range(row + num - 1, row + num), "none": range(0)}[piece.wants]
            wanted += out
            counts.append(len(out))
            row += num
        rows = PassRows(
            positions=torch.cat(positions),
            is_canvas=torch.cat(canvas_flags),
            output_rows=None if len(wanted) == row else torch.tensor(wanted, dtype=torch.int64, device=self.device),
            adapters=_adapted_rows(slices),
        )
        num_keys = max(segment.cache.length for segment in segments) + row
        with few_threads(row * max(self._row_products, num_keys * self._key_products)):
            hidden = self.model(self._embed(slices), rows, CachedAttention(self.config, segments))
        return list(hidden.split(counts))

    def _embed(self, slices: list[_Slice]) -> Float[Tensor, "N D"]:
        parts: list[Tensor | None] = [None] * len(slices)
        prompts = [i for i, piece in enumerate(slices) if not piece.is_canvas]
        for _, group in groupby(range(len(slices)), key=lambda i: id(slices[i].adapter)):
            canvases = [i for i in group if slices[i].is_canvas]
            if canvases:
                ids = torch.cat([slices[i].ids for i in canvases])
                beliefs = self._beliefs([slices[i] for i in canvases])
                embedded = self.model.embed_canvas(ids, beliefs, slices[canvases[0]].adapter)
                _scatter(parts, canvases, embedded, slices)
        if prompts:
            ids = torch.cat([slices[i].ids for i in prompts])
            _scatter(parts, prompts, self.model.embed_prompt(ids), slices)
        return torch.cat([part for part in parts if part is not None])

    def _beliefs(self, canvases: list[_Slice]) -> Float[Tensor, "N D"] | None:
        """Beliefs of all canvases, zero rows for those in their first step; None where nobody has one."""
        if all(piece.belief is None for piece in canvases):
            return None
        like = self.model.decoder.embedding
        blank = [like.new_zeros(piece.ids.shape[0], self.config.hidden_size) for piece in canvases]
        return torch.cat(
            [z if piece.belief is None else piece.belief for piece, z in zip(canvases, blank, strict=True)]
        )


def _adapter_key(piece: _Slice) -> tuple[int, bool]:
    """What slices must have in common to take a layer's products together; no adapter comes first."""
    if piece.adapter is None:
        return (0, False)
    return (id(piece.adapter), piece.is_canvas and not piece.adapter.is_shared)


def _adapted_rows(slices: list[_Slice]) -> list[AdaptedRows] | None:
    """The stretches of rows under each adapter; None where there is none."""
    if all(piece.adapter is None for piece in slices):
        return None
    stretches, start = [], 0
    for _, group in groupby(slices, key=_adapter_key):
        pieces = list(group)
        stop = start + sum(piece.ids.shape[0] for piece in pieces)
        stretches.append(AdaptedRows(start, stop, pieces[0].adapter, pieces[0].is_canvas))
        start = stop
    return stretches


def is_tied(model: Transformer) -> bool:
    """Whether causal and canvas rows may share a pass."""
    return model.own_encoder is None


def _scatter(parts: list[Tensor | None], numbers: list[int], rows: Tensor, slices: list[_Slice]) -> None:
    sizes = [slices[i].ids.shape[0] for i in numbers]
    for number, part in zip(numbers, rows.split(sizes), strict=True):
        parts[number] = part
