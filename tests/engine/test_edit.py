"""Edits change what they may and nothing else."""

import random

import pytest

from presswork.engine import edit as edit_module
from presswork.engine.borders import opening
from presswork.engine.changes import changes_between, mean_over
from presswork.engine.edit import EditReply, _windows, checked_spans
from presswork.engine.engine import Engine, EngineConfig
from presswork.engine.rewrite import behind
from presswork.errors import RequestError, UnsupportedError
from presswork.grammar.segments import Segments
from presswork.tasks.code.tokenizer import EOS_ID, TEMPLATE, train_tokenizer
from presswork.testing import fixture_config, fixture_model
from presswork.text.chat import ChatTemplate
from presswork.text.tokenizer import Tokenizer

SOURCE = "def add(a, b):\n    total = a + b\n    return total\n\n\ndef größe(total):\n    return total + 'né'\n"


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    tokenizer = Tokenizer(train_tokenizer([SOURCE] * 4, vocab_size=310), named={"eos_token": "<eos>"})
    config = fixture_config(vocab_size=tokenizer.vocab_size + 3, eos_token_id=EOS_ID, canvas_length=24)
    return Engine(
        fixture_model(config, peak=3.0, width=2.0), tokenizer=tokenizer, template=ChatTemplate(TEMPLATE),
        config=EngineConfig(constraint_folder=None),
    )  # fmt: skip


def edit(engine, text=SOURCE, instruction="", **params) -> EditReply:
    return engine.edit(text, instruction, **{"max_denoising_steps": 3, "num_candidates": 2, **params})


def outside(text: str, spans) -> list[str]:
    """The parts of a text around spans."""
    borders = [0, *[place for span in spans for place in span], len(text)]
    return [text[a:b] for a, b in zip(borders[0::2], borders[1::2], strict=True)]


def assert_kept(reply: EditReply, old: str, spans) -> None:
    """The new text is the old one with the parts replaced."""
    kept = outside(old, spans)
    assert [(part.start, part.stop) for part in reply.spans] == list(spans)
    expected = kept[0] + "".join(part.new + text for part, text in zip(reply.spans, kept[1:], strict=True))
    assert reply.text == expected and reply.old == old


@pytest.mark.parametrize("max_changes", [None, 3])
@pytest.mark.parametrize("seed", range(12))
def test_outside_the_spans_nothing_changes(engine, seed, max_changes):
    rng = random.Random(seed)
    text = "".join(rng.choices(["total", " ", "\n    ", "é", "a", "ß", "(", "日", "return"], k=rng.randrange(3, 40)))
    places = sorted(rng.sample(range(len(text) + 1), 2 * rng.randrange(1, 4))) if len(text) > 6 else [0, len(text)]
    spans = list(zip(places[0::2], places[1::2], strict=True))
    reply = edit(engine, text, spans=spans, strength=rng.choice([0.3, 1.0]), seed=seed, max_changes=max_changes)
    assert_kept(reply, text, spans)


@pytest.mark.parametrize("seed", range(6))
def test_texts_of_bytes_that_have_no_tokens_of_their_own_are_edited(engine, seed):
    # Each character is several tokens, none of which may be left over where the last canvas ends.
    rng = random.Random(seed)
    text = "".join(chr(rng.choice([rng.randrange(33, 0xD800), rng.randrange(0x10000, 0x110000)])) for _ in range(24))
    reply = edit(engine, text, seed=seed, max_denoising_steps=4, num_candidates=4)
    assert_kept(reply, text, [(0, len(text))])


def test_a_whole_text_is_edited_window_by_window(engine):
    reply = edit(engine, SOURCE * 2, strength=0.6)
    (part,) = reply.spans
    assert (part.start, part.stop, part.new) == (0, len(SOURCE * 2), reply.text)
    assert reply.text != reply.old and reply.diff("a.py").startswith("--- a/a.py\n+++ b/a.py\n")
    pieces = list(_windows(engine.tokenizer, SOURCE * 2, [(0, len(SOURCE * 2))], 24))
    assert len(pieces) > 3 and all(len(group) == 1 for group in pieces)
    assert "".join((SOURCE * 2)[a:b] for ((a, b),) in pieces) == SOURCE * 2
    ends = [SOURCE[b - 1 : b] == "\n" for ((_, b),) in pieces if b < len(SOURCE)]
    assert sum(ends) > len(ends) // 2


def test_at_strength_zero_without_an_instruction_nothing_changes(engine):
    reply = edit(engine, strength=0)
    assert reply.text == SOURCE and reply.num_denoise_steps == 0 and reply.diff() == ""
    assert [part.confidence for part in reply.spans] == [1.0]
    assert edit(engine, strength=0.9, max_changes=0).text == SOURCE
    assert edit(engine, strength=0.9, spans=[]).text == SOURCE
    assert edit(engine, "", strength=0.9).text == ""


@pytest.mark.parametrize("max_changes", [1, 2, 5])
def test_no_more_tokens_change_than_allowed(engine, max_changes, monkeypatch):
    written = []
    real = engine._replies

    def looking(prompts, each):
        replies = real(prompts, each)
        written.extend(zip((params.start for params in each), (reply.token_ids for reply in replies), strict=True))
        return replies

    monkeypatch.setattr(engine, "_replies", looking)
    reply = edit(engine, strength=1.0, max_changes=max_changes, num_candidates=1, temperature=1.0)
    changed = [sum(a != b for a, b in zip(old, new, strict=False)) for old, new in written]
    assert 0 < sum(changed) <= max_changes and reply.text != SOURCE
    assert all(len(new) in (len(old), len(old) + 1) for old, new in written)


def test_an_instruction_stands_before_the_text(engine, monkeypatch):
    seen = []
    real = engine.submit

    def looking(ids, *args, **kwargs):
        seen.append(engine.tokenizer.decode(ids))
        return real(ids, *args, **kwargs)

    monkeypatch.setattr(engine, "submit", looking)
    edit(engine, "a + b\n", "Make it shorter.", spans=[(4, 5)])
    assert seen[0].startswith("Make it shorter.\n\na + b\na +")


def test_an_instruction_needs_a_template(engine):
    plain = Engine(engine.model, tokenizer=engine.tokenizer)
    with pytest.raises(UnsupportedError, match="an instruction needs a chat template"):
        plain.edit("text", "shorter")


def test_the_likeliest_candidate_is_taken_and_its_confidence_told(engine):
    reply = edit(engine, spans=[(4, 7)], num_candidates=4, strength=1.0)
    (part,) = reply.spans
    assert 0.0 < part.confidence <= 1.0
    assert reply.num_denoise_steps > 4


@pytest.mark.parametrize(
    "params, message",
    [
        (dict(strength=1.5), r"strength must be a number in \[0, 1\], got 1.5"),
        (dict(max_changes=-1), "max_changes must be an integer of at least 0 or none"),
        (dict(spans=[(3, 2)]), "spans must be pairs"),
        (dict(spans=[(0, 10**6)]), "within the text's"),
        (dict(spans=[(0, 3), (2, 5)]), "must not overlap or touch"),
        (dict(spans=["ab"]), "spans must be pairs"),
        (dict(stop="x"), "edit decides stop itself"),
        (dict(top_k=3), "edit decides top_k itself"),
        (dict(num_candidates=0), r"num_candidates must be an integer in 1\.\.64, got 0"),
        (dict(nonsense=1), "unknown sampling parameter 'nonsense'"),
    ],
)
def test_bad_edits_say_what_is_wrong(engine, params, message):
    with pytest.raises(RequestError, match=message):
        edit(engine, **params)


def test_spans_come_in_order():
    assert checked_spans("abcdef", [(4, 5), (0, 2)]) == [(0, 2), (4, 5)]


def test_the_token_before_a_part_is_spelt_anew(engine):
    tokenizer = engine.tokenizer
    ids, text = behind(tokenizer, "def größe(tot", 99)
    assert tokenizer.decode(ids) + text == "def größe(tot" and text
    ids, text = behind(tokenizer, "a日", 99)
    assert text == "日" and tokenizer.decode(ids) == "a"
    assert behind(tokenizer, "", 99) == ([], "")
    assert opening(tokenizer) == tokenizer.encode("")


def test_lines_next_to_each_other_and_repeated_lines_are_told_apart(engine):
    text = "a = 1\nb = 2\nc = 3\nd = 4\ne = 5\n"
    spans = [(0, 11), (12, 23)]  # lines 1-2 and 3-4: between them there is a line feed, and in them too
    assert_kept(edit(engine, text, spans=spans, strength=0.3), text, spans)
    text = "x = [0, 0]\n" * 8
    reply = edit(engine, text, spans=[(11, 32)], strength=0.05, temperature=0.0)
    assert_kept(reply, text, [(11, 32)])
    language = Segments(("", "x = [0, 0]\n"), anchors=(0,))
    assert language.automaton().matches(text.encode())


def test_a_part_may_be_empty_and_grow(engine):
    reply = edit(engine, "ab cd", spans=[(2, 2)], strength=1.0)
    assert_kept(reply, "ab cd", [(2, 2)])
    assert edit(engine, "", spans=[(0, 0)], max_changes=3).text == ""


def test_special_tokens_spelled_in_a_text_are_mere_text(engine):
    text = "a <eos> b <eos> c"
    for max_changes in (None, 2):
        reply = edit(engine, text, spans=[(0, 1)], strength=1.0, max_changes=max_changes)
        assert_kept(reply, text, [(0, 1)])


def test_changes_turn_the_old_text_into_the_new_one(engine):
    """Whatever changed, and with how sure the model is of each by itself."""
    for seed in range(6):
        spans = [(4, 20), (40, 70)] if seed % 2 else None
        reply = edit(engine, SOURCE, spans=spans, strength=1.0, seed=seed)
        text = SOURCE
        for change in reversed(reply.changes):
            assert text[change.start : change.stop] == change.old != change.new and 0 < change.confidence <= 1
            assert spans is None or any(a <= change.start and change.stop <= b for a, b in spans)
            text = text[: change.start] + change.new + text[change.stop :]
        assert text == reply.text and reply.changes
    assert edit(engine, SOURCE, strength=0.0).changes == []


def test_how_sure_a_change_is_is_the_mean_of_its_own_tokens():
    old, new = "total = a + b", "total = größe + b * 2"
    changes = list(changes_between(old, new))
    assert [(old[a], new[b]) for a, b in changes] == [("a", "größe"), ("", " * 2")]
    # Tokens: "total =", " gr", "öß" (4 bytes), "e +", " b", " *", " 2".
    sizes, probabilities = [7, 3, 4, 3, 2, 2, 2], [0.9, 0.5, 0.4, 0.3, 0.8, 0.2, 0.1]
    found = [mean_over(new, part, sizes, probabilities) for _, part in changes]
    assert found == pytest.approx([(0.5 + 0.4 + 0.3) / 3, (0.2 + 0.1) / 2])
    ((gone, come),) = changes_between("a b c", "a c")
    assert ("a b c"[gone], "a c"[come]) == ("b ", "") and mean_over("a c", come, [2, 1], [0.9, 0.6]) == 0.6
    assert mean_over("a", slice(1, 1), [1], [0.3]) == 1.0


def test_texts_longer_than_the_context_are_edited_wherever_they_change(engine):
    text = SOURCE * 40
    assert len(engine.tokenizer.encode_plain(text)) > 2 * engine.max_context
    for start in (30, len(text) // 2, len(text) - 40):
        span = (start, start + 25)
        reply = edit(engine, text, spans=[span], strength=1.0)
        assert reply.text[:start] == text[:start] and reply.text.endswith(text[span[1] :])
        assert reply.spans[0].old == text[slice(*span)] and 0 < reply.spans[0].confidence <= 1


def test_an_instruction_shows_the_whole_text_which_has_to_fit(engine, monkeypatch):
    monkeypatch.setattr(engine, "submit", None)
    with pytest.raises(RequestError, match=r"an edit needs 3 canvases of 24 .* take [0-9]+ of its 512; edit a part"):
        edit(engine, SOURCE * 40, "Make it shorter.")
    with pytest.raises(RequestError, match=r"an edit needs 3 canvases of 200 tokens of the context, which has 512"):
        edit(engine, SOURCE, strength=1.0, canvas_length=200)


def test_windows_after_the_last_change_are_left_alone(engine, monkeypatch):
    calls = []
    real = engine._replies
    monkeypatch.setattr(engine, "_replies", lambda *args: calls.append(1) or real(*args))
    edit(engine, SOURCE * 2, strength=1.0, max_changes=1)
    assert len(calls) < 3


def test_a_diff_is_a_patch_whatever_separators_a_text_has(engine):
    reply = EditReply(
        old="a\x0cb\nc\u2028d\r\ne", text="a\x0cb\nC\r\ne", spans=[], changes=[], num_denoise_steps=0, wall_s=0.0
    )
    lines = reply.diff().split("\n")
    assert lines[3:] == [" a\x0cb", "-c\u2028d\r", "+C\r", " e", "\\ No newline at end of file", ""]


def test_the_time_of_an_edit_is_for_all_of_its_windows(engine, monkeypatch):
    given, now = [], [0.0]
    ask_rewrite = edit_module.rewrite

    def spied(engine, tokenizer, window, common, **more):
        given.append(common.max_time)
        now[0] += 1.0
        return ask_rewrite(engine, tokenizer, window, common, **more)

    monkeypatch.setattr(edit_module, "rewrite", spied)
    many = SOURCE * 3
    free = edit(engine, many, strength=1.0)
    assert set(given) == {None} and len(given) > 4
    unhurried = edit(engine, many, strength=1.0, max_time=3600.0)
    assert unhurried.text == free.text
    # Each window takes a second; what has none left stays as it is.
    given.clear()
    monkeypatch.setattr(edit_module.time, "perf_counter", lambda: now[0])
    limited = edit(engine, many, strength=1.0, max_time=2.5)
    assert given == [2.5, 1.5, 0.5]
    assert_kept(limited, many, [(0, len(many))])
    assert limited.text != many and limited.text[-len(SOURCE) :] == SOURCE
    assert limited.num_denoise_steps < free.num_denoise_steps
    nothing = edit(engine, many, strength=1.0, max_time=0)
    assert nothing.text == many and nothing.num_denoise_steps == 0 and len(given) == 3
