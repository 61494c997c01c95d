"""Reuse of computed prefixes across requests and turns, within a byte budget."""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from presswork.cache.contiguous import SequenceCache


class PrefixCache:
    """Snapshots of caches, keyed by the tokens they hold; the least recently used go first.

    Snapshots are taken where a prefill chunk, a canvas or a reply ends. They share memory with each other and with
    running requests, so the budget counts every buffer once.

    Args:
        max_bytes: the budget; 0 keeps nothing.

    num_bytes: of all distinct buffers that entries hold. num_hits: lookups that found a prefix.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._entries: OrderedDict[bytes, SequenceCache] = OrderedDict()
        self._lengths: dict[int, int] = {}
        self._holders: dict[int, int] = {}
        self.num_bytes = 0
        self.num_hits = 0

    def put(self, ids: Sequence[int], cache: SequenceCache, weights: int = 0) -> None:
        """Keep a snapshot of a cache that holds exactly these tokens. Mutates self; evicts down to the budget.

        A cache that is larger than the whole budget is not kept: it would push everything else out and then itself.
        `weights` numbers what the keys and values were computed with: the model alone (0) or an adapter.
        """
        if not ids or cache.num_bytes > self.max_bytes:
            return
        assert len(ids) == cache.length, "a snapshot is keyed by the tokens it holds"
        key = _digest(ids, weights)
        if key in self._entries:
            self._entries.move_to_end(key)
            return
        entry = self._entries[key] = cache.snapshot()
        self._lengths[len(ids)] = self._lengths.get(len(ids), 0) + 1
        for buffer, size in entry.buffers().items():
            self._holders[buffer] = self._holders.get(buffer, 0) + 1
            self.num_bytes += size if self._holders[buffer] == 1 else 0
        while self._entries and self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))

    def longest(self, ids: Sequence[int], max_length: int, weights: int = 0) -> SequenceCache | None:
        """A cache of the longest stored prefix of ids with at most max_length tokens, ready to be written to."""
        best: bytes | None = None
        lengths = sorted(length for length in self._lengths if length <= max_length)
        for key in _prefix_digests(ids, lengths, weights):
            if key in self._entries:
                best = key
        if best is None:
            return None
        self.num_hits += 1
        self._entries.move_to_end(best)
        return self._entries[best].snapshot()

    def clear(self) -> None:
        """Forget everything."""
        while self._entries:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        for buffer, size in entry.buffers().items():
            self._holders[buffer] -= 1
            if not self._holders[buffer]:
                del self._holders[buffer]
                self.num_bytes -= size
        length = entry.length
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]


def _hash(weights: int) -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=16, salt=weights.to_bytes(16, "little"))


def _digest(ids: Sequence[int], weights: int) -> bytes:
    state = _hash(weights)
    state.update(array("I", ids).tobytes())
    return state.digest()


def _prefix_digests(ids: Sequence[int], lengths: Sequence[int], weights: int) -> Iterator[bytes]:
    """Digest of each prefix, lengths ascending, in one pass over the tokens."""
    raw = array("I", ids).tobytes()
    width = array("I").itemsize
    state, done = _hash(weights), 0
    for length in lengths:
        state.update(raw[done * width : length * width])
        done = length
        yield state.copy().digest()
