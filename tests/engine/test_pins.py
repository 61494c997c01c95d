"""Pinned positions: the engine agrees with a plain loop, alone and in a crowd, over several canvases."""

import pytest

from presswork.engine.engine import Engine
from presswork.engine.events import Draft
from presswork.engine.params import SamplingParams
from presswork.errors import RequestError
from tests.engine.conftest import prompt_ids
from tests.engine.plain import plain_canvas

PROMPT = prompt_ids(7, 1)
PINS = {0: 11, 3: 12, 4: 13, 9: 14, 15: 15, 17: 16}
ASK = dict(
    prompt_token_ids=PROMPT,
    max_tokens=20,
    seed=3,
    max_denoising_steps=6,
    entropy_bound=1.0,
    ignore_eos=True,
    confidence_threshold=None,
)
PARAMS = SamplingParams(**{name: value for name, value in ASK.items() if name != "prompt_token_ids"})


def test_the_engine_agrees_with_a_plain_loop_over_three_canvases(engine):
    written: list[int] = []
    for index, length in enumerate((8, 8, 4)):
        inside = {p - len(written): token for p, token in PINS.items() if 0 <= p - len(written) < length}
        written += plain_canvas(engine, PROMPT, written, index, length, inside, PARAMS)[0]
    reply = engine.generate(pins=PINS, **ASK)
    assert reply.token_ids == written
    assert all(reply.token_ids[position] == token for position, token in PINS.items())


def test_pins_change_what_is_written_around_them_and_no_pins_change_nothing(engine):
    plain = engine.generate(**ASK).token_ids
    pinned = engine.generate(pins=PINS, **ASK).token_ids
    assert engine.generate(pins={}, **ASK).token_ids == plain
    assert [t for i, t in enumerate(pinned) if i not in PINS] != [t for i, t in enumerate(plain) if i not in PINS]


def test_every_draft_holds_the_pins_with_no_entropy(engine):
    drafts = [event for event in engine.stream(pins=PINS, drafts=True, **ASK) if isinstance(event, Draft)]
    assert len(drafts) > 3
    for draft in drafts:
        inside = {p - 8 * draft.canvas_index: t for p, t in PINS.items() if p // 8 == draft.canvas_index}
        assert inside
        for position, token in inside.items():
            assert draft.token_ids[position] == token
            assert draft.entropy[position] == 0.0 and draft.accepted[position]


def test_pinned_requests_do_not_depend_on_their_company(confident_model):
    prompts, each = [PROMPT, prompt_ids(12, 5), PROMPT], [PINS, {}, {2: 40, 19: 41}]
    ask = {k: v for k, v in ASK.items() if k not in ("prompt_token_ids", "seed")}
    together = Engine(confident_model).generate(prompt_token_ids=prompts, pins=each, seed=[3, 4, 5], **ask)
    for prompt, pins, seed, reply in zip(prompts, each, (3, 4, 5), together, strict=True):
        alone = Engine(confident_model).generate(prompt_token_ids=prompt, pins=pins, seed=seed, **ask)
        assert alone.token_ids == reply.token_ids


def test_nothing_ends_the_text_before_the_last_pin(confident_model):
    ends = list(range(0, 64, 2))
    engine = Engine(confident_model, generation_config={"eos_token_id": ends})
    ask = {**ASK, "ignore_eos": False}
    assert len(engine.generate(**ask).token_ids) < 8
    reply = engine.generate(pins={5: 7, 13: 9}, **ask)
    assert not set(reply.token_ids[:13]) & set(ends) and reply.token_ids[13] == 9
    assert reply.finish_reason == "stop" and len(reply.token_ids) < 20


def test_a_pinned_end_token_ends_only_as_the_last_pin(confident_model):
    engine = Engine(confident_model, generation_config={"eos_token_id": [63]})
    ask = {**ASK, "ignore_eos": False}
    reply = engine.generate(pins={5: 63}, **ask)
    assert len(reply.token_ids) == 6 and reply.stop_match == 63
    assert len(engine.generate(pins={5: 63, 9: 7}, **ask).token_ids) > 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(pins={20: 1}), "pins reach position 20, but max_tokens is 20"),
        (dict(pins={600: 1}, max_tokens=None), "pins reach position 600, but the context has room for 505 tokens"),
        (dict(pins={-1: 1}), "a position of pins must be an integer of at least 0"),
        (dict(pins={"0": 1}), "a position of pins must be an integer"),
        (dict(pins={2: 64}), r"pins: token id 64 at position 2 is not in 0\.\.63"),
        (dict(pins={2: "a"}), "the token pinned at position 2 must be an integer"),
        (dict(pins=[1, 2]), "pins must map positions to token ids"),
        (dict(pins=((1, 2), (1, 3))), "pins must name each position once"),
        (dict(pins={1: 2}, mode="ar"), "mode 'ar' has no canvas: leave out pins"),
        (dict(prompt_token_ids=[PROMPT] * 3, pins=[{}, {}]), "pins has 2 values for 3 prompts"),
    ],
)
def test_bad_pins_say_what_is_wrong(engine, arguments, message):
    with pytest.raises(RequestError, match=message):
        engine.generate(**{**ASK, **arguments})
    assert engine.num_running == engine.num_waiting == 0
