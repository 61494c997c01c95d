"""A request whose time is over takes what it has; what must be whole is still written to its end."""

import re
import time

import pytest

from presswork.engine.engine import Engine, EngineConfig
from presswork.engine.events import Commit, Draft
from presswork.engine.loader import load
from presswork.errors import RequestError
from presswork.grammar.languages import Regex
from tests.engine.conftest import prompt_ids

PROMPT = prompt_ids(7, 1)
# Warm, and never stopped early: without a limit every canvas takes all its steps.
OWN = dict(
    prompt_token_ids=PROMPT, max_tokens=20, seed=3, max_denoising_steps=9, stability_threshold=None, ignore_eos=True
)


def test_the_canvas_becomes_text_after_the_step_it_is_in(engine):
    whole = list(engine.stream(drafts=True, **OWN))
    first = next(event for event in whole if isinstance(event, Draft))
    events = list(engine.stream(drafts=True, max_time=0, **OWN))
    assert [type(event).__name__ for event in events] == ["Draft", "Commit", "Done"]
    reply = events[-1].reply
    assert reply.token_ids == first.token_ids and reply.finish_reason == "length"
    assert reply.stats.num_denoise_steps == reply.stats.num_canvases == 1


def test_a_canvas_that_was_begun_in_time_ends_when_the_time_does(engine):
    """The clock runs out in the fourth step of the second canvas."""
    stream, texts, drafts = engine.stream(drafts=True, max_time=3600, **OWN), [], []
    for event in stream:
        texts += event.token_ids if isinstance(event, Commit) else []
        drafts += [event] if isinstance(event, Draft) else []
        if isinstance(event, Draft) and (event.canvas_index, event.step) == (1, 3):
            (request,) = engine._scheduler.running
            request.submitted_at -= 3600
    assert [(draft.canvas_index, draft.step) for draft in drafts][-2:] == [(1, 3), (1, 4)]
    plain = [event for event in engine.stream(drafts=True, **OWN) if isinstance(event, Draft)]
    same = next(draft for draft in plain if (draft.canvas_index, draft.step) == (1, 4))
    assert texts == plain[8].token_ids + same.token_ids


def test_time_enough_changes_nothing(engine):
    limited, free = engine.generate(max_time=3600.0, **OWN), engine.generate(**OWN)
    assert limited.token_ids == free.token_ids and limited.stats.num_denoise_steps == free.stats.num_denoise_steps


def test_a_neighbour_is_not_hurried(engine):
    alone, own = engine.generate(**OWN), {name: value for name, value in OWN.items() if name != "prompt_token_ids"}
    requests = [engine.submit(PROMPT, engine.defaults.changed(**own, max_time=limit)) for limit in (0, None)]
    hurried, other = [engine.reply(request) for request in requests]
    assert hurried.stats.num_denoise_steps == 1 and other.token_ids == alone.token_ids


def test_one_token_at_a_time_ends_too(engine):
    whole = engine.generate(mode="ar", temperature=0.0, **OWN)
    reply = engine.generate(mode="ar", temperature=0.0, max_time=0, **OWN)
    assert reply.token_ids == whole.token_ids[:1] and reply.finish_reason == "length"


def test_a_constraint_and_pins_are_kept_to_their_end(engine, tmp_path):
    pinned = engine.generate(max_time=0, pins={1: 11, 17: 12}, **OWN)
    assert (pinned.token_ids[1], pinned.token_ids[17], len(pinned.token_ids)) == (11, 12, 20)
    assert pinned.stats.num_denoise_steps == pinned.stats.num_canvases == 3
    sudoku = load("sudoku", config=EngineConfig(constraint_folder=tmp_path))
    rows = "\n".join([r"[1-9]{9}"] * 9)
    for mode, num_steps in (("diffusion", 1), ("ar", 0)):
        reply = sudoku.generate("." * 81, constraint=Regex(rows), max_time=0, mode=mode)
        assert re.fullmatch(rows, reply.text) and reply.finish_reason == "stop"
        assert reply.stats.num_denoise_steps == num_steps * reply.stats.num_canvases


def test_held_back_text_comes_with_the_end(tmp_path):
    """A stop string that has half come may be text after all."""
    code = load("code")
    whole = code.generate("def add(", raw=True, max_time=0, seed=1, ignore_eos=True)
    held = code.generate("def add(", raw=True, max_time=0, seed=1, ignore_eos=True, stop=whole.text[-1] + "§")
    assert whole.finish_reason == "length" and held.text == whole.text
    parts = [
        event.text
        for event in code.stream("def add(", raw=True, max_time=0, seed=1, ignore_eos=True, stop=whole.text[-1] + "§")
        if isinstance(event, Commit)
    ]
    assert "".join(parts) == whole.text


def test_it_is_real_time(engine):
    started = time.perf_counter()
    reply = engine.generate(**{**OWN, "max_tokens": 400, "max_denoising_steps": 100_000}, max_time=0.3)
    assert reply.finish_reason == "length" and 0.3 <= time.perf_counter() - started < 20


@pytest.mark.parametrize("bad", [-1, "1", True, float("nan"), float("inf")])
def test_a_bad_limit_is_named(engine: Engine, bad):
    with pytest.raises(RequestError, match="max_time must be a number in"):
        engine.generate(max_time=bad, **OWN)
