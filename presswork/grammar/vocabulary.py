"""The bytes of a tokenizer's tokens, arranged as a trie: what every language is lifted over. V vocabulary, P pieces."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from presswork.grammar import _lift_kernels as kernels


class TokenTrie:
    """Distinct byte strings in preorder, as arrays (`_lift_kernels.build_trie`)."""

    def __init__(self, pieces: Sequence[bytes]):
        """Args: pieces: sorted, distinct, none empty."""
        data = np.frombuffer(b"".join(pieces), np.uint8)
        starts = np.cumsum([0, *map(len, pieces)])
        byte, depth = np.empty(len(data), np.uint8), np.empty(len(data), np.int32)
        end, piece = np.empty(len(data), np.int64), np.empty(len(data), np.int64)
        num = kernels.build_trie(data, starts, byte, depth, end, piece) if len(data) else 0
        self.arrays = (byte[:num], depth[:num], end[:num], piece[:num])


class Vocabulary:
    """What a language needs to know of a tokenizer.

    Args:
        token_bytes: of each token id in the middle of a text; b"" for ids that are no text, which no language uses.
        marks: ids of special tokens by name.
    """

    def __init__(self, token_bytes: Sequence[bytes], marks: Mapping[str, int]):
        self.token_bytes, self.marks = token_bytes, marks

    @cached_property
    def pieces(self) -> list[bytes]:
        """The distinct byte strings, sorted."""
        return sorted(set(self.token_bytes) - {b""})

    @cached_property
    def piece_of(self) -> np.ndarray:
        """int32 [V]: each token's place in `pieces`, -1 for those without bytes."""
        place = {piece: i for i, piece in enumerate(self.pieces)}
        return np.array([place.get(text, -1) for text in self.token_bytes], np.int32)

    @cached_property
    def trie(self) -> TokenTrie:
        return TokenTrie(self.pieces)

    @cached_property
    def fingerprint(self) -> str:
        """A name for these tokens in this order."""
        lengths = np.array([len(text) for text in self.token_bytes], np.int32)
        marks = json.dumps(sorted(self.marks.items())).encode()
        return hashlib.sha256(marks + b"\0" + lengths.tobytes() + b"".join(self.token_bytes)).hexdigest()
