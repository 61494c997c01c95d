"""Flags that keep a reply to a language."""

import inspect
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from presswork.errors import RequestError

_NAMES = ("regex", "choice", "json_schema", "forbid")


def constraint_flags() -> list[inspect.Parameter]:
    """The flags, as keyword parameters; None, or no values, is a flag that was not given."""
    hidden: dict[str, Any] = {"show_default": False}
    annotations = {
        "regex": Annotated[
            str | None, typer.Option("--regex", help="Keep the text to a regular expression.", **hidden)
        ],
        "choice": Annotated[
            list[str] | None,
            typer.Option("--choice", help="Write one of these texts. May be given several times.", **hidden),
        ],
        "json_schema": Annotated[
            str | None,
            typer.Option(
                "--json-schema", metavar="FILE|JSON", help="Write JSON that a schema allows.", **hidden
            ),
        ],
        "forbid": Annotated[
            list[str] | None,
            typer.Option("--forbid", help="Never write this phrase. May be given several times.", **hidden),
        ],
    }  # fmt: skip
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotations[name])
        for name in _NAMES
    ]


def take_constraint(values: dict[str, Any]) -> dict[str, Any]:
    """The flags' values as the sampling parameter they stand for, if any was given. Mutates values: takes them out."""
    language = constraint_of(**{name: values.pop(name) for name in _NAMES})
    return {} if language is None else {"constraint": language}


def constraint_of(
    *, regex: str | None = None, choice: list[str] | None = None, json_schema: str | None = None,
    forbid: list[str] | None = None,
) -> Any:  # fmt: skip
    """The language that flags stand for, None where none was given.

    Raises: RequestError for flags that exclude each other, and a schema that cannot be read.
    """
    flags = {"regex": regex, "choice": choice, "json_schema": json_schema}
    given: dict[str, Any] = {name: value for name, value in flags.items() if value not in (None, [])}
    if not given and not forbid:
        return None
    from presswork.grammar.languages import Choices, JsonSchema, Regex, Without

    if len(given) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in list(given)[:2])
        raise RequestError(f"{first} and {second} exclude each other; give one of them")
    language = None
    if "regex" in given:
        language = Regex(given["regex"])
    elif "choice" in given:
        language = Choices(given["choice"])
    elif "json_schema" in given:
        language = JsonSchema(_schema(given["json_schema"]))
    return Without(forbid, language) if forbid else language


def _schema(given: str) -> Any:
    """A schema as JSON, or in a file."""
    origin, text = "--json-schema", given
    if not given.lstrip().startswith("{") and given not in ("true", "false"):
        origin = given
        try:
            text = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(
                f"the schema cannot be read: {error}; --json-schema takes a file or JSON itself"
            ) from error
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the schema in {origin} is not JSON: {error}") from error
    if not isinstance(schema, dict | bool):
        raise RequestError(f"the schema in {origin} must be a JSON object, got {type(schema).__name__}")
    return schema
