"""Canvases that start from a text: what stays, what gives way, which steps are left out, what is reported."""

import pytest

from presswork.diffusion.noise import CounterNoise
from presswork.engine.events import Commit, Draft
from presswork.errors import RequestError, UnsupportedError
from tests.engine.conftest import prompt_ids

PROMPT = prompt_ids(9, 1)
GIVEN = prompt_ids(8, 2)


def first_input(engine, **params):
    """The tokens of a request's first canvas before its first step."""
    request = engine.submit(PROMPT, engine.defaults.changed(max_tokens=8, **params))
    seen = []
    real = engine._runner.run

    def looking(items):
        seen.append(items[0].request.canvas.tokens.tolist())
        return real(items)

    engine._runner.run = looking
    try:
        engine.reply(request)
    finally:
        del engine._runner.run
    return seen[0]


def test_without_noise_the_canvas_starts_from_the_text(engine):
    assert first_input(engine, start=GIVEN, start_noise=0.0) == GIVEN


def test_with_all_noise_it_is_the_canvas_of_a_plain_request(engine):
    plain = engine.generate(prompt_token_ids=PROMPT, max_tokens=8)
    noised = engine.generate(prompt_token_ids=PROMPT, max_tokens=8, start=GIVEN, start_noise=1.0)
    assert noised.token_ids == plain.token_ids
    assert noised.stats.num_denoise_steps == plain.stats.num_denoise_steps


def test_noise_replaces_its_share_token_by_token(engine):
    counts = []
    for seed in range(40):
        tokens = first_input(engine, start=GIVEN, start_noise=0.25, seed=seed, max_denoising_steps=4)
        fresh = CounterNoise(seed).initial_canvas(0, 8, engine.model.config.vocab_size).tolist()
        assert all(token in pair for token, pair in zip(tokens, zip(GIVEN, fresh, strict=True), strict=True))
        counts.append(sum(token != given for token, given in zip(tokens, GIVEN, strict=True)))
    assert 0.18 < sum(counts) / 320 < 0.32


def test_the_rest_of_a_short_start_is_noise(engine):
    tokens = first_input(engine, start=GIVEN[:3], start_noise=0.0)
    fresh = CounterNoise(0).initial_canvas(0, 8, engine.model.config.vocab_size).tolist()
    assert tokens == GIVEN[:3] + fresh[3:]


@pytest.mark.parametrize("noise, steps", [(0.0, 1), (0.1, 1), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_less_noise_leaves_out_the_steps_that_would_have_undone_more(engine, noise, steps):
    params = dict(max_tokens=8, max_denoising_steps=8, stability_threshold=None)
    reply = engine.generate(prompt_token_ids=PROMPT, start=GIVEN, start_noise=noise, **params)
    assert reply.stats.num_denoise_steps == steps
    drafts = [e for e in engine.stream(prompt_token_ids=PROMPT, start=GIVEN, start_noise=noise, drafts=True, **params)]
    assert [e.step for e in drafts if isinstance(e, Draft)] == list(range(1, steps + 1))
    assert {e.max_steps for e in drafts if isinstance(e, Draft)} == {steps}
    assert [e.num_steps for e in drafts if isinstance(e, Commit)] == [steps]


def test_a_long_start_goes_on_in_the_next_canvas(engine):
    given = prompt_ids(16, 3)
    reply = engine.generate(
        prompt_token_ids=PROMPT, max_tokens=16, start=given, start_noise=0.0, trace=True, max_denoising_steps=3
    )
    assert [entry.start_id for entry in reply.trace] == given
    assert [entry.is_kept for entry in reply.trace] == [a == b for a, b in zip(reply.token_ids, given, strict=True)]


def test_a_trace_says_what_was_pinned_and_when_tokens_settled(engine):
    reply = engine.generate(
        prompt_token_ids=PROMPT, max_tokens=8, pins={2: 7}, trace=True, logprobs=0, max_denoising_steps=6
    )
    assert [entry.is_pinned for entry in reply.trace] == [i == 2 for i in range(8)]
    assert [entry.settled_step for entry in reply.trace] == [entry.settled_step for entry in reply.logprobs]
    assert reply.trace[2].settled_step == 1 and reply.trace[2].entropy == 0.0
    assert all(entry.start_id is None and not entry.is_kept for entry in reply.trace)
    assert engine.generate(prompt_token_ids=PROMPT, max_tokens=8).trace is None


@pytest.mark.parametrize(
    "params, message",
    [
        (dict(start=[70]), "token id 70 at position 0 is not an integer in 0..63"),
        (dict(start=[1.5]), r"start must be an integer in 0\.\.2147483647, got 1\.5"),
        (dict(start=[3], start_noise=1.5), r"start_noise must be a number in \[0, 1\]"),
        (dict(start=[3], mode="ar"), "mode 'ar' has no canvas: leave out start"),
    ],
)
def test_a_bad_start_says_what_is_wrong(engine, params, message):
    with pytest.raises(RequestError, match=message):
        engine.generate(prompt_token_ids=PROMPT, max_tokens=8, **params)


def test_a_text_needs_a_tokenizer(engine):
    with pytest.raises(UnsupportedError, match="has no tokenizer; give start as token ids"):
        engine.generate(prompt_token_ids=PROMPT, max_tokens=8, start="text")
