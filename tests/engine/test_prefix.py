"""Prefix reuse: what is found, what is evicted, and that turns continue from it."""

import pytest
import torch

from presswork.cache.contiguous import SequenceCache
from presswork.engine.engine import Engine, EngineConfig
from presswork.engine.prefix import PrefixCache
from presswork.testing import run_segment
from tests.engine.conftest import prompt_ids


def filled(model, ids: list[int]) -> SequenceCache:
    cache = SequenceCache(model.config)
    run_segment(model, model.embed_prompt(torch.tensor(ids)), cache, is_canvas=False)
    return cache


def test_the_longest_stored_prefix_is_found(confident_model):
    prefix = PrefixCache(1 << 30)
    ids = prompt_ids(20, 1)
    for length in (4, 9, 15):
        prefix.put(ids[:length], filled(confident_model, ids[:length]))
    assert prefix.longest(ids, 20).length == 15
    assert prefix.longest(ids, 14).length == 9
    assert prefix.longest([*ids[:9], 0, 0, 0], 12).length == 9
    assert prefix.longest([0, *ids], 21) is None


def test_the_byte_budget_evicts_the_least_recently_used(confident_model):
    one = filled(confident_model, prompt_ids(8, 1)).num_bytes
    prefix = PrefixCache(2 * one)
    stored = [prompt_ids(8, seed) for seed in range(3)]
    for ids in stored[:2]:
        prefix.put(ids, filled(confident_model, ids))
    assert prefix.longest(stored[0], 8) is not None
    prefix.put(stored[2], filled(confident_model, stored[2]))
    assert prefix.num_bytes <= 2 * one
    assert prefix.longest(stored[1], 8) is None
    assert prefix.longest(stored[0], 8) is not None and prefix.longest(stored[2], 8) is not None


@pytest.mark.slow
def test_a_second_turn_starts_from_the_first_and_reads_the_same(confident_model):
    engine = Engine(confident_model)
    first = engine.generate(prompt_token_ids=prompt_ids(7, 1), max_tokens=24, ignore_eos=True)
    turn = prompt_ids(7, 1) + first.token_ids + prompt_ids(4, 2)
    cached = engine.generate(prompt_token_ids=turn, max_tokens=16, ignore_eos=True)
    fresh = Engine(confident_model, config=EngineConfig(prefix_cache_bytes=0)).generate(
        prompt_token_ids=turn, max_tokens=16, ignore_eos=True
    )
    assert cached.usage.cached_tokens == 7 + 16, "prompt and both committed canvases; the last one never was"
    assert cached.token_ids == fresh.token_ids


@pytest.mark.slow
def test_memory_is_given_back(confident_model):
    engine = Engine(confident_model, config=EngineConfig(prefix_cache_bytes=0))
    engine.generate(prompt_token_ids=[prompt_ids(9, n) for n in range(5)], max_tokens=12)
    assert engine.prefix.num_bytes == 0 and engine.num_running == 0
