"""`presswork decide`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from presswork.cli.files import read_text
from presswork.cli.model import open_engine
from presswork.cli.options import DeviceOption, DtypeOption, JsonOption, RequiredModelOption
from presswork.cli.output import note, print_columns, print_json
from presswork.engine.decide import Answer
from presswork.errors import RequestError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def decide(
    context: typer.Context,
    state: Annotated[Path, typer.Argument(help="What the questions are about, a text file; - reads standard input.")],
    model: RequiredModelOption,
    questions: Annotated[
        str, typer.Option("--questions", "-q", metavar="FILE|JSON", help="The questions.", show_default=False)
    ],
    style: Annotated[str, typer.Option(metavar="letters|texts", help="How options are read.")] = "letters",
    steps: Annotated[int, typer.Option(help="Denoise passes, 1 or 2.")] = 2,
    calibrate: Annotated[bool, typer.Option(help="Compare with the answers to no state, at twice the work.")] = False,
    seed: Annotated[int, typer.Option(help="Of the noise that answers start from.", min=0)] = 0,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer questions with given options about a text, with probabilities, in one or two passes.

    Questions are JSON: {NAME: {"type": TYPE, "instructions": TEXT, "criteria": ...}}. A "choice" has criteria {OPTION:
    DESCRIPTION or null}, a "score" a list of 2 to 10 level descriptions, a "noul" (yes or no) none, or a description of
    "true" and "false".

    \b
    Examples:
      presswork decide mail.txt --model FOLDER -q '{"urgent": {"type": "noul", "instructions": "Is it urgent?"}}'
      presswork decide mail.txt --model FOLDER --questions questions.json --json
    """
    text, asked = read_text(state), _questions(questions)
    engine = open_engine(context.obj, model, device=device, dtype=dtype)
    reply = engine.decide(text, asked, style=style, steps=steps, calibrate=calibrate, seed=seed)  # type: ignore[arg-type]
    if as_json:
        answers = {name: _plain(answer) for name, answer in reply.answers.items()}
        print_json({"model": engine.name, "answers": answers, "num_passes": reply.num_passes, "wall_s": reply.wall_s})
        return
    rows = [("QUESTION", "ANSWER", "CONFIDENCE", "NONE", "ENTROPY")]
    for name, answer in reply.answers.items():
        shown = answer.choice if answer.score is None else f"{answer.score:.2f}"
        rows.append((name, shown, f"{answer.confidence:.1%}", f"{answer.none:.1%}", f"{answer.entropy:.2f}"))
    print_columns(rows)
    note(f"{reply.num_passes} denoise passes, {reply.wall_s:.2f} s")


def _questions(given: str) -> Any:
    """Questions as JSON, or in a file."""
    origin, text = "--questions", given
    if not given.lstrip().startswith("{"):
        origin, text = given, read_text(Path(given), "questions")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the questions in {origin} are not JSON: {error}") from error


def _plain(answer: Answer) -> dict[str, Any]:
    score = {} if answer.score is None else {"score": answer.score}
    return {
        "type": answer.kind,
        "choice": answer.choice,
        **score,
        "probabilities": answer.probabilities,
        "confidence": answer.confidence,
        "none": answer.none,
        "entropy": answer.entropy,
    }
