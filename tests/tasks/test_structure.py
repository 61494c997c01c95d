"""Replies kept to random languages are judged by libraries that know nothing of how they were made."""

import json

import pytest

from presswork.engine.engine import Engine
from presswork.tasks.code.tokenizer import EOS_ID, train_tokenizer
from presswork.tasks.structure.evaluate import StructureTask, evaluate, regex_tasks, schema_tasks
from presswork.testing import fixture_config, fixture_model
from presswork.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def engine() -> Engine:
    tokenizer = Tokenizer(train_tokenizer(['{"name": "value", "count": 12}\n'] * 4, vocab_size=290))
    config = fixture_config(vocab_size=tokenizer.vocab_size, eos_token_id=EOS_ID, canvas_length=32)
    return Engine(fixture_model(config, peak=3.0, width=2.0), tokenizer=tokenizer)


@pytest.mark.parametrize("mode", ["diffusion", "ar"])
def test_every_reply_is_valid_whatever_the_weights_and_steps(engine, mode):
    done = []
    report = evaluate(engine, [*schema_tasks(6, 3), *regex_tasks(6, 3)], 3, mode=mode, on_progress=done.append)
    assert report["schema"] == report["regex"] == {"num": 6, "valid": 6, "ended": 6}
    assert set(report["valid_by_steps"].values()) == {1.0} and report["invalid"] == []
    assert done == list(range(1, 13))


def test_a_reply_that_is_not_valid_is_counted_and_shown(engine):
    (task,) = regex_tasks(1, 0)
    never = StructureTask(task.kind, task.source, task.language, lambda text: False)
    report = evaluate(engine, [never], 0)
    assert report["regex"]["valid"] == 0 and report["valid_by_steps"][1] == 0.0
    assert report["invalid"][0]["source"] == task.source


def test_free_replies_are_judged_too_and_budgets_can_be_told(engine):
    tasks = [*schema_tasks(4, 3), *regex_tasks(4, 3)]
    kept = evaluate(engine, tasks, 3, budgets=(3,))
    free = evaluate(engine, tasks, 3, budgets=(3,), is_free=True)
    assert kept["valid_by_steps"] == {3: 1.0} and kept["schema"]["valid"] == kept["regex"]["valid"] == 4
    assert set(free["valid_by_steps"]) == {3} and free["schema"]["valid"] + free["regex"]["valid"] < 8
    assert len(free["invalid"]) == 8 - free["schema"]["valid"] - free["regex"]["valid"]


def test_tasks_are_the_same_for_the_same_seed_and_judge_for_themselves():
    assert [t.source for t in schema_tasks(5, 1)] == [t.source for t in schema_tasks(5, 1)]
    assert [t.source for t in schema_tasks(5, 1)] != [t.source for t in schema_tasks(5, 2)]
    task = next(t for t in schema_tasks(50, 1) if json.loads(t.source).get("type") == "integer")
    assert not task.accepts("not json") and not task.accepts('"x"')
