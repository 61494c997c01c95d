"""Decisions in System One's shape."""

import httpx
import pytest

from presswork.engine.loader import load

QUESTIONS = {
    "kind": {"type": "choice", "criteria": {"bug": None, "wish": "something new"}},
    "level": {"type": "score", "instructions": "How bad?", "criteria": ["low", "middle", "high"]},
    "urgent": {"type": "noul", "instructions": "Is it urgent?"},
}


def test_answers_have_the_shape_of_their_kind(served, folder):
    body = {"state": {"text": "def add"}, "questions": QUESTIONS, "style": "texts"}
    told = httpx.post(f"{served.url}/v1/systemone", json=body)
    assert told.status_code == 200, told.text
    answers = told.json()["answers"]
    expected = load(folder).decide({"text": "def add"}, QUESTIONS, style="texts").answers
    assert answers["kind"]["choice"] == expected["kind"].choice
    assert answers["kind"]["probabilities"] == pytest.approx(expected["kind"].probabilities)
    assert answers["level"]["score"] == pytest.approx(expected["level"].score)
    assert answers["level"]["legend"] == ["low", "middle", "high"]
    assert answers["urgent"]["noul"] == pytest.approx(expected["urgent"].probabilities["true"])
    assert told.json()["usage"]["output_tokens"] == 0


@pytest.mark.parametrize(
    "body, message",
    [
        ({"state": "x", "questions": {}}, "questions must map names"),
        ({"state": "x", "questions": {"a": {"type": "rank"}}}, "must have type"),
        ({"state": "x", "questions": QUESTIONS, "style": "odd"}, "style must be"),
        ({"state": "x", "questions": QUESTIONS, "images": ["data:"]}, "images are not supported"),
        ({"questions": QUESTIONS}, "state is missing"),
    ],
)
def test_malformed_questions_are_400(served, body, message):
    told = httpx.post(f"{served.url}/v1/systemone", json=body)
    assert told.status_code == 400 and message in told.json()["error"]["message"]
