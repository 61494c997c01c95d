"""The cache against the plainest model of it: one list of positions a layer, copied whenever anything is shared.

Sliding layers start at aligned positions; here every position is one unless a test sets another alignment.

n KV heads, S stored positions, h head width, c new positions.
"""

import gc
import random
import weakref
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from presswork.cache import contiguous
from presswork.cache.contiguous import KeyView, SequenceCache, bytes_per_position
from presswork.config import LayerConfig, ModelConfig, periodic_layers
from presswork.testing import tiny_config

WINDOW = 5
SLIDING, FULL = 0, 1


@pytest.fixture(autouse=True)
def trimmed_to_the_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sliding layers trim at multiples of ALIGNMENT; at 1 every border shows up within a few positions."""
    monkeypatch.setattr(contiguous, "ALIGNMENT", 1)


@pytest.fixture
def config() -> ModelConfig:
    return replace(
        tiny_config(), sliding_window=WINDOW,
        layers=(
            LayerConfig(kind="sliding", head_dim=4, num_key_value_heads=2),
            LayerConfig(kind="full", head_dim=6, num_key_value_heads=1),
        ),
    )  # fmt: skip


class Source:
    """Keys and values that never repeat, so that no mix-up goes unseen."""

    def __init__(self) -> None:
        self._next = 0.0

    def draw(self, layer: LayerConfig, num: int) -> tuple[Tensor, Tensor]:
        shape = (num, layer.num_key_value_heads, layer.head_dim)
        size = num * layer.num_key_value_heads * layer.head_dim
        drawn = torch.arange(self._next, self._next + 2 * size).view(2, *shape)
        self._next += 2 * size
        return drawn[0], drawn[1]


@dataclass
class Naive:
    """Keys and values of every position ever appended, by layer; nothing is ever shared or dropped."""

    config: ModelConfig
    k: list[list[Tensor]] = field(default_factory=lambda: [[], []])
    v: list[list[Tensor]] = field(default_factory=lambda: [[], []])

    def copy(self) -> "Naive":
        return Naive(self.config, [list(one) for one in self.k], [list(one) for one in self.v])

    def first_visible(self, layer: int) -> int:
        """The oldest position that a next row may look at."""
        return 0 if self.config.layers[layer].is_full else max(0, len(self.k[layer]) - (WINDOW - 1))

    def first_stored(self, layer: int) -> int:
        visible = self.first_visible(layer)
        return visible - visible % contiguous.ALIGNMENT

    def expected(self, layer: int, k: Tensor, v: Tensor, first: int) -> tuple[list[Tensor], list[Tensor], int]:
        """The positions from `first` on, followed by new ones."""
        return [*self.k[layer][first:], *k], [*self.v[layer][first:], *v], first

    def append(self, layer: int, k: Tensor, v: Tensor) -> None:
        self.k[layer] += list(k)
        self.v[layer] += list(v)


def assert_view(view: KeyView, expected: tuple[list[Tensor], list[Tensor], int]) -> None:
    k, v, first = expected
    assert view.first == first
    for found, wanted in ((view.k, k), (view.v, v)):
        assert found.shape[1] == len(wanted)
        assert all(torch.equal(found[:, i], one) for i, one in enumerate(wanted))


def assert_stored(cache: SequenceCache, naive: Naive) -> None:
    """What the cache holds is what the naive model would still need."""
    assert cache.length == len(naive.k[FULL])
    for i, layer in enumerate(cache.layers):
        assert (layer.length, layer.first) == (len(naive.k[i]), naive.first_stored(i))
        assert layer.num_stored == layer.length - layer.first
        if layer.buffer is not None:
            rows = slice(layer.offset, layer.offset + layer.num_stored)
            view = KeyView(layer.buffer.k[:, rows], layer.buffer.v[:, rows], layer.first)
            assert_view(view, (naive.k[i][layer.first :], naive.v[i][layer.first :], layer.first))


def write(cache: SequenceCache, naive: Naive, num: int, source: Source, *, keep: bool) -> None:
    """Append or stage on both models, layer by layer, and compare what is seen."""
    for i, layer in enumerate(naive.config.layers):
        k, v = source.draw(layer, num)
        # A canvas sees exactly what it may; causal rows get all that is stored and a mask.
        first = naive.first_stored(i) if keep else naive.first_visible(i)
        expected = naive.expected(i, k, v, first)
        assert_view(cache.append(i, k, v) if keep else cache.stage(i, k, v), expected)
        if keep:
            naive.append(i, k, v)


def sequence(config: ModelConfig, num: int, source: Source) -> tuple[SequenceCache, Naive]:
    cache, naive = SequenceCache(config), Naive(config)
    write(cache, naive, num, source, keep=True)
    return cache, naive


@pytest.mark.parametrize("seed", range(12))
def test_random_histories_of_related_sequences_match_the_naive_model(
    seed: int, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small buffers, so that growing and moving happen all the time.
    monkeypatch.setattr(contiguous, "_GROWTH", 1 + seed % 4)
    monkeypatch.setattr(contiguous, "ALIGNMENT", (1, 2, 3, 8, 256)[seed % 5])
    rng, source = random.Random(seed), Source()
    pool: list[tuple[SequenceCache, Naive]] = [(SequenceCache(config), Naive(config))]
    for _ in range(150):
        cache, naive = rng.choice(pool)
        move = rng.choice(("append", "append", "stage", "stage", "snapshot", "release", "resume", "forget"))
        if move in ("append", "stage"):
            write(cache, naive, rng.choice((0, 1, 1, 2, 3, 4, 5, 9)), source, keep=move == "append")
        elif move == "snapshot":
            pool.append((cache.snapshot(), naive.copy()))
        elif move == "release":
            cache.release()
        elif move == "resume":
            cache.release()
            pool.append((cache.snapshot(), naive.copy()))
        elif len(pool) > 1:
            pool = [one for one in pool if one[0] is not cache]
        for one in pool:
            assert_stored(*one)
        if len(pool) > 6:
            pool.pop(rng.randrange(len(pool)))


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("length", [1, WINDOW - 1, WINDOW, 3 * WINDOW])
def test_two_sequences_resumed_from_one_snapshot_never_corrupt_each_other(
    length: int, released: bool, config: ModelConfig
) -> None:
    source = Source()
    cache, naive = sequence(config, length, source)
    snapshot = cache.snapshot()
    if released:
        cache.release()
    family = [(snapshot, naive.copy()), (snapshot.snapshot(), naive.copy()), (cache, naive)]
    for _ in range(4):
        for one in family:
            write(*one, 3, source, keep=False)
            write(*one, 2, source, keep=True)
            for other in family:
                assert_stored(*other)


def test_a_snapshot_copies_nothing_and_the_owner_writes_on_in_place(config: ModelConfig) -> None:
    source = Source()
    cache, naive = sequence(config, 7, source)
    before = cache.buffers()
    snapshot = cache.snapshot()
    assert snapshot.buffers() == before
    write(cache, naive, 4, source, keep=True)
    assert cache.buffers() == before


def test_a_snapshot_that_writes_while_the_owner_lives_gets_its_own_buffers(config: ModelConfig) -> None:
    source = Source()
    cache, naive = sequence(config, 7, source)
    before, snapshot, twin = cache.buffers(), cache.snapshot(), naive.copy()
    write(snapshot, twin, 1, source, keep=False)
    assert not snapshot.buffers().keys() & before.keys()
    assert cache.buffers() == before
    assert_stored(cache, naive)


def test_release_hands_the_buffers_to_the_first_successor_that_writes(config: ModelConfig) -> None:
    source = Source()
    cache, naive = sequence(config, 7, source)
    before, heirs = cache.buffers(), [cache.snapshot() for _ in range(2)]
    cache.release()
    naives = [naive.copy() for _ in heirs]
    write(heirs[1], naives[1], 2, source, keep=True)
    write(heirs[0], naives[0], 2, source, keep=True)
    assert heirs[1].buffers() == before
    assert not heirs[0].buffers().keys() & before.keys()
    write(cache, naive, 2, source, keep=True)
    assert not cache.buffers().keys() & (before.keys() | heirs[0].buffers().keys())


def test_a_released_buffer_that_went_on_is_not_taken_from_behind(config: ModelConfig) -> None:
    source = Source()
    cache, naive = sequence(config, 7, source)
    early, early_naive = cache.snapshot(), naive.copy()
    write(cache, naive, 2, source, keep=True)
    late, late_naive = cache.snapshot(), naive.copy()
    cache.release()
    before = cache.buffers()
    write(early, early_naive, 3, source, keep=True)
    assert not early.buffers().keys() & before.keys()
    assert_stored(late, late_naive)
    write(late, late_naive, 1, source, keep=True)
    assert late.buffers() == before


def test_a_buffer_left_behind_by_a_move_goes_to_a_snapshot(config: ModelConfig) -> None:
    source = Source()
    cache, naive = sequence(config, 7, source)
    before, snapshot, twin = cache.buffers(), cache.snapshot(), naive.copy()
    write(cache, naive, 1000, source, keep=True)
    assert not cache.buffers().keys() & before.keys()
    write(snapshot, twin, 1, source, keep=True)
    assert snapshot.buffers() == before


def test_a_buffer_that_only_a_canvas_moved_can_be_handed_on(config: ModelConfig) -> None:
    source = Source()
    cache, naive = sequence(config, 7, source)
    write(cache, naive, 1000, source, keep=False)
    before, heir = cache.buffers(), cache.snapshot()
    cache.release()
    write(heir, naive, 1, source, keep=True)
    assert heir.buffers() == before


def test_releasing_what_one_does_not_own_takes_nothing_from_the_owner(config: ModelConfig) -> None:
    source = Source()
    cache, naive = sequence(config, 7, source)
    before, first, second = cache.buffers(), cache.snapshot(), cache.snapshot()
    first.release()
    write(second, naive.copy(), 1, source, keep=True)
    assert not second.buffers().keys() & before.keys()
    write(cache, naive, 1, source, keep=True)
    assert cache.buffers() == before


@pytest.mark.parametrize("chunk", [1, 3, WINDOW - 1, WINDOW, 40])
@pytest.mark.parametrize("alignment", [1, 4, 256])
def test_sliding_layers_keep_the_window_less_one_rounded_out_and_full_layers_everything(
    alignment: int, chunk: int, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contiguous, "ALIGNMENT", alignment)
    source, cache, naive = Source(), SequenceCache(config), Naive(config)
    for i in range(1, 13):
        write(cache, naive, chunk, source, keep=True)
        length = i * chunk
        sliding, full = cache.layers
        assert cache.length == sliding.length == full.length == length
        assert (full.first, full.num_stored) == (0, length)
        assert sliding.first % alignment == 0
        needed = min(length, WINDOW - 1)
        assert needed <= sliding.num_stored < needed + alignment


def test_a_staged_canvas_is_not_kept(config: ModelConfig) -> None:
    source = Source()
    cache, naive = sequence(config, 7, source)
    for num in (3, 9, 400):  # within the buffer, and beyond it
        write(cache, naive, num, source, keep=False)
        assert_stored(cache, naive)
    write(cache, naive, 2, source, keep=True)
    assert cache.length == 9


def test_a_stage_over_nothing_returns_the_canvas_alone(config: ModelConfig) -> None:
    cache, naive = SequenceCache(config), Naive(config)
    write(cache, naive, 4, Source(), keep=False)
    assert cache.length == 0


def test_an_unwritten_cache_costs_nothing(config: ModelConfig) -> None:
    cache = SequenceCache(config)
    assert (cache.length, cache.num_bytes, cache.buffers()) == (0, 0, {})
    cache.release()
    assert cache.snapshot().num_bytes == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_distinct_buffers(dtype: torch.dtype, config: ModelConfig) -> None:
    cache, source = SequenceCache(config), Source()
    for i, layer in enumerate(config.layers):
        k, v = source.draw(layer, 7)
        cache.append(i, k.to(dtype), v.to(dtype))
    total = 0
    for layer in cache.layers:
        assert layer.buffer is not None
        assert layer.buffer.k.dtype == layer.buffer.v.dtype == dtype
        total += layer.buffer.k.nbytes + layer.buffer.v.nbytes
    snapshot = cache.snapshot()
    assert cache.num_bytes == snapshot.num_bytes == total
    assert sum((cache.buffers() | snapshot.buffers()).values()) == total
    k, v = source.draw(config.layers[FULL], 1)
    snapshot.append(FULL, k.to(dtype), v.to(dtype))
    assert sum((cache.buffers() | snapshot.buffers()).values()) > total


def test_a_position_of_the_released_model_costs_what_its_shapes_say() -> None:
    layers = periodic_layers(30, period=6, sliding=(256, 8), full=(512, 2))
    config = replace(tiny_config(), num_attention_heads=16, layers=layers)
    assert bytes_per_position(config, torch.bfloat16) == (20_480, 204_800)
    assert bytes_per_position(config, torch.float32) == (40_960, 409_600)


def moves(config: ModelConfig, layer: int, num_appends: int, chunk: int) -> tuple[int, int]:
    """(buffers used, largest capacity) of one layer while it grows by chunks."""
    cache, source = SequenceCache(config), Source()
    count, largest, last = 0, 0, None
    for _ in range(num_appends):
        cache.append(layer, *source.draw(config.layers[layer], chunk))
        buffer = cache.layers[layer].buffer
        assert buffer is not None
        count, largest, last = count + (buffer is not last), max(largest, buffer.capacity), buffer
    return count, largest


def test_a_full_layer_grows_by_a_share_of_its_length(config: ModelConfig) -> None:
    count, largest = moves(config, FULL, num_appends=500, chunk=16)
    assert count <= 12, "copying everything at every step would be quadratic"
    assert largest <= 2 * 500 * 16


@pytest.mark.parametrize("alignment", [1, 256])
def test_a_sliding_layer_stays_small_however_long_the_sequence(
    alignment: int, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contiguous, "ALIGNMENT", alignment)
    count, largest = moves(config, SLIDING, num_appends=2000, chunk=1)
    assert largest <= 2 * WINDOW + alignment + contiguous._GROWTH
    assert count <= 2000 / 200


def test_a_sliding_layer_gives_a_long_prompts_memory_back(config: ModelConfig) -> None:
    cache, source = SequenceCache(config), Source()
    cache.append(SLIDING, *source.draw(config.layers[SLIDING], 5000))
    cache.append(SLIDING, *source.draw(config.layers[SLIDING], 300))
    buffer = cache.layers[SLIDING].buffer
    assert buffer is not None and buffer.capacity < 1000


def test_a_dropped_sequence_is_freed_though_its_snapshot_lives(config: ModelConfig) -> None:
    cache, _ = sequence(config, 7, Source())
    snapshot, gone = cache.snapshot(), weakref.ref(cache)
    cache.release()
    del cache
    gc.collect()
    assert gone() is None and snapshot.length == 7


def test_sliding_layers_start_at_a_multiple_of_the_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention sums in aligned spans: what is stored of a window starts on one, a canvas sees the window alone."""
    monkeypatch.setattr(contiguous, "ALIGNMENT", 4)
    layer, owner = contiguous.LayerCache(kept=WINDOW - 1), object()
    rows = torch.arange(30.0)[:, None, None].expand(30, 1, 2)
    for length in range(1, 31):
        view = layer.append(owner, rows[length - 1 : length], rows[length - 1 : length])
        assert view.first % 4 == 0 and view.first <= max(0, length - WINDOW)
        assert view.k[0, :, 0].tolist() == list(range(view.first, length))
        seen = layer.stage(owner, rows[:2], rows[:2])
        assert seen.first == max(0, length - WINDOW + 1)
        assert seen.k[0, :-2, 0].tolist() == list(range(seen.first, length))
    assert layer.num_stored <= WINDOW - 1 + 3
