"""Key-value storage of one sequence: one growing buffer a layer, shared between snapshots until somebody writes.

n KV heads, S stored positions, h head width, c new positions.

Full layers keep every position. Sliding layers keep the last window - 1, which is all that a causal row or a canvas
may still look at, rounded out so that the first stored position is a multiple of ALIGNMENT: attention adds keys up in
aligned spans, so a row's sums come out the same wherever a prefill was cut into chunks.

A snapshot shares its sequence's buffers: positions below its length never change, so nothing is copied. Writing needs
ownership of the buffer; who does not have it copies first.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from presswork.config import ModelConfig

ALIGNMENT = 256
_GROWTH = 256


class _Buffer:
    """Memory of one layer; `used` is the number of slots that some snapshot or the owner relies on."""

    __slots__ = ("k", "owner", "used", "v")

    def __init__(self, like: Tensor, num_kv_heads: int, capacity: int, head_dim: int, owner: object):
        self.k = like.new_empty(num_kv_heads, capacity, head_dim)
        self.v = like.new_empty(num_kv_heads, capacity, head_dim)
        self.used, self.owner = 0, owner

    @property
    def capacity(self) -> int:
        return self.k.shape[1]

    @property
    def num_bytes(self) -> int:
        return 2 * self.k.numel() * self.k.element_size()


@dataclass(frozen=True, slots=True)
class KeyView:
    """Keys and values a row may look at, in order of position; `first` is the absolute position of the first."""

    k: Float[Tensor, "n S h"]
    v: Float[Tensor, "n S h"]
    first: int


class LayerCache:
    """One layer's stored positions first .. length - 1."""

    __slots__ = ("buffer", "first", "kept", "length", "offset")

    def __init__(self, kept: int | None):
        self.kept = kept
        self.buffer: _Buffer | None = None
        self.offset = 0
        self.first = 0
        self.length = 0

    @property
    def num_stored(self) -> int:
        return self.length - self.first

    def append(self, owner: object, k: Float[Tensor, "c n h"], v: Float[Tensor, "c n h"]) -> KeyView:
        """Store new positions; returns what the first of them may see followed by themselves. Mutates self."""
        stop = self._write(owner, k, v)
        assert self.buffer is not None
        view = KeyView(self.buffer.k[:, self.offset : stop], self.buffer.v[:, self.offset : stop], self.first)
        self.length += k.shape[0]
        self.buffer.used = stop
        if self.kept is not None:
            surplus = max(0, self.length - self.kept) // ALIGNMENT * ALIGNMENT - self.first
            self.offset, self.first = self.offset + max(0, surplus), self.first + max(0, surplus)
        return view

    def stage(self, owner: object, k: Float[Tensor, "c n h"], v: Float[Tensor, "c n h"]) -> KeyView:
        """Place new positions behind the stored ones without keeping them; the next write overwrites them.

        Returns: what a canvas sees: the last `kept` stored positions, or all of them, and the new ones.
        """
        stop = self._write(owner, k, v)
        assert self.buffer is not None
        hidden = 0 if self.kept is None else max(0, self.num_stored - self.kept)
        start = self.offset + hidden
        return KeyView(self.buffer.k[:, start:stop], self.buffer.v[:, start:stop], self.first + hidden)

    def _write(self, owner: object, k: Tensor, v: Tensor) -> int:
        """Copy new positions behind the stored ones; returns the slot after the last."""
        start = self._make_room(owner, k, v)
        stop = start + k.shape[0]
        assert self.buffer is not None
        self.buffer.k[:, start:stop] = k.transpose(0, 1)
        self.buffer.v[:, start:stop] = v.transpose(0, 1)
        return stop

    def _make_room(self, owner: object, k: Tensor, v: Tensor) -> int:
        """First free slot of a buffer this owner may write, moved to a larger or own one where needed."""
        num_new, num_kv, head_dim = k.shape
        end = self.offset + self.num_stored
        buffer = self.buffer
        if buffer is not None and buffer.owner is None and buffer.used == end:
            buffer.owner = owner
        if buffer is not None and buffer.owner is owner and end + num_new <= buffer.capacity:
            return end
        stored = self.num_stored
        slack = max(_GROWTH, self.kept or stored // 2)
        fresh = _Buffer(k, num_kv, stored + num_new + slack, head_dim, owner)
        if buffer is not None:
            fresh.k[:, :stored] = buffer.k[:, self.offset : end]
            fresh.v[:, :stored] = buffer.v[:, self.offset : end]
            if buffer.owner is owner:
                buffer.owner = None
        self.buffer, self.offset, fresh.used = fresh, 0, stored
        return stored

    def clone(self) -> "LayerCache":
        """Another view of the same stored positions."""
        other = LayerCache(self.kept)
        other.buffer, other.offset, other.first, other.length = self.buffer, self.offset, self.first, self.length
        return other


class SequenceCache:
    """Keys and values of one sequence over all layers."""

    def __init__(self, config: ModelConfig):
        kept = config.sliding_window - 1
        self.layers = [LayerCache(None if layer.is_full else kept) for layer in config.layers]

    @property
    def length(self) -> int:
        """Positions ever written."""
        return self.layers[-1].length

    def append(self, layer: int, k: Float[Tensor, "c n h"], v: Float[Tensor, "c n h"]) -> KeyView:
        """Store a causal pass's keys and values of one layer. Mutates the cache."""
        return self.layers[layer].append(self, k, v)

    def stage(self, layer: int, k: Float[Tensor, "c n h"], v: Float[Tensor, "c n h"]) -> KeyView:
        """Stored positions followed by a canvas's own, for this pass only."""
        return self.layers[layer].stage(self, k, v)

    def snapshot(self) -> "SequenceCache":
        """A copy-on-write twin at the current length. Neither sees what the other writes later."""
        twin = object.__new__(SequenceCache)
        twin.layers = [layer.clone() for layer in self.layers]
        return twin

    def release(self) -> None:
        """Give up ownership, so that a snapshot's successor may write on in place."""
        for layer in self.layers:
            if layer.buffer is not None and layer.buffer.owner is self:
                layer.buffer.owner = None

    def buffers(self) -> dict[int, int]:
        """Bytes of each distinct buffer, keyed by identity."""
        return {id(layer.buffer): layer.buffer.num_bytes for layer in self.layers if layer.buffer is not None}

    @property
    def num_bytes(self) -> int:
        return sum(self.buffers().values())


def bytes_per_position(config: ModelConfig, dtype: torch.dtype) -> tuple[int, int]:
    """(full layers, sliding layers): bytes one more position costs; sliding layers stop at the window."""
    totals = {True: 0, False: 0}
    for layer in config.layers:
        totals[layer.is_full] += 2 * layer.num_key_value_heads * layer.head_dim * dtype.itemsize
    return totals[True], totals[False]
