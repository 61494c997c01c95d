"""Flags that follow from SamplingParams, and what several verbs share."""

import functools
import inspect
import json
import re
import sys
import typing
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from presswork.errors import RequestError

if TYPE_CHECKING:
    from presswork.engine.engine import Engine

DEFAULT_MODEL = "sudoku"

ModelOption = Annotated[str, typer.Option("--model", "-m", help="Embedded name, folder or Hub id.")]
ModelArgument = Annotated[str, typer.Argument(help="Embedded name, folder or Hub id.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda.")]
DtypeOption = Annotated[str | None, typer.Option(help="bfloat16 or float32; the checkpoint's by default.")]


def with_sampling(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one flag per field of SamplingParams; it receives those that were used as keyword `sampling`."""
    from presswork.engine.params import SamplingParams

    hints, help_texts = typing.get_type_hints(SamplingParams), _help_texts(SamplingParams.__doc__ or "")
    names = [field.name for field in fields(SamplingParams)]

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> Any:
        given = {name: arguments.pop(name) for name in names}
        sampling = {name: value for name, value in given.items() if value not in (None, [], ())}
        if arguments.pop("no_early_stop"):
            sampling |= {"stability_threshold": None, "confidence_threshold": None}
        return command(**arguments, sampling=sampling)

    own = [p for p in inspect.signature(command).parameters.values() if p.name != "sampling"]
    options = [_option(name, _flag_type(hints[name]), help_texts[name]) for name in names]
    options.append(_option("no_early_stop", bool, "Spend the whole step budget of every canvas.", default=False))
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + options
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    del wrapped.__wrapped__  # type: ignore[attr-defined]
    return wrapped


def _option(name: str, kind: Any, text: str, default: Any = None) -> inspect.Parameter:
    flag = "--" + name.replace("_", "-")
    annotation = Annotated[kind, typer.Option(flag, help=text, show_default=False, rich_help_panel="Sampling")]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _flag_type(hint: Any) -> Any:
    """The type typer parses a field's flag as; values are checked by SamplingParams itself."""
    if hint is bool:
        return bool
    inner = [t for t in typing.get_args(hint) if t is not type(None)] or [hint]
    if typing.get_origin(hint) is tuple:
        return list[int] if int in inner else list[str]
    kind = next((t for t in (int, float) if t in inner), str)
    return kind | None


def _help_texts(docstring: str) -> dict[str, str]:
    """The Args section as one line per name; `t_min, t_max: ...` serves both."""
    section = inspect.cleandoc(docstring).split("Args:\n", 1)[1]
    texts: dict[str, str] = {}
    for match in re.finditer(r"^    ([a-z_, ]+): (.*(?:\n        .*)*)", section, re.MULTILINE):
        text = re.sub(r"\s+", " ", match[2])
        texts |= {name.strip(): text[0].upper() + text[1:] for name in match[1].split(",")}
    return texts


def open_engine(model: str, *, device: str = "cpu", dtype: str | None = None, **limits: Any) -> "Engine":
    """Load a model with a progress bar on stderr where loading takes a while."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    from presswork.engine.loader import load

    console = Console(stderr=True)
    columns = (TextColumn("loading"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("load", total=None)
        return load(
            model,
            device=device,
            dtype=dtype,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
            **limits,
        )


def read_prompt(prompt: str | None, file: str | None) -> str | None:
    """The prompt from the argument, from stdin for `-`, or from a file; None where nothing was given."""
    if prompt is not None and file is not None:
        raise RequestError("give a prompt or --file, not both")
    if prompt == "-":
        return sys.stdin.read()
    if file is None:
        return prompt
    try:
        with open(file, encoding="utf-8") as source:
            return source.read()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot read the prompt from {file}: {error}") from error


def print_json(value: Any) -> None:
    """One JSON object on stdout; dataclasses become objects."""
    print(json.dumps(value, default=lambda x: asdict(x) if is_dataclass(x) else str(x), ensure_ascii=False))
