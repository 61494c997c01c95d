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
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._entries: OrderedDict[bytes, SequenceCache] = OrderedDict()
        self._lengths: dict[int, int] = {}
        self.num_hits = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all distinct buffers that entries hold."""
        buffers: dict[int, int] = {}
        for entry in self._entries.values():
            buffers |= entry.buffers()
        return sum(buffers.values())

    def put(self, ids: Sequence[int], cache: SequenceCache) -> None:
        """Keep a snapshot of a cache that holds exactly these tokens. Mutates self; evicts down to the budget."""
        if self.max_bytes <= 0 or not ids:
            return
        assert len(ids) == cache.length, "a snapshot is keyed by the tokens it holds"
        key = _digest(ids)
        if key in self._entries:
            self._entries.move_to_end(key)
            return
        self._entries[key] = cache.snapshot()
        self._lengths[len(ids)] = self._lengths.get(len(ids), 0) + 1
        while self._entries and self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))

    def longest(self, ids: Sequence[int], max_length: int) -> SequenceCache | None:
        """A cache of the longest stored prefix of ids with at most max_length tokens, ready to be written to."""
        best: bytes | None = None
        lengths = sorted(length for length in self._lengths if length <= max_length)
        for key in _prefix_digests(ids, lengths):
            if key in self._entries:
                best = key
        if best is None:
            return None
        self.num_hits += 1
        self._entries.move_to_end(best)
        return self._entries[best].snapshot()

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._lengths.clear()

    def _drop(self, key: bytes) -> None:
        length = self._entries.pop(key).length
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]


def _digest(ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(array("I", ids).tobytes(), digest_size=16).digest()


def _prefix_digests(ids: Sequence[int], lengths: Sequence[int]) -> Iterator[bytes]:
    """Digest of each prefix, lengths ascending, in one pass over the tokens."""
    raw = array("I", ids).tobytes()
    width = array("I").itemsize
    state, done = hashlib.blake2b(digest_size=16), 0
    for length in lengths:
        state.update(raw[done * width : length * width])
        done = length
        yield state.copy().digest()
