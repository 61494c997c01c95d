"""Text that goes out before its canvas has settled: as a plain loop has it, never taken back, alone and in a crowd."""

import re

import pytest

from presswork.engine.engine import Engine
from presswork.engine.events import Commit, Done, Draft
from presswork.engine.loader import load
from presswork.engine.params import SamplingParams
from presswork.errors import RequestError
from presswork.grammar.languages import Regex
from tests.engine.conftest import prompt_ids
from tests.engine.plain import plain_canvas

PROMPT = prompt_ids(7, 1)
# Cold, so that a model of random weights settles; a bound that accepts much.
OWN = dict(
    max_tokens=20, seed=3, max_denoising_steps=12, entropy_bound=20.0, t_min=0.05, t_max=0.3, ignore_eos=True,
    commit_after=1, confidence_threshold=None,
)  # fmt: skip


def commits(events: list) -> list[Commit]:
    return [event for event in events if isinstance(event, Commit)]


@pytest.mark.parametrize("pins", [{}, {1: 11, 9: 12, 18: 13}])
@pytest.mark.parametrize("commit_after", [1, 2, 3])
def test_the_engine_agrees_with_a_plain_loop_over_three_canvases(engine, pins, commit_after):
    params = SamplingParams(**{**OWN, "commit_after": commit_after})
    written: list[int] = []
    plain: list[tuple[int, int]] = []
    for index, length in enumerate((8, 8, 4)):
        inside = {p - len(written): token for p, token in pins.items() if 0 <= p - len(written) < length}
        canvas, counts, _ = plain_canvas(engine, PROMPT, written, index, length, inside, params)
        written += canvas
        plain += [(index, b - a) for a, b in zip(counts, [*counts[1:], length], strict=True) if b > a]
    assert len(plain) > 3, "the case must commit early"
    found = commits(list(engine.stream(prompt_token_ids=PROMPT, pins=pins, **{**OWN, "commit_after": commit_after})))
    assert [token for commit in found for token in commit.token_ids] == written
    assert [(commit.canvas_index, len(commit.token_ids)) for commit in found] == plain


def test_what_is_text_stays_in_every_later_draft(engine):
    text: list[int] = []
    open_canvas = 0
    for event in engine.stream(prompt_token_ids=PROMPT, drafts=True, **OWN):
        if isinstance(event, Commit):
            text = event.token_ids if event.canvas_index > open_canvas else text + event.token_ids
            open_canvas = event.canvas_index
        elif isinstance(event, Draft) and event.canvas_index == open_canvas:
            assert event.num_committed == len(text)
            assert event.token_ids[: len(text)] == text


def test_a_crowd_changes_nothing(confident_model):
    cases = [{**OWN, "seed": seed, "commit_after": after} for seed in range(4) for after in (1, 2, None)]
    alone = [Engine(confident_model).generate(prompt_token_ids=PROMPT, **case).token_ids for case in cases]
    engine = Engine(confident_model)
    crowd = [engine.submit(PROMPT, engine.defaults.changed(**case)) for case in cases]
    found = [next(e.reply for e in list(engine.events(one)) if isinstance(e, Done)).token_ids for one in crowd]
    assert found == alone


def test_logprobs_and_traces_have_an_entry_for_every_token(engine):
    pins = {2: 11}
    reply = engine.generate(prompt_token_ids=PROMPT, pins=pins, logprobs=1, trace=True, **OWN)
    assert [one.token_id for one in reply.logprobs] == reply.token_ids
    assert [one.token_id for one in reply.trace] == reply.token_ids
    assert [one.is_pinned for one in reply.trace] == [position in pins for position in range(20)]


@pytest.fixture(scope="module")
def molecules():
    return load("molecules")


def test_an_end_that_settled_ends_the_reply_before_its_canvas_is_done(molecules):
    fewer = 0
    for seed in range(8):
        ask = {"prompt_token_ids": [molecules.model.config.bos_token_id], "max_denoising_steps": 32, "seed": seed}
        *told, done = molecules.stream(commit_after=1, **ask)
        assert "".join(commit.text for commit in commits(told)) == done.reply.text
        whole = molecules.generate(**ask)
        is_early = done.reply.stats.num_denoise_steps < whole.stats.num_denoise_steps
        fewer += is_early and done.reply.finish_reason == "stop"
    assert fewer


@pytest.mark.parametrize(
    "more", [{"frequency_penalty": 3.0}, {"repetition_penalty": 1.5}, {"min_tokens": 9, "ignore_eos": False}]
)
def test_what_looks_back_counts_earlier_canvases_alone(engine, more):
    """A canvas's first step reads the same whether or not the one before went out in parts."""
    ask = {**OWN, "entropy_bound": 30.0, "max_tokens": 16, **more}
    parts = engine.generate(prompt_token_ids=PROMPT, **ask)
    whole = engine.generate(
        prompt_token_ids=PROMPT, **{**ask, "commit_after": None}, pins=dict(enumerate(parts.token_ids[:8]))
    )
    start = engine.generate(
        prompt_token_ids=PROMPT, **{**ask, "max_denoising_steps": 12}, pins=dict(enumerate(parts.token_ids[:8]))
    )
    assert start.token_ids == parts.token_ids
    assert whole.token_ids[:8] == parts.token_ids[:8]


def test_an_open_canvas_has_not_been_seen(engine):
    request = engine.submit(PROMPT, engine.defaults.changed(**OWN, repetition_penalty=1.5))
    num_looked = 0
    while not request.ended:
        engine.step()
        if request.canvas is not None and request.canvas.num_held and request.num_canvases == 1:
            num_looked += 1
            assert request.seen_ids() == set(PROMPT)
    assert num_looked


def test_ends_are_held_off_from_what_goes_out_early_too(confident_model):
    ends = list(range(0, 64, 2))
    engine = Engine(confident_model, generation_config={"eos_token_id": ends})
    ask = {**OWN, "entropy_bound": 30.0, "max_tokens": 16, "ignore_eos": False, "min_tokens": 9}
    for seed in range(6):
        ids = engine.generate(prompt_token_ids=PROMPT, **{**ask, "seed": seed}).token_ids
        assert len(ids) >= 9 and not set(ids[:9]) & set(ends)


@pytest.mark.parametrize("more", [{"frequency_penalty": 9.0}, {"presence_penalty": 9.0}])
def test_what_a_canvas_has_committed_itself_is_not_penalised_in_it(engine, more):
    """Nothing was written before the first canvas, so a penalty changes nothing in it."""
    for seed in range(6):
        ask = {**OWN, "max_tokens": 8, "seed": seed}
        plain = engine.generate(prompt_token_ids=PROMPT, **ask)
        assert engine.generate(prompt_token_ids=PROMPT, **ask, **more).token_ids == plain.token_ids


def test_a_language_is_kept_to(molecules):
    pattern = "C[CNO]{5,20}(=O)?"
    for seed in range(6):
        ask = {"prompt_token_ids": [molecules.model.config.bos_token_id], "seed": seed, "max_denoising_steps": 16}
        *told, done = molecules.stream(constraint=Regex(pattern), commit_after=1, **ask)
        assert re.fullmatch(pattern, done.reply.text)
        assert "".join(commit.text for commit in commits(told)) == done.reply.text


def test_commit_after_is_a_count_and_about_canvases(engine):
    with pytest.raises(RequestError, match=r"commit_after must be an integer in 1\.\.2147483647 or none, got 0"):
        engine.generate(prompt_token_ids=PROMPT, commit_after=0)
    with pytest.raises(RequestError, match="mode 'ar' has no canvas: commit_after must be none, got 2"):
        engine.generate(prompt_token_ids=PROMPT, mode="ar", commit_after=2)
