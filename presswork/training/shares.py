"""A batch cut into shares, one for each process of a run.

B examples, C canvases; examples lie side by side in the shares, canvases go where their example goes:

    examples   0 1 2 | 3 4          two shares of five examples
    canvases   0 0 2 | 3 4 4        by the example each belongs to
"""

from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from presswork.training.loss import Batch, Drafts


def share_of(batch: Batch, index: int, num: int) -> Batch:
    """Share `index` of `num`: its examples, their canvases, and what belongs to those; pure.

    Sizes differ by one example at most. A share may have no canvases, or none that is self-conditioned.

    Args:
        num: at most the number of examples.
    """
    count = batch.ids.shape[0]
    first, stop = index * count // num, (index + 1) * count // num
    is_mine = (batch.examples >= first) & (batch.examples < stop)
    chosen, drafts = batch.self_conditioned, batch.drafts
    return Batch(
        ids=batch.ids[first:stop],
        targets=batch.targets[first:stop],
        examples=batch.examples[is_mine] - first,
        starts=batch.starts[is_mine],
        x0=batch.x0[is_mine],
        xt=batch.xt[is_mine],
        self_conditioned=_renumbered(chosen, is_mine),
        belief=None if batch.belief is None else batch.belief[is_mine],
        drafts=None if drafts is None else _share_of_drafts(drafts, is_mine),
        origins=None if batch.origins is None else batch.origins[first:stop],
        canvas_origins=None if batch.canvas_origins is None else batch.canvas_origins[is_mine],
    )


def _share_of_drafts(drafts: Drafts, is_mine: Bool[Tensor, "C"]) -> Drafts:
    rows = is_mine[drafts.canvases]
    return Drafts(
        canvases=_renumbered(drafts.canvases, is_mine),
        uniform=drafts.uniform[rows],
        noise=drafts.noise[rows],
        bounds=drafts.bounds[rows],
    )


def _renumbered(canvases: Int[Tensor, "U"], is_mine: Bool[Tensor, "C"]) -> Int[Tensor, "W"]:
    """Those of the canvases that are in the share, by their places there."""
    places = is_mine.cumsum(0) - 1
    return places[canvases[is_mine[canvases]]]


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device; pure."""
    if batch.ids.device == device:
        return batch
    moved: dict[str, Any] = {f.name: _moved(getattr(batch, f.name), device) for f in fields(batch)}
    return Batch(**moved)


def _moved(value: Tensor | Drafts | None, device: torch.device) -> Tensor | Drafts | None:
    if isinstance(value, Drafts):
        return replace(value, **{f.name: getattr(value, f.name).to(device) for f in fields(value)})
    return None if value is None else value.to(device)
