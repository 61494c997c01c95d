"""Flags that several verbs take. Sampling flags come from the fields and the docstring of SamplingParams."""

import inspect
import re
import types
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from presswork.cli.constraint import constraint_flags, take_constraint

ModelArgument = Annotated[str, typer.Argument(help="An embedded model's name, a folder, or a Hub id.", metavar="MODEL")]
ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="An embedded model's name, a folder, or a Hub id.", show_default=True)
]
RequiredModelOption = Annotated[
    str, typer.Option("--model", "-m", help="An embedded model's name, a folder, or a Hub id.", show_default=False)
]
TextsArgument = Annotated[
    list[Path], typer.Argument(help='Texts: a file is one, a line {"text": "..."} of a .jsonl file is one.')
]
StepsOption = Annotated[int | None, typer.Option(help="Step budget of a canvas; the checkpoint's by default.")]
MaxTimeOption = Annotated[
    float | None, typer.Option(help="Seconds after which what is there is taken.", min=0, show_default=False)
]
SeedOption = Annotated[int, typer.Option(help="The same seed gives the same text.", min=0)]
DeviceOption = Annotated[str, typer.Option(help="Where the model runs: cpu or cuda.")]
DtypeOption = Annotated[
    str | None, typer.Option(help="bfloat16 or float32 instead of the checkpoint's.", show_default=False)
]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", metavar="NAME=FOLDER", show_default=False,
        help="Load an adapter and write with it. May be given several times; the model is then given as MODEL:NAME.",
    ),
]  # fmt: skip
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

NONE = "none"
# --adapter and --model set the adapter, several flags a constraint; positions and token ids are for programs.
_WITHOUT_FLAG = {"adapter", "pins", "logit_bias", "constraint"}
_ALIASES = {"max_denoising_steps": "--steps", "canvas_length": "--canvas"}


def sampling_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb one flag for each field of SamplingParams, and those of a constraint.

    Those that were set arrive as its dict `sampling`.
    """
    from presswork.engine.params import CHECKPOINT_FIELDS, SamplingParams

    hints, texts = get_type_hints(SamplingParams), documented_arguments(SamplingParams.__doc__ or "")
    wanted = [field for field in fields(SamplingParams) if field.name not in _WITHOUT_FLAG]
    flags = [_flag(field, hints[field.name], texts[field.name], field.name in CHECKPOINT_FIELDS) for field in wanted]
    names = {flag.name for flag in flags}
    flags += constraint_flags()

    def with_flags(**values: Any) -> None:
        constraint = take_constraint(values)
        given = {name: _plain(value) for name, value in values.items() if name in names and value not in (None, [])}
        own_values = {name: value for name, value in values.items() if name not in names}
        verb(**own_values, sampling={**given, **constraint})

    signature = inspect.signature(verb, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "sampling"]
    with_flags.__name__, with_flags.__doc__, with_flags.__module__ = verb.__name__, verb.__doc__, verb.__module__
    with_flags.__signature__ = signature.replace(parameters=own + flags)  # type: ignore[attr-defined]
    with_flags.__annotations__ = {parameter.name: parameter.annotation for parameter in own + flags}
    return with_flags


def only_given(**sampling: Any) -> dict[str, Any]:
    """The sampling parameters that were given; None is one that was not."""
    return {name: value for name, value in sampling.items() if value is not None}


def documented_arguments(docstring: str) -> dict[str, str]:
    """The text of each name under `Args:` of a docstring; `a, b: text` counts for both."""
    section = inspect.cleandoc(docstring).partition("Args:\n")[2]
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        opening = re.fullmatch(r" {4}(\w+(?:, \w+)*): (.*)", line)
        if opening is not None:
            names = opening[1].split(", ")
            texts |= dict.fromkeys(names, opening[2])
        elif line.startswith(" " * 8):
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
        else:
            break
    return texts


def _flag(field: "Field[Any]", hint: Any, text: str, is_checkpoints: bool) -> inspect.Parameter:
    """A keyword parameter that typer turns into the field's flag; None, or no values, is a flag that was not given.

    The help names the default, and whether a checkpoint's own comes before it.
    """
    name = "--" + field.name.replace("_", "-")
    kind, is_optional = _without_none(hint)
    is_shown = isinstance(field.default, (int, float, str)) and not isinstance(field.default, bool)
    own = "the checkpoint's, else " if is_checkpoints else ""
    shown = f" Default: {own}{field.default}." if is_shown else ""
    settings: dict[str, Any] = {"help": text[0].upper() + text[1:] + shown, "show_default": False}
    names = [name, _ALIASES[field.name]] if field.name in _ALIASES else [name]
    if get_origin(kind) is Literal:
        settings["metavar"], kind = "|".join(get_args(kind)), str
    elif get_origin(kind) is tuple:
        kind = list[get_args(kind)[0]]
        settings["help"] += " May be given several times."
    elif kind is bool:
        names = [f"{name}/--no-{name[2:]}"]
    elif is_optional:
        settings["metavar"], settings["parser"], kind = f"{kind.__name__}|{NONE}", _number_or_none(kind), str
    annotation = Annotated[kind | None, typer.Option(*names, **settings)]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _without_none(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return kinds[0], len(kinds) < len(get_args(hint))


def _number_or_none(kind: type) -> Callable[[str], Any]:
    def number_or_none(text: str) -> Any:
        if text.lower() == NONE:
            return NONE
        try:
            return kind(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is neither {kind.__name__} nor {NONE}") from None

    return number_or_none


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return None if isinstance(value, str) and value == NONE else value
