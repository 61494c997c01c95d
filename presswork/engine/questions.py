"""Questions with given options, as they come from outside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from presswork.errors import RequestError

Kind = Literal["choice", "score", "noul"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FIELDS = ("type", "instructions", "criteria")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question.

    Args:
        kind: "choice" picks one of the criteria's keys; "score" finds a level, the criteria listed lowest first; "noul"
            is yes or no.
        instructions: what is asked.
        options: what is picked from: names, level descriptions, or "true" and "false".
        notes: a description of each option, possibly empty.
    """

    kind: Kind
    instructions: str
    options: tuple[str, ...]
    notes: tuple[str, ...]


def read_questions(given: Mapping[str, Any]) -> dict[str, Question]:
    """Questions as they come from outside: {name: {type, instructions, criteria}}. Raises RequestError."""
    if not isinstance(given, Mapping) or not given:
        raise RequestError(f"questions must map names to questions, at least one, got {given!r}")
    unnamed = [name for name in given if not isinstance(name, str)]
    if unnamed:
        raise RequestError(f"questions must be named by texts, got {unnamed[0]!r}")
    return {name: _read_question(name, one) for name, one in given.items()}


def _read_question(name: str, given: object) -> Question:
    if not isinstance(given, Mapping) or given.get("type") not in ("choice", "score", "noul"):
        raise RequestError(f"question {name!r} must have type 'choice', 'score' or 'noul', got {given!r}")
    unknown = sorted(str(field) for field in given if field not in _FIELDS)
    if unknown:
        raise RequestError(f"question {name!r} has an unknown field {unknown[0]!r}; known: {', '.join(_FIELDS)}")
    instructions, criteria = given.get("instructions", ""), given.get("criteria")
    if not isinstance(instructions, str):
        raise RequestError(f"question {name!r}: instructions must be a text, got {instructions!r}")
    read = {"choice": _choice, "score": _score, "noul": _noul}[given["type"]]
    options, notes = read(f"question {name!r}: criteria", criteria)
    return Question(kind=given["type"], instructions=instructions, options=options, notes=notes)


def _choice(where: str, criteria: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(options, their descriptions)."""
    if not isinstance(criteria, Mapping) or not 2 <= len(criteria) <= len(LETTERS):
        raise RequestError(f"{where} must map 2 to {len(LETTERS)} options to descriptions, got {criteria!r}")
    for option, description in criteria.items():
        if not isinstance(option, str) or not option or not (description is None or isinstance(description, str)):
            raise RequestError(f"{where} must map texts to texts or null, got {option!r}: {description!r}")
    return tuple(criteria), tuple(description or "" for description in criteria.values())


def _score(where: str, criteria: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    levels = () if isinstance(criteria, str) or not isinstance(criteria, Sequence) else tuple(criteria)
    if not 2 <= len(levels) <= 10 or not all(isinstance(level, str) and level for level in levels):
        raise RequestError(f"{where} must be a list of 2 to 10 level descriptions, lowest first, got {criteria!r}")
    return tuple(str(number) for number in range(1, len(levels) + 1)), levels


def _noul(where: str, criteria: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    given = {} if criteria is None else criteria
    if not isinstance(given, Mapping) or not set(given) <= {"true", "false"}:
        raise RequestError(f"{where} may describe 'true' and 'false', got {criteria!r}")
    return _choice(where, {"true": given.get("true"), "false": given.get("false")})
