"""Counter-based noise: the published generator, pure functions of the place, uniform."""

import numpy as np
import pytest
import torch

from presswork.diffusion.noise import CounterNoise, philox

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "digits of pi"],
)  # fmt: skip
def test_philox_gives_the_known_answers_of_its_authors(counter, key, expected) -> None:
    words = philox(np.array(counter, np.uint64)[:, None], key)
    assert tuple(int(word) for word in words[:, 0]) == expected


def test_a_number_depends_on_its_place_alone() -> None:
    noise = CounterNoise(7)
    assert torch.equal(noise.uniforms(1, 2, 8), noise.uniforms(1, 2, 100)[:8])
    drawn = [
        noise.uniforms(1, 2, 8), noise.uniforms(1, 3, 8), noise.uniforms(2, 2, 8), CounterNoise(8).uniforms(1, 2, 8),
        CounterNoise(7 + (1 << 32)).uniforms(1, 2, 8), noise.start(1, 8), noise.uniforms(1, 0, 8),
    ]  # fmt: skip
    assert len({tuple(row.tolist()) for row in drawn}) == len(drawn)
    tokens = [
        noise.renoise(1, 2, 8, 1000), noise.renoise(1, 3, 8, 1000), noise.renoise(2, 2, 8, 1000),
        noise.initial_canvas(1, 8, 1000), noise.initial_canvas(2, 8, 1000),
    ]  # fmt: skip
    assert len({tuple(row.tolist()) for row in tokens}) == len(tokens)


def test_the_purposes_do_not_share_numbers() -> None:
    noise, length, vocab = CounterNoise(3), 64, 1 << 20
    sampled = (noise.uniforms(0, 0, length) * vocab).floor().long()
    streams = [sampled, noise.initial_canvas(0, length, vocab), noise.renoise(0, 0, length, vocab)]
    assert len(set(torch.cat(streams).tolist())) > 3 * length - 5


@pytest.mark.parametrize("vocab", [1, 64, 262_144])
def test_tokens_are_uniform_over_the_vocabulary(vocab: int) -> None:
    noise, num = CounterNoise(11), 40_000
    tokens = noise.renoise(0, 5, num, vocab)
    assert tokens.dtype == torch.int64 and int(tokens.min()) >= 0 and int(tokens.max()) < vocab
    cells = min(vocab, 64)
    counts = torch.bincount(tokens * cells // vocab, minlength=cells).double()
    expected = num / cells
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < cells + 6 * (2 * cells) ** 0.5


def test_uniform_numbers_fill_the_unit_interval() -> None:
    drawn = CounterNoise(1).uniforms(0, 0, 100_000)
    assert drawn.dtype == torch.float64 and float(drawn.min()) >= 0 and float(drawn.max()) < 1
    # Kolmogorov-Smirnov: beyond 1.95 / sqrt(n) once in a thousand seeds.
    steps = torch.arange(1, 100_001) / 100_000
    assert float((drawn.sort()[0] - steps).abs().max()) < 1.95 / 100_000**0.5
    single = [CounterNoise(1).autoregressive(i) for i in range(50)]
    assert len(set(single)) == 50 and all(0 <= x < 1 for x in single)
