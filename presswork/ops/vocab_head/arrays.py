"""What compiled loops take in place of tensors and objects. N rows, V vocab, C classes."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from presswork.ops.vocab_head.classes import ClassWeights
from presswork.ops.vocab_head.reading import LogitEdits

_FEW_IDS = 512
BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


def bits(x: Tensor) -> np.ndarray:
    """View of a tensor's memory as whole numbers."""
    return x.view(BITS[x.dtype]).numpy()


class Edits(NamedTuple):
    """Edits of all groups end to end: ids ascending within a group; factor (0 for a ban) and bias of each [A, 2]."""

    row_group: np.ndarray
    starts: np.ndarray
    ids: np.ndarray
    changes: np.ndarray


def sorted_edits(edits: LogitEdits | None, rows: int) -> Edits:
    """The edits of a call, or of `rows` rows without any."""
    if edits is None:
        return Edits(np.full(rows, -1), np.zeros(1, np.int64), np.empty(0, np.int64), np.empty((0, 2), np.float32))
    starts, ids, changes = [0], [np.empty(0, np.int64)], [np.empty((0, 2), np.float32)]
    for group in edits.groups:
        banned = group.banned_ids.cpu().numpy()
        seen = group.seen_ids.cpu().numpy() if group.repetition_penalty != 1.0 else banned[:0]
        biased = group.bias_ids.cpu().numpy()
        ids.append(_ascending(np.concatenate([seen, biased, banned])).astype(np.int64))
        change = np.zeros((len(ids[-1]), 2), np.float32)
        if len(seen) or len(biased):
            change[:, 0] = 1.0
            change[np.searchsorted(ids[-1], seen), 0] = group.repetition_penalty
            change[np.searchsorted(ids[-1], banned), 0] = 0.0
            change[np.searchsorted(ids[-1], biased), 1] = group.bias.cpu().float().numpy()
        changes.append(change)
        starts.append(starts[-1] + len(ids[-1]))
    row_group = edits.row_group.cpu().numpy().astype(np.int64)
    return Edits(row_group, np.array(starts), np.concatenate(ids), np.concatenate(changes))


def _ascending(ids: np.ndarray) -> np.ndarray:
    """The different ones in order; most of a vocabulary may be banned, at many rows of a pass, and sorting is slow."""
    if (ids[1:] > ids[:-1]).all():
        return ids
    if len(ids) < _FEW_IDS:
        return np.unique(ids)
    is_held = np.zeros(int(ids.max()) + 1, bool)
    is_held[ids] = True
    return np.flatnonzero(is_held)


class Cuts(NamedTuple):
    """Last token each row keeps, by falling z then rising id; z minus infinity keeps all."""

    z: np.ndarray
    ids: np.ndarray


class Weights(NamedTuple):
    """Class weights [N, C + 1] (no columns if unused), each token's column, each row's class to sample from or -1."""

    log_weight: np.ndarray
    slots: np.ndarray
    wanted: np.ndarray


def flat_weights(weights: ClassWeights | None, rows: int) -> tuple[Weights, Float64[Tensor, "N"] | None]:
    """(the weights of a call, what they were lessened by)."""
    if weights is None:
        return Weights(np.empty((rows, 0), np.float32), np.empty(0, np.int32), np.full(rows, -1)), None
    by_slot, shift = weights.by_slot()
    wanted = weights.sample_class.numpy().astype(np.int64)
    return Weights(by_slot.numpy(), weights.classes.slots.numpy(), wanted), shift
