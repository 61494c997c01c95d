"""Tasks made of plain texts: what is cut out, damaged and asked, and how answers are counted."""

import json
from types import SimpleNamespace

import pytest

from presswork.engine.decide import Answer, DecideReply
from presswork.engine.edit import EditedSpan, EditReply
from presswork.engine.engine import Engine, EngineConfig
from presswork.engine.gaps import GapsCandidate, GapsReply
from presswork.errors import DataError, RequestError
from presswork.tasks.canvas.decide import Decision, calibration_error, evaluate_decide, next_lines, read_decisions
from presswork.tasks.canvas.edit import damaged, evaluate_edit
from presswork.tasks.canvas.fill import evaluate_fill
from presswork.tasks.canvas.texts import CutText, cut_tasks, cut_texts, read_texts
from presswork.tasks.code.tokenizer import EOS_ID, train_tokenizer
from presswork.testing import fixture_config, fixture_model
from presswork.text.tokenizer import Tokenizer

SOURCE = "def add(a, b):\n    total = a + b\n    return total\n\n\ndef größe(total):\n    return total + 'né'\n"
TASK = CutText("x = ", "alpha", " + beta\n")


@pytest.fixture(scope="module")
def engine() -> Engine:
    tokenizer = Tokenizer(train_tokenizer([SOURCE] * 4, vocab_size=310), named={"eos_token": "<eos>"})
    config = fixture_config(vocab_size=tokenizer.vocab_size + 3, eos_token_id=EOS_ID, canvas_length=24)
    return Engine(
        fixture_model(config, peak=3.0, width=2.0), tokenizer=tokenizer, config=EngineConfig(constraint_folder=None)
    )


def test_texts_are_lines_of_jsonl_and_whole_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    (tmp_path / "b.py").write_text("three\nfour\n")
    assert read_texts([tmp_path / "a.jsonl", tmp_path / "b.py"]) == ["one", "two", "three\nfour\n"]
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n{"text"\n')
    with pytest.raises(DataError, match=r"c\.jsonl, line 2: not JSON"):
        read_texts([tmp_path / "c.jsonl"])
    (tmp_path / "d.jsonl").write_text('{"txt": "one"}\n')
    with pytest.raises(DataError, match=r'expected lines such as \{"text"'):
        read_texts([tmp_path / "d.jsonl"])
    with pytest.raises(DataError, match="there is no text in"):
        read_texts([])


def test_cut_texts_are_stretches_of_the_texts_and_the_same_for_the_same_seed(engine):
    texts = [SOURCE, "short", SOURCE[::-1]]
    cuts = list(cut_texts(engine.tokenizer, texts, 40, 1, max_tokens=5, room=30))
    assert cuts == list(cut_texts(engine.tokenizer, texts, 40, 1, max_tokens=5, room=30))
    assert cuts != list(cut_texts(engine.tokenizer, texts, 40, 2, max_tokens=5, room=30))
    for cut in cuts:
        whole = cut.before + cut.middle + cut.after
        assert any(whole in text for text in texts) and cut.before and cut.middle and cut.after
        assert len(engine.tokenizer.encode_plain(whole)) <= 34  # cut anew, a few tokens more
    with pytest.raises(DataError, match="too short to take 9 tokens"):
        list(cut_texts(engine.tokenizer, ["a b"], 1, 0, max_tokens=9, room=30))


def test_stretches_that_do_not_fit_a_context_are_refused(engine, tmp_path):
    (tmp_path / "a.txt").write_text(SOURCE)
    assert len(cut_tasks(engine, [tmp_path / "a.txt"], 3, 0, max_tokens=4)) == 3
    with pytest.raises(RequestError, match="do not fit the context"):
        cut_tasks(engine, [tmp_path / "a.txt"], 1, 0, max_tokens=engine.max_context)


def test_filled_gaps_are_counted(engine):
    def fill_gaps(fixed, **asked):
        gap = "alpha" if asked["seed"] == 1 else "gamma"
        return GapsReply(
            fixed=tuple(fixed), texts=(gap,), num_prompt_tokens=1, is_cut=False, wall_s=0.0,
            candidates=[GapsCandidate(texts=(gap,), score=0.0, num_denoise_steps=3)] * 2,
        )  # fmt: skip

    found = evaluate_fill(SimpleNamespace(fill_gaps=fill_gaps), [TASK, TASK], 1, max_tokens=4)  # type: ignore[arg-type]
    assert (found["num"], found["exact"], found["preserved"], found["mean_steps"]) == (2, 1.0, 1.0, 6.0)
    found = evaluate_fill(SimpleNamespace(fill_gaps=fill_gaps), [TASK], 2, max_tokens=4)  # type: ignore[arg-type]
    assert found["exact"] == 0.0


@pytest.mark.parametrize("mode", ["diffusion", "ar"])
def test_a_model_fills_what_was_cut_out(engine, mode):
    tasks = list(cut_texts(engine.tokenizer, [SOURCE], 3, 1, max_tokens=4, room=60))
    params = {"num_candidates": 2, "max_denoising_steps": 2} if mode == "diffusion" else {}
    done = []
    found = evaluate_fill(engine, tasks, 0, max_tokens=6, mode=mode, on_progress=done.append, **params)
    assert found["num"] == 3 and found["preserved"] == 1.0 and 0 <= found["exact"] <= 1 and done == [1, 2, 3]
    assert 0 < found["mean_steps"] <= 6  # 2 candidates of 2 steps; or 4 tokens and 2 at the border


def test_damage_replaces_so_many_characters_by_others_of_the_text():
    task = CutText("abcdef ", "xyzxyzxyz!", " uvw")
    for seed in range(20):
        given = damaged(task, seed, share=0.3)
        assert sum(a != b for a, b in zip(given, task.middle, strict=True)) == 3
        assert set(given) <= set(task.before + task.middle + task.after)
    assert damaged(task, 1, share=0.0) != task.middle  # at least one
    assert damaged(CutText("a", "a", "a"), 1, share=1.0) == "a"  # there is no other


def test_edits_are_counted(engine):
    def edit(text, spans, **asked):
        new = {"good": "alpha", "none": text[slice(*spans[0])], "leak": "alpha"}[asked["kind"]]
        whole = text[: spans[0][0]] + new + text[spans[0][1] :] + ("!" if asked["kind"] == "leak" else "")
        span = EditedSpan(start=spans[0][0], stop=spans[0][1], old="", new=new, confidence=1.0)
        return EditReply(old=text, text=whole, spans=[span], changes=[], num_denoise_steps=5, wall_s=0.0)

    def counted(kind):
        found = evaluate_edit(SimpleNamespace(edit=edit), [TASK], 0, share=0.2, strength=0.5, kind=kind)  # type: ignore[arg-type]
        return found["restored"], found["changed"], found["outside"], found["mean_steps"]

    assert counted("good") == (1, 1, 1, 5)
    assert counted("none") == (0, 0, 1, 5)
    assert counted("leak") == (0, 1, 0, 5)


def test_a_model_edits_what_was_damaged(engine):
    tasks = list(cut_texts(engine.tokenizer, [SOURCE], 3, 1, max_tokens=4, room=60))
    found = evaluate_edit(engine, tasks, 0, share=0.2, strength=0.5, num_candidates=2, max_denoising_steps=2)
    assert found["outside"] == 1.0 and found["num"] == 3


def test_decisions_are_read_with_their_answers(tmp_path):
    questions = {
        "kind": {"type": "choice", "criteria": {"bug": None, "wish": None}},
        "level": {"type": "score", "criteria": ["low", "middle", "high"]},
        "urgent": {"type": "noul", "instructions": "Is it urgent?"},
    }
    line = {"state": {"a": 1}, "questions": questions, "answers": {"kind": "bug", "level": 2, "urgent": True}}
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(line) + "\n")
    (found,) = read_decisions([file], 10, 0)
    assert found.answers == {"kind": "bug", "level": "2", "urgent": "true"}
    for answers, message in (
        ({"kind": "bug"}, "line 1: answers must give an option for each"),
        ({"kind": "hug", "level": 2, "urgent": True}, "the answer to 'kind' must be one of"),
        ({"kind": "bug", "level": 4, "urgent": True}, "the answer to 'level' must be one of"),
    ):
        file.write_text(json.dumps({**line, "answers": answers}) + "\n")
        with pytest.raises(DataError, match=message):
            read_decisions([file], 10, 0)
    file.write_text(json.dumps(line) + '\n{"text": "a"}\n')
    with pytest.raises(DataError, match="line 2 is not labelled"):
        read_decisions([file], 10, 0)


def test_texts_ask_which_line_comes_next():
    found = next_lines([SOURCE], 20, 3)
    assert found == next_lines([SOURCE], 20, 3) != next_lines([SOURCE], 20, 4)
    for decision in found:
        (question,) = decision.questions.values()
        assert len(question["criteria"]) == 4 and decision.answers["next"] in question["criteria"]
        assert f"{decision.state}{decision.answers['next']}\n" in SOURCE and decision.state
    with pytest.raises(DataError, match="too few lines"):
        next_lines(["one\ntwo\n"], 1, 0)


def test_decisions_are_counted_by_hand():
    def answer(choice, share):
        rest = "b" if choice == "a" else "a"
        return Answer(
            kind="choice", probabilities={choice: share, rest: 1 - share}, choice=choice, confidence=share, score=None,
            none=0.25, entropy=0.0,
        )  # fmt: skip

    replies = iter([answer("a", 0.8), answer("b", 0.6)])

    def decide(state, questions, **asked):
        return DecideReply(answers={"q": next(replies)}, num_passes=2, num_prompt_tokens=1, wall_s=0.0)

    decision = Decision("s", {"q": {}}, {"q": "a"})
    found = evaluate_decide(SimpleNamespace(decide=decide), [decision] * 2)  # type: ignore[arg-type]
    assert found["accuracy"] == 0.5 and found["chance"] == 0.5 and found["none"] == 0.25 and found["num_passes"] == 4
    assert found["log_loss"] == pytest.approx((0.2231436 + 0.9162907) / 2)
    assert found["calibration_error"] == pytest.approx((0.2 + 0.6) / 2)


def test_calibration_error_by_hand():
    # Two in one bin, right once and 0.95 sure: 0.45 off. One in another, right and 0.55 sure.
    assert calibration_error([0.95, 0.95, 0.55], [True, False, True]) == pytest.approx((2 * 0.45 + 0.45) / 3)
    assert calibration_error([1.0], [True]) == 0.0


def test_a_model_decides(engine):
    found = evaluate_decide(engine, next_lines([SOURCE], 3, 0), style="texts", calibrate=True)
    assert found["num"] == 3 and found["chance"] == 0.25 and found["num_passes"] == 12
