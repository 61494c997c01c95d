"""`presswork fill`."""

import re
from pathlib import Path
from typing import Annotated

import typer

from presswork.cli.constraint import constraint_of
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
from presswork.grammar.languages import TextLanguage
from presswork.text.lines import split_lines, without_end
from presswork.weights.hub import DEFAULT_MODEL

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_At = Annotated[
    str | None, typer.Option(metavar="LINE:COLUMN", help="Where the gap is; both count from 1.", show_default=False)
]
_Marker = Annotated[
    str | None, typer.Option(help="What marks each gap in the file, such as <GAP>.", show_default=False)
]
_MaxTokens = Annotated[int | None, typer.Option(help="Of all gaps together, at most.", min=1, show_default=False)]
_Regex = Annotated[
    str | None, typer.Option(help="What each gap may hold, as a regular expression.", show_default=False)
]
_Choice = Annotated[
    list[str] | None, typer.Option(help="What each gap may hold; may be given several times.", show_default=False)
]
_Indent = Annotated[
    str,
    typer.Option(
        metavar="SPACES|auto|none",
        help="Of lines that a gap begins, at least; auto: as much as the line the gap is in, in .py files.",
    ),
]


@app.command()
def fill(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The text with a gap; - reads standard input.")],
    model: ModelOption = DEFAULT_MODEL,
    at: _At = None,
    marker: _Marker = None,
    max_tokens: _MaxTokens = None,
    regex: _Regex = None,
    choice: _Choice = None,
    indent: _Indent = "auto",
    candidates: Annotated[
        int | None,
        typer.Option(
            help="Ways to fill the gaps, the likeliest counts; by default 8 lengths of a single gap, else 4.",
            min=1,
            max=16,
            show_default=False,
        ),
    ] = None,
    steps: StepsOption = None,
    max_time: MaxTimeOption = None,
    seed: SeedOption = 0,
    apply: Annotated[bool, typer.Option("--apply", help="Write the filled text back to the file.")] = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fill gaps in a text; everything around them comes back byte for byte.

    Prints the filled text, or with --apply writes it to the file, all of it or nothing.

    \b
    Examples:
      presswork fill script.py --at 12:5
      presswork fill letter.txt --marker "<GAP>" --max-tokens 40 --apply
      presswork fill data.csv --marker "?" --regex "[0-9]{1,3}"
    """
    text = read_text(file)
    if apply:
        check_can_apply(file)
    fixed = split_at(text, at, marker)
    gap = constraint_of(regex=regex, choice=choice)
    assert gap is None or isinstance(gap, TextLanguage)
    sampling = only_given(seed=seed, max_denoising_steps=steps, max_time=max_time)
    engine = open_engine(context.obj, model, device=device, dtype=dtype, sampling=sampling)
    spaces = _indent_of(indent, file, fixed) if gap is None else 0
    reply = engine.fill_gaps(
        fixed, max_tokens=max_tokens, gap=gap, indent=spaces, num_candidates=candidates, **sampling
    )
    if apply:
        write_atomically(file, reply.completed, over=text)
    if as_json:
        steps_taken = sum(one.num_denoise_steps for one in reply.candidates)
        found = {"gaps": list(reply.texts), "text": reply.completed, "num_denoise_steps": steps_taken}
        print_json({"model": engine.name, **found, "wall_s": reply.wall_s})
        return
    if not apply:
        write_text(reply.completed)
    num = len(reply.texts)
    note(f"{num} gap{'s' if num > 1 else ''} filled in {reply.wall_s:.2f} s")


def _indent_of(indent: str, file: Path, fixed: list[str]) -> int:
    """Spaces that lines begun in the gaps have at least: as given, or those of the lines the gaps are in."""
    if re.fullmatch("[0-9]{1,4}", indent):
        return int(indent)
    if indent not in ("auto", "none"):
        raise RequestError(f"--indent must be a number of spaces, auto or none, got {indent[:40]!r}")
    if indent == "none" or file.suffix != ".py":
        return 0
    lines = [text.rpartition("\n")[2] for text in fixed[:-1]]
    return min(len(line) - len(line.lstrip(" ")) for line in lines)


def split_at(text: str, at: str | None, marker: str | None) -> list[str]:
    """The texts around the gaps. Raises RequestError for a place that is not in the text."""
    if (at is None) == (marker is None):
        raise RequestError("say where the gap is: give either --at LINE:COLUMN or --marker TEXT")
    if marker is not None:
        parts = text.split(marker) if marker else [text]
        if len(parts) < 2:
            raise RequestError(f"the marker {marker!r} is not in the file; mark each gap with it")
        return parts
    assert at is not None
    lines = split_lines(text)
    if not lines or lines[-1].endswith("\n"):
        lines.append("")
    found = re.fullmatch("([0-9]{1,9}):([0-9]{1,9})", at)
    if found is None:
        raise RequestError(f"--at must be LINE:COLUMN, such as 12:5, got {at[:40]!r}")
    row, place = int(found[1]), int(found[2])
    if not 1 <= row <= len(lines):
        raise RequestError(f"--at names line {row}, and the file has {len(lines)}")
    width = len(without_end(lines[row - 1]))
    if not 1 <= place <= width + 1:
        raise RequestError(f"--at names column {place}, and line {row} has columns 1 to {width + 1}")
    offset = sum(map(len, lines[: row - 1])) + place - 1
    return [text[:offset], text[offset:]]
