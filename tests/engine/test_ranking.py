"""The best of several replies is the one that the causal mode finds likeliest."""

import pytest

from presswork.engine.ranking import seed_of
from presswork.errors import RequestError
from tests.engine.conftest import prompt_ids

PROMPTS = [prompt_ids(9, 1), prompt_ids(5, 2)]
PARAMS = dict(max_tokens=12, max_denoising_steps=2)


def mean_score(engine, prompt, reply):
    return sum(engine.score(prompt, reply.token_ids)) / len(reply.token_ids)


def test_the_likeliest_of_the_tries_is_given_back(engine):
    got = engine.generate(prompt_token_ids=PROMPTS, best_of=4, seed=[5, 9], **PARAMS)
    for prompt, seed, reply in zip(PROMPTS, (5, 9), got, strict=True):
        tries = [engine.generate(prompt_token_ids=prompt, seed=seed_of(seed, i), **PARAMS) for i in range(4)]
        scores = [mean_score(engine, prompt, one) for one in tries]
        assert len(set(scores)) > 1
        assert reply.token_ids == tries[scores.index(max(scores))].token_ids
        assert reply.stats.num_denoise_steps == sum(one.stats.num_denoise_steps for one in tries)
        assert reply.stats.completion_tokens == len(reply.token_ids)


def test_the_best_of_one_is_the_plain_reply(engine):
    plain = engine.generate(prompt_token_ids=PROMPTS[0], seed=3, **PARAMS)
    assert engine.generate(prompt_token_ids=PROMPTS[0], seed=3, best_of=1, **PARAMS).token_ids == plain.token_ids


def test_tries_have_seeds_of_their_own():
    assert seed_of(7, 0) == 7
    assert len({seed_of(seed, i) for seed in range(50) for i in range(64)}) == 50 * 64
    assert seed_of(2**64 - 1, 1) < 2**64


@pytest.mark.parametrize("best_of", [0, 65, True, 2.0, None])
def test_a_bad_number_of_tries_is_refused(engine, best_of):
    with pytest.raises(RequestError, match=r"best_of must be an integer in 1\.\.64"):
        engine.generate(prompt_token_ids=PROMPTS[0], best_of=best_of, **PARAMS)


def test_scores_do_not_depend_on_what_the_prefix_cache_holds(engine):
    prompt = prompt_ids(300, 4)
    cold = engine.score(prompt, [5, 6, 7])
    engine.generate(prompt_token_ids=prompt, max_tokens=8)
    assert engine.prefix.num_hits == 0
    warm = engine.score(prompt, [5, 6, 7])
    assert engine.prefix.num_hits == 1
    assert warm == pytest.approx(cold, abs=1e-5)
