"""Who sees whom: a row's output changes with exactly the keys that the drawn masks show, bit for bit.

N rows, H query heads, n KV heads, h head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from presswork.cache.contiguous import SequenceCache
from presswork.config import LayerConfig, ModelConfig
from presswork.models.attention import CachedAttention, Segment, causal_visibility
from presswork.testing import tiny_config

WINDOW = 4
SLIDING, FULL = 0, 1


@pytest.fixture
def config() -> ModelConfig:
    return replace(
        tiny_config(), num_attention_heads=4, sliding_window=WINDOW,
        layers=(
            LayerConfig(kind="sliding", head_dim=8, num_key_value_heads=2),
            LayerConfig(kind="full", head_dim=16, num_key_value_heads=1),
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Queries, keys and values of some rows of one layer."""

    q: Tensor
    k: Tensor
    v: Tensor

    def part(self, start: int, stop: int) -> "Rows":
        return Rows(self.q[start:stop], self.k[start:stop], self.v[start:stop])

    def with_other_key(self, row: int) -> "Rows":
        """A copy whose key and value of one row are others; queries stay."""
        k, v = self.k.clone(), self.v.clone()
        k[row], v[row] = -k[row] + 0.5, v[row] + 1
        return Rows(self.q, k, v)


def draw(config: ModelConfig, layer: int, num_rows: int, seed: int) -> Rows:
    one, g = config.layers[layer], torch.Generator().manual_seed(seed)
    shapes = [(num_rows, heads, one.head_dim) for heads in (config.num_attention_heads, *[one.num_key_value_heads] * 2)]
    q, k, v = (torch.randn(shape, generator=g) * 0.5 for shape in shapes)
    return Rows(q, k, v)


def attend(config: ModelConfig, layer: int, parts: Sequence[tuple[SequenceCache, Rows, bool]]) -> tuple[Tensor, ...]:
    """One layer's attention over (cache, rows, is canvas) segments; the output of each."""
    segments, start = [], 0
    for cache, rows, is_canvas in parts:
        stop = start + len(rows.q)
        segments.append(Segment(start=start, stop=stop, is_canvas=is_canvas, cache=cache))
        start = stop
    q, k, v = (torch.cat([getattr(rows, name) for _, rows, _ in parts]) for name in ("q", "k", "v"))
    return CachedAttention(config, segments)(layer, q, k, v).split([len(rows.q) for _, rows, _ in parts])


def causal(config: ModelConfig, layer: int, rows: Rows, chunks: Sequence[int]) -> tuple[SequenceCache, Tensor]:
    """A sequence prefilled in chunks of the given sizes."""
    cache, outputs, start = SequenceCache(config), [], 0
    for num in chunks:
        outputs += attend(config, layer, [(cache, rows.part(start, start + num), False)])
        start += num
    return cache, torch.cat(outputs) if outputs else rows.q


def changed_rows(before: Tensor, after: Tensor) -> list[bool]:
    """Which rows differ in any bit."""
    return (before != after).flatten(1).any(1).tolist()


CHUNKS = [(11,), (1,) * 11, (3, 8), (4, 4, 3), (5, 6), (1, 10), (7, 1, 3)]


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("layer", [SLIDING, FULL], ids=["sliding", "full"])
def test_a_causal_row_sees_itself_and_the_window_behind_it(
    config: ModelConfig, layer: int, chunks: tuple[int, ...]
) -> None:
    rows = draw(config, layer, 11, seed=1)
    _, before = causal(config, layer, rows, chunks)
    reach = WINDOW if layer == SLIDING else 11
    for key in range(11):
        _, after = causal(config, layer, rows.with_other_key(key), chunks)
        assert changed_rows(before, after) == [key <= row < key + reach for row in range(11)], key


@pytest.mark.parametrize("length", [0, 1, WINDOW - 2, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
@pytest.mark.parametrize("layer", [SLIDING, FULL], ids=["sliding", "full"])
def test_every_canvas_row_sees_the_same_end_of_the_prefix(config: ModelConfig, layer: int, length: int) -> None:
    prefix, rows = draw(config, layer, length, seed=2), draw(config, layer, 2 * WINDOW + 1, seed=3)
    chunks = (length,) if length else ()

    def denoise(prefix: Rows) -> Tensor:
        cache, _ = causal(config, layer, prefix, chunks)
        return attend(config, layer, [(cache, rows, True)])[0]

    before = denoise(prefix)
    first_seen = max(0, length - (WINDOW - 1)) if layer == SLIDING else 0
    for key in range(length):
        assert changed_rows(before, denoise(prefix.with_other_key(key))) == [key >= first_seen] * len(rows.q), key


@pytest.mark.parametrize("length", [0, 1, 9])
@pytest.mark.parametrize("layer", [SLIDING, FULL], ids=["sliding", "full"])
def test_a_canvas_longer_than_the_window_sees_all_of_itself(config: ModelConfig, layer: int, length: int) -> None:
    num_rows = 3 * WINDOW
    prefix, rows = draw(config, layer, length, seed=4), draw(config, layer, num_rows, seed=5)
    cache, _ = causal(config, layer, prefix, (length,) if length else ())
    before = attend(config, layer, [(cache, rows, True)])[0]
    for key in range(num_rows):
        after = attend(config, layer, [(cache, rows.with_other_key(key), True)])[0]
        assert changed_rows(before, after) == [True] * num_rows, key


@pytest.mark.parametrize("layer", [SLIDING, FULL], ids=["sliding", "full"])
def test_what_a_canvas_wrote_is_gone_in_the_next_pass(config: ModelConfig, layer: int) -> None:
    prefix, noise, rows = (draw(config, layer, num, seed=6 + num) for num in (6, 9, 5))
    clean, _ = causal(config, layer, prefix, (6,))
    dirty, _ = causal(config, layer, prefix, (6,))
    attend(config, layer, [(dirty, noise, True)])
    assert dirty.layers[layer].length == 6
    for is_canvas in (True, False):
        expected, found = (attend(config, layer, [(cache, rows, is_canvas)])[0] for cache in (clean, dirty))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("modes", [(False, False), (True, True), (False, True), (True, False)], ids=str)
@pytest.mark.parametrize("layer", [SLIDING, FULL], ids=["sliding", "full"])
def test_sequences_do_not_see_each_other(config: ModelConfig, layer: int, modes: tuple[bool, bool]) -> None:
    prefixes = [draw(config, layer, 7, seed=20 + i) for i in range(2)]
    new = [draw(config, layer, 5, seed=30 + i) for i in range(2)]

    def run() -> tuple[Tensor, ...]:
        caches = [causal(config, layer, rows, (7,))[0] for rows in prefixes]
        return attend(config, layer, list(zip(caches, new, modes, strict=True)))

    before = run()
    for mine, other in ((0, 1), (1, 0)):
        for group in (prefixes, new):
            original = group[other]
            group[other] = draw(config, layer, len(original.q), seed=99)
            after = run()
            assert torch.equal(after[mine], before[mine])
            assert not torch.equal(after[other], before[other])
            group[other] = original


@pytest.mark.parametrize("layer", [SLIDING, FULL], ids=["sliding", "full"])
def test_segments_of_one_pass_equal_passes_of_one_segment(config: ModelConfig, layer: int) -> None:
    shapes = ((0, 3, False), (9, 6, True), (5, 1, False), (0, 6, True))
    new = [draw(config, layer, num, seed=50 + i) for i, (_, num, _) in enumerate(shapes)]

    def parts() -> list[tuple[SequenceCache, Rows, bool]]:
        prefixes = [draw(config, layer, length, seed=60 + i) for i, (length, _, _) in enumerate(shapes)]
        caches = [causal(config, layer, rows, (len(rows.q),) if len(rows.q) else ())[0] for rows in prefixes]
        return [(cache, rows, mode) for cache, rows, (_, _, mode) in zip(caches, new, shapes, strict=True)]

    for part, found in zip(parts(), attend(config, layer, parts()), strict=True):
        assert torch.equal(found, attend(config, layer, [part])[0])


def naive_visibility(rows: Sequence[int], keys: Sequence[int], window: int | None) -> list[list[bool]]:
    return [[key <= row and (window is None or key > row - window) for key in keys] for row in rows]


@pytest.mark.parametrize("window", [None, 2, 3, 5])
def test_causal_visibility_is_the_drawn_rule_for_every_view(window: int | None) -> None:
    cases = [(n, first, stored) for n in range(1, 7) for first in range(8) for stored in range(first + 1)]
    for num_rows, first_row, num_stored in cases:
        if window is not None and num_stored > window - 1:
            continue
        first_key = first_row - num_stored
        found = causal_visibility(num_rows, first_row, num_stored + num_rows, first_key, window, torch.device("cpu"))
        expected = torch.tensor(
            naive_visibility(range(first_row, first_row + num_rows), range(first_key, first_row + num_rows), window)
        )
        if found is None:
            assert expected.all(), "no mask means that everything is seen"
        else:
            assert torch.equal(found, expected)


def test_a_single_row_needs_no_mask_unless_the_view_is_wider_than_its_window() -> None:
    cpu = torch.device("cpu")
    assert causal_visibility(1, 8, 9, 0, None, cpu) is None
    assert causal_visibility(1, 8, 3, 6, 3, cpu) is None
    wide = causal_visibility(1, 8, 4, 5, 3, cpu)
    assert wide is not None and wide.tolist() == [[False, True, True, True]]


@pytest.mark.parametrize("is_canvas", [False, True], ids=["causal", "canvas"])
def test_attention_over_nothing_but_oneself_returns_the_value(config: ModelConfig, is_canvas: bool) -> None:
    for layer in (SLIDING, FULL):
        rows = draw(config, layer, 1, seed=40)
        found = attend(config, layer, [(SequenceCache(config), rows, is_canvas)])[0]
        repeats = config.num_attention_heads // config.layers[layer].num_key_value_heads
        torch.testing.assert_close(found, rows.v.repeat_interleave(repeats, dim=1))


def test_query_heads_read_their_own_group_of_keys(config: ModelConfig) -> None:
    rows = draw(config, SLIDING, 5, seed=41)
    before = attend(config, SLIDING, [(SequenceCache(config), rows, True)])[0]
    for head in range(2):
        v = rows.v.clone()
        v[:, head] += 1
        after = attend(config, SLIDING, [(SequenceCache(config), Rows(rows.q, rows.k, v), True)])[0]
        changed = (before != after).flatten(2).any(2).any(0)
        assert changed.tolist() == [query // 2 == head for query in range(4)]
