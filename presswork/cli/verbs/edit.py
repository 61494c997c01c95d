"""`presswork edit`."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from presswork.cli.files import check_can_apply, read_text, write_atomically
from presswork.cli.model import open_engine
from presswork.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaxTimeOption,
    ModelOption,
    SeedOption,
    StepsOption,
    only_given,
)
from presswork.cli.output import note, print_json, write_text
from presswork.errors import RequestError
from presswork.text.lines import split_lines, without_end
from presswork.weights.hub import DEFAULT_MODEL

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_MOST_SHOWN, _BRIEF = 20, 40


@app.command()
def edit(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The text; - reads standard input.")],
    instruction: Annotated[str, typer.Argument(help="What to do; needs a model with a chat template.")] = "",
    model: ModelOption = DEFAULT_MODEL,
    lines: Annotated[
        list[str] | None,
        typer.Option("--lines", metavar="FIRST-LAST", help="Lines that may change; may be given several times."),
    ] = None,
    strength: Annotated[float, typer.Option(help="Share of the tokens that starts as noise, 0 to 1.")] = 0.5,
    max_changes: Annotated[
        int | None, typer.Option(help="Tokens that may change, each for one other.", min=0, show_default=False)
    ] = None,
    steps: StepsOption = None,
    max_time: MaxTimeOption = None,
    seed: SeedOption = 0,
    apply: Annotated[bool, typer.Option("--apply", help="Write the edited text back to the file.")] = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a text in place, starting from what stands there; outside the given lines nothing changes.

    Prints a unified diff, or with --apply writes the text to the file, all of it or nothing.

    \b
    Examples:
      presswork edit notes.txt "Make it shorter." --model FOLDER
      presswork edit script.py --lines 10-14 --strength 0.3 --max-changes 3 --apply
    """
    text = read_text(file)
    if apply:
        check_can_apply(file)
    spans = None if not lines else [span_of(text, given) for given in lines]
    sampling = only_given(seed=seed, max_denoising_steps=steps, max_time=max_time)
    engine = open_engine(context.obj, model, device=device, dtype=dtype, sampling=sampling)
    reply = engine.edit(text, instruction, spans=spans, strength=strength, max_changes=max_changes, **sampling)
    name = "text" if str(file) == "-" else file.name
    if apply and reply.text != text:
        write_atomically(file, reply.text, over=text)
    if as_json:
        changed = [asdict(span) for span in reply.spans if span.new != span.old]
        found = {"changed": changed, "changes": [asdict(change) for change in reply.changes]}
        print_json({"model": engine.name, "text": reply.text, "diff": reply.diff(name), **found})
        return
    write_text(reply.diff(name))
    num = sum(part.new != part.old for part in reply.spans)
    note(f"{num} of {len(reply.spans)} parts changed, {reply.num_denoise_steps} denoise steps, {reply.wall_s:.2f} s")
    for change in reply.changes[:_MOST_SHOWN]:
        line = 1 + text.count("\n", 0, change.start)
        note(f"line {line}: {_brief(change.old)} becomes {_brief(change.new)}, {change.confidence:.0%} sure")
    if len(reply.changes) > _MOST_SHOWN:
        note(f"and {len(reply.changes) - _MOST_SHOWN} changes more; --json tells all")


def _brief(text: str) -> str:
    return repr(text if len(text) <= _BRIEF else f"{text[:_BRIEF]}...")


def span_of(text: str, given: str) -> tuple[int, int]:
    """Characters of a range of lines, `3` or `3-7`, without the last line's end. Raises RequestError."""
    found = re.fullmatch("([0-9]{1,9})(?:-([0-9]{1,9}))?", given)
    borders = split_lines(text)
    if found is None:
        raise RequestError(f"--lines must be FIRST-LAST, such as 3-7, got {given!r}")
    first, last = int(found[1]), int(found[2] or found[1])
    if not 1 <= first <= last <= len(borders):
        raise RequestError(f"--lines names {given}, and the file has lines 1 to {len(borders)}")
    start = sum(map(len, borders[: first - 1]))
    return start, start + len(without_end("".join(borders[first - 1 : last])))
