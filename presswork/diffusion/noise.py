"""Counter-based noise: every random number of a request is a pure function of where it is used. L canvas.

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) keyed by the request's seed and
counting (position, step, canvas, purpose). Nothing is consumed, so batch mates and scheduling cannot change a text.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


class Purpose(IntEnum):
    """What a number is for; keeps streams apart."""

    INITIAL_CANVAS = 0
    SAMPLE = 1
    RENOISE = 2
    AUTOREGRESSIVE = 3
    START = 4


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox 4x32-10 of counters.

    Args:
        counter: uint64 [4, N], each value below 2^32.
        key: two 32-bit words.
    Returns:
        uint64 [4, N], each value below 2^32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * np.uint64(_MULTIPLIERS[0]), c2 * np.uint64(_MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


class Noise(Protocol):
    """Where a canvas gets its random numbers from. Steps count from 0, canvases from 0."""

    def initial_canvas(self, canvas: int, length: int, vocab_size: int) -> Int[Tensor, "L"]:
        """Uniform token ids a canvas starts from."""
        ...

    def uniforms(self, canvas: int, step: int, length: int) -> Float64[Tensor, "L"]:
        """One number in [0, 1) per position, to sample its candidate."""
        ...

    def renoise(self, canvas: int, step: int, length: int, vocab_size: int) -> Int[Tensor, "L"]:
        """Uniform token ids for positions that are not accepted."""
        ...


@dataclass(frozen=True, slots=True)
class CounterNoise:
    """Noise of one request from its 64-bit seed."""

    seed: int

    def initial_canvas(self, canvas: int, length: int, vocab_size: int) -> Int[Tensor, "L"]:
        return self._tokens(Purpose.INITIAL_CANVAS, canvas, 0, length, vocab_size)

    def uniforms(self, canvas: int, step: int, length: int) -> Float64[Tensor, "L"]:
        return torch.from_numpy(_as_unit(self._words(Purpose.SAMPLE, canvas, step, np.arange(length))))

    def renoise(self, canvas: int, step: int, length: int, vocab_size: int) -> Int[Tensor, "L"]:
        return self._tokens(Purpose.RENOISE, canvas, step, length, vocab_size)

    def start(self, canvas: int, length: int) -> Float64[Tensor, "L"]:
        """One number in [0, 1) per position, which decides whether a given token gives way to noise."""
        return torch.from_numpy(_as_unit(self._words(Purpose.START, canvas, 0, np.arange(length))))

    def autoregressive(self, position: int) -> float:
        """One number in [0, 1) for the token at a generated position."""
        return float(_as_unit(self._words(Purpose.AUTOREGRESSIVE, 0, 0, np.array([position])))[0])

    def _tokens(self, purpose: Purpose, canvas: int, step: int, length: int, vocab_size: int) -> Tensor:
        unit = _as_unit(self._words(purpose, canvas, step, np.arange(length)))
        return torch.from_numpy(np.floor(unit * vocab_size).astype(np.int64))

    def _words(self, purpose: Purpose, canvas: int, step: int, positions: np.ndarray) -> np.ndarray:
        counter = np.empty((4, positions.size), dtype=np.uint64)
        counter[0], counter[1], counter[2], counter[3] = positions, step, canvas, int(purpose)
        return philox(counter, (self.seed & 0xFFFFFFFF, (self.seed >> 32) & 0xFFFFFFFF))


def _as_unit(words: np.ndarray) -> np.ndarray:
    """Two 32-bit words to a double in [0, 1) with 53 random bits."""
    bits = (words[0] << np.uint64(21)) ^ (words[1] >> np.uint64(11))
    return bits.astype(np.float64) * 2.0**-53
