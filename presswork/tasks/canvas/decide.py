"""How often a model decides as it should, and whether it is as sure as it is right."""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from presswork.engine.engine import Engine
from presswork.engine.questions import Question, read_questions
from presswork.errors import DataError
from presswork.tasks.canvas.texts import read_lines
from presswork.text.lines import split_lines, without_end

_NUM_BINS = 10
_CONTEXT = 400  # characters before the line to choose
_NUM_OPTIONS = 4
_LEAST = 4  # characters of a line that says something
_FORM = '{"state": ..., "questions": {...}, "answers": {name: option}}'


@dataclass(frozen=True, slots=True)
class Decision:
    """A state, questions about it, and the right option of each."""

    state: Any
    questions: Mapping[str, Any]
    answers: Mapping[str, str]


def read_decisions(files: Sequence[Path], num: int, seed: int) -> list[Decision]:
    """Labelled decisions from .jsonl files; from texts, which of four lines comes next.

    Args: num: decisions, drawn by the seed; fewer where there are no more.
    Raises: DataError.
    """
    records = read_lines(files)
    labelled = [isinstance(record, Mapping) and "questions" in record for record in records]
    if not any(labelled):
        return next_lines([_text(record) for record in records], num, seed)
    if not all(labelled):
        raise DataError(f"line {labelled.index(False) + 1} is not labelled as others are; expected {_FORM}")
    found = [_labelled(number, record) for number, record in enumerate(records, start=1)]
    return found if num >= len(found) else random.Random(seed).sample(found, num)


def next_lines(texts: Sequence[str], num: int, seed: int) -> list[Decision]:
    """Which of four lines follows a text, the others from anywhere in the texts. Raises DataError."""
    places = [(text, start, line) for text in texts for start, line in _lines(text)]
    lines = sorted({line for _, _, line in places})
    places = [place for place in places if place[0][: place[1]].strip()]
    if len(lines) < _NUM_OPTIONS or not places:
        raise DataError("the texts have too few lines to choose from; give longer ones")
    found = []
    for number in range(num):
        draw = random.Random(f"{seed} line {number}")
        text, start, right = draw.choice(places)
        options = {right}
        while len(options) < _NUM_OPTIONS:
            options.add(draw.choice(lines))
        ordered = sorted(options)
        draw.shuffle(ordered)
        question = {"type": "choice", "criteria": dict.fromkeys(ordered)}
        found.append(Decision(text[max(0, start - _CONTEXT) : start], {"next": question}, {"next": right}))
    return found


def evaluate_decide(
    engine: Engine, decisions: Sequence[Decision], *, on_progress: Callable[[int], None] | None = None, **params: Any
) -> dict[str, Any]:
    """Answer the questions of each decision.

    Args: on_progress: called with the number done. params: of Engine.decide.
    Returns: num (questions); accuracy; chance (of drawing among the options); log_loss (nats, of the right option);
        calibration_error (mean distance between how sure and how often right, over ten bins of confidence weighed by
        their size); none (mean probability of none of the options), num_passes, wall_s.
    """
    sure: list[float] = []
    right: list[bool] = []
    log_loss = none = chance = 0.0
    num_passes = 0
    started = time.perf_counter()
    for done, decision in enumerate(decisions, start=1):
        reply = engine.decide(decision.state, decision.questions, **params)
        num_passes += reply.num_passes
        for name, option in decision.answers.items():
            answer = reply.answers[name]
            sure.append(answer.confidence)
            right.append(answer.choice == option)
            log_loss -= math.log(max(answer.probabilities[option], 1e-12))
            chance += 1 / len(answer.probabilities)
            none += answer.none
        if on_progress is not None:
            on_progress(done)
    num = max(1, len(right))
    return {
        "num": len(right),
        "accuracy": sum(right) / num,
        "chance": chance / num,
        "log_loss": log_loss / num,
        "calibration_error": calibration_error(sure, right),
        "none": none / num,
        "num_passes": num_passes,
        "wall_s": time.perf_counter() - started,
    }


def calibration_error(sure: Sequence[float], right: Sequence[bool]) -> float:
    """Expected calibration error over ten bins of equal width; pure.

    Source: Guo et al., "On calibration of modern neural networks" (2017).
    """
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(_NUM_BINS)]
    for confidence, is_right in zip(sure, right, strict=True):
        bins[min(int(confidence * _NUM_BINS), _NUM_BINS - 1)].append((confidence, is_right))
    gaps = (abs(sum(c for c, _ in part) - sum(r for _, r in part)) for part in bins)
    return sum(gaps) / max(1, len(right))


def _lines(text: str) -> list[tuple[int, str]]:
    """(where it starts, itself without its end) of each line that is not next to empty."""
    found, start = [], 0
    for line in split_lines(text):
        if len(line.strip()) >= _LEAST:
            found.append((start, without_end(line)))
        start += len(line)
    return found


def _text(record: Any) -> str:
    text = record.get("text") if isinstance(record, Mapping) else record
    if not isinstance(text, str):
        raise DataError(f'expected {_FORM} or {{"text": "..."}}, got {str(record)[:80]!r}')
    return text


def _labelled(number: int, record: Mapping[str, Any]) -> Decision:
    answers = record.get("answers")
    questions = read_questions(record["questions"])
    if not isinstance(answers, Mapping) or set(answers) != set(questions):
        raise DataError(f"line {number}: answers must give an option for each question, got {answers!r}")
    found = {name: _option(number, name, question, answers[name]) for name, question in questions.items()}
    return Decision(record.get("state", ""), record["questions"], found)


def _option(number: int, name: str, question: Question, answer: Any) -> str:
    """An answer as the option it names: a text, true or false, or a level counted from 1."""
    if isinstance(answer, (bool, int)):
        answer = str(answer).lower()
    if answer not in question.options:
        raise DataError(
            f"line {number}: the answer to {name!r} must be one of {list(question.options)}, got {answer!r}"
        )
    return answer
