"""Gaps that take what they need: what stands around them comes back, what they hold is what they may."""

import itertools
import random
import re

import pytest

from presswork.engine import gaps
from presswork.engine.engine import Engine, EngineConfig
from presswork.engine.fill import FillCandidate, frame_of
from presswork.engine.gaps import _indented, _is_indented
from presswork.errors import RequestError, UnsupportedError
from presswork.grammar.languages import Choices, Regex
from presswork.tasks.code.tokenizer import EOS_ID, train_tokenizer
from presswork.testing import fixture_config, fixture_model
from presswork.text.tokenizer import Tokenizer

SOURCE = "def add(a, b):\n    total = a + b\n    return total\n\n\ndef größe(total):\n    return total + 'né'\n"


@pytest.fixture(scope="module")
def engine() -> Engine:
    tokenizer = Tokenizer(train_tokenizer([SOURCE] * 4, vocab_size=310), named={"eos_token": "<eos>"})
    config = fixture_config(vocab_size=tokenizer.vocab_size + 3, eos_token_id=EOS_ID, canvas_length=24)
    return Engine(
        fixture_model(config, peak=3.0, width=2.0), tokenizer=tokenizer, config=EngineConfig(constraint_folder=None)
    )


def fill(engine, fixed, **params):
    return engine.fill_gaps(fixed, **{"max_denoising_steps": 3, "num_candidates": 2, **params})


@pytest.mark.parametrize("seed", range(16))
def test_what_stands_around_the_gaps_comes_back(engine, seed):
    rng = random.Random(seed)
    places = sorted(rng.sample(range(1, len(SOURCE)), rng.randrange(1, 4)))
    fixed = [SOURCE[a:b] for a, b in zip([0, *places], [*places, len(SOURCE)], strict=True)]
    if seed % 4 == 0:
        fixed[-1] = fixed[-1] * 10  # far more than a canvas holds
    most = rng.choice([None, 3, 60])
    reply = fill(engine, fixed, seed=seed, max_tokens=most)
    assert reply.fixed == tuple(fixed) and len(reply.texts) == len(fixed) - 1
    rest = reply.completed
    for text, gap in zip(fixed, (*reply.texts, ""), strict=True):
        assert rest.startswith(text + gap)
        rest = rest[len(text + gap) :]
    assert not rest
    assert [one.score for one in reply.candidates] == sorted((one.score for one in reply.candidates), reverse=True)


def test_of_a_text_beyond_the_context_the_end_is_read(engine):
    texts = [SOURCE * 60, SOURCE]
    assert len(engine.tokenizer.encode_plain(texts[0])) > 2 * engine.max_context
    reply = fill(engine, texts, max_tokens=6)
    assert reply.is_cut and 300 < reply.num_prompt_tokens < engine.max_context and reply.fixed == tuple(texts)
    # What is read is the end: the same as where nothing else is there.
    shorter = fill(engine, [texts[0][-2000:], SOURCE], max_tokens=6)
    assert shorter.is_cut and shorter.texts == reply.texts and shorter.num_prompt_tokens == reply.num_prompt_tokens
    whole = fill(engine, [SOURCE, SOURCE], max_tokens=6)
    assert not whole.is_cut and whole.num_prompt_tokens < 60


@pytest.mark.parametrize("most", [1, 3, 20])
@pytest.mark.parametrize("behind", [1, 10])
def test_gaps_take_no_more_tokens_than_they_may(engine, most, behind):
    """Whether the canvases reach the end of what stands behind, or show a part of it."""
    for seed in range(4):
        reply = fill(engine, [SOURCE[:30], SOURCE[30:] * behind], seed=seed, max_tokens=most)
        for one in reply.candidates:
            # Written by itself a gap may need a token more than where its end shares one with what follows.
            assert len(engine.tokenizer.encode_plain(one.texts[0])) <= most + 1


def test_lines_begun_in_a_gap_are_indented(engine):
    num_lines = 0
    for seed in range(16):
        reply = fill(engine, ["def add(a, b):\n    total", "return total\n"], indent=4, max_tokens=30, seed=seed)
        for one in reply.candidates:
            lines = one.texts[0].split("\n")
            num_lines += len(lines) - 1
            assert all(line.startswith("    ") or not line.strip(" \t") for line in lines[1:-1])
            # A line that goes on behind the gap is indented enough, or begins there.
            assert len(lines) == 1 or not lines[-1] or lines[-1].startswith("    ")
    assert num_lines
    for params, message in (({"indent": -1}, "indent must be an integer"), ({"indent": 4, "gap": Regex("a")}, "both")):
        with pytest.raises(RequestError, match=message):
            fill(engine, ["a", "b"], **params)


def test_gaps_are_kept_to_what_they_may_hold(engine):
    reply = fill(engine, ["x = [", ", ", "]\n"], gap=Regex("[0-9]{1,6}"))
    assert all(re.fullmatch("[0-9]{1,6}", text) for text in reply.texts)
    reply = fill(engine, ["def add(a, b):\n", "    return total\n"], gap=Choices(["    total = a\n", "    pass\n"]))
    assert reply.texts[0] in ("    total = a\n", "    pass\n")


def test_a_gap_may_be_longer_than_a_canvas(engine):
    reply = fill(engine, ["def add(a, b):\n", "    return total\n"], gap=Regex("[a-z ]{60}\n"), max_tokens=70)
    assert len(reply.texts[0]) == 61


@pytest.mark.parametrize("params", [{}, {"max_tokens": 40}], ids=["lengths", "floating"])
def test_the_likeliest_candidate_is_the_one_the_causal_mode_scores_best(engine, params):
    fixed, encode = ["def add(a, b):\n", "    return total\n"], engine.tokenizer.encode_plain
    reply = fill(engine, fixed, num_candidates=4, seed=3, **params)
    assert len({one.texts for one in reply.candidates}) > 1 and reply.texts == reply.candidates[0].texts
    # The last token before the gap is written again, and the end counts.
    begin, prompt, scores = engine.tokenizer.encode("")[:1], encode(fixed[0])[:-1], []
    for one in reply.candidates:
        whole = [*encode(fixed[0] + one.texts[0] + fixed[1]), EOS_ID]
        assert whole[: len(prompt)] == prompt
        scores.append(sum(engine.score([*begin, *prompt], whole[len(prompt) :])))
    assert [one.score for one in reply.candidates] == pytest.approx(scores, abs=1e-3)
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    "fixed, params, message",
    [
        (["a"], {}, "give the texts around the gaps, at least two"),
        (["a", "", "b"], {}, "must not be empty; join the gaps"),
        (["a", "b"], dict(max_tokens=0), "max_tokens must be an integer of at least 1"),
        (["a", "b"], dict(num_candidates=0), "num_candidates must be an integer in"),
        (["a", "b"], dict(stop="x"), "filling gaps decides stop itself"),
        (["a", "b"], dict(max_tokens=10_000), "of the context of 512 are left"),
    ],
)
def test_bad_gaps_say_what_is_wrong(engine, fixed, params, message):
    with pytest.raises(RequestError, match=message):
        fill(engine, fixed, **params)


def test_what_follows_may_begin_with_a_long_character(engine):
    reply = fill(engine, ["a b", "😀" * 30], gap=Regex("[a-z]{3}"), canvas_length=8)
    assert re.fullmatch("[a-z]{3}", reply.texts[0]) and reply.completed.endswith("😀" * 30)


def test_special_tokens_spelled_around_a_gap_are_mere_text(engine):
    for following in ("<eos>" * 50, "<eos>"):
        reply = fill(engine, ["a <bos> b", following], max_tokens=4)
        assert reply.completed.startswith("a <bos> b") and reply.completed.endswith(following)


def test_an_engine_of_the_other_mode_fills_gaps_too(engine):
    other = Engine(engine.model, tokenizer=engine.tokenizer, mode="ar", config=EngineConfig(constraint_folder=None))
    assert fill(other, ["a", "b"], canvas_length=8).completed.startswith("a")


def test_one_gap_is_written_at_several_lengths(engine):
    fixed = ["def add(a, b):\n    total", "\n    return total\n"]
    reply = engine.fill_gaps(fixed, max_denoising_steps=3, max_tokens=8)
    tried = engine.fill(*fixed, lengths=range(1, 9), max_denoising_steps=3).candidates
    assert [(one.texts[0], one.score) for one in reply.candidates] == [(one.text, one.score) for one in tried]
    for floating in (dict(num_candidates=1), dict(max_tokens=40), dict(gap=Regex("[a-z]*"))):
        assert len(engine.fill_gaps(fixed, **{"max_denoising_steps": 2, **floating}).candidates) in (1, 4)


def test_lengths_leave_room_for_borders_and_texts_out_that_are_not_indented(engine, monkeypatch):
    tried = []

    def write_lengths(engine, tokenizer, frame, lengths, common):
        tried.append(list(lengths))
        return [FillCandidate(text=text, length=1, score=0.0, num_denoise_steps=1) for text in texts]

    monkeypatch.setattr(gaps, "write_lengths", write_lengths)
    fixed = ["def add(a, b):\n", "    return total\n"]
    frame = frame_of(engine, engine.tokenizer, *fixed, engine.defaults)
    borders = frame.left.num_tokens + frame.right.num_tokens
    texts = ["a\nb", "a\n    b"]
    assert [one.texts for one in fill(engine, fixed, max_tokens=8, indent=4, num_candidates=8).candidates] == [
        ("a\n    b",)
    ]
    assert borders and tried == [list(range(1, 9 - borders))]
    texts = ["a\nb"]
    assert len(fill(engine, fixed, max_tokens=8, indent=4, num_candidates=3).candidates) == 3


def test_candidates_are_indented_as_the_language_says():
    language = re.compile(_indented(2, None).pattern)
    for size in range(7):
        for text in map("".join, itertools.product("a \n", repeat=size)):
            assert _is_indented(text, 2) == (language.fullmatch(text) is not None), repr(text)


def test_gaps_need_a_tokenizer(confident_model):
    with pytest.raises(UnsupportedError, match="gaps need a tokenizer"):
        Engine(confident_model).fill_gaps(["a", "b"])
