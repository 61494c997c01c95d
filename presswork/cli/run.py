"""`presswork run`: one prompt, one reply."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from presswork.cli.options import (
    DEFAULT_MODEL,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    open_engine,
    print_json,
    read_prompt,
    with_sampling,
)
from presswork.errors import RequestError

if TYPE_CHECKING:
    from presswork.engine.engine import Engine
    from presswork.engine.events import Reply

EXAMPLE = "53..7.... 6..195... .98....6. 8...6...3 4..8.3..1 7...2...6 .6....28. ...419..5 ....8..79"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("run", help=_HELP)(with_sampling(run))


_HELP = """Complete a prompt and print the text as it is committed.

Without a prompt the embedded model shows an example.

[bold]Examples[/bold]

presswork run

presswork run --watch "53..7.... 6..195... .98....6. 8...6...3 4..8.3..1 7...2...6 .6....28. ...419..5 ....8..79"

echo "a prompt" | presswork run --model FOLDER - --max-tokens 200 --seed 7 --json
"""


def run(
    *,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads stdin.")] = None,
    file: Annotated[str | None, typer.Option(help="Read the prompt from a file.")] = None,
    model: ModelOption = DEFAULT_MODEL,
    watch: Annotated[bool, typer.Option("--watch", help="Draw the canvas settling in the terminal.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Take the text as it stands, without the chat template.")] = False,
    json: JsonOption = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    sampling: dict[str, Any],
) -> None:
    """Body of the verb; see _HELP."""
    text = read_prompt(prompt, file)
    if text is None:
        text = _example(model)
    engine = open_engine(model, device=device, dtype=dtype)
    if json:
        reply = engine.generate(text, raw=raw, **sampling)
        print_json(asdict(reply) | {"tokens_per_s": reply.stats.tokens_per_s})
        return
    if watch and sys.stdout.isatty():
        from presswork.cli.watch import watch_canvas

        reply = watch_canvas(engine, text, raw=raw, **sampling)
    else:
        reply = _stream(engine, text, raw, sampling)
    print(_summary(reply), file=sys.stderr)


def _example(model: str) -> str:
    if model != DEFAULT_MODEL:
        raise RequestError(f"no prompt given for model {model!r}; give one, or - to read stdin")
    from presswork.tasks.sudoku.encoding import format_grid, read_puzzle

    print("No prompt given; solving an example puzzle:\n", file=sys.stderr)
    print(format_grid(read_puzzle(EXAMPLE)) + "\n", file=sys.stderr, flush=True)
    return EXAMPLE


def _stream(engine: "Engine", text: str, raw: bool, sampling: dict[str, Any]) -> "Reply":
    from presswork.engine.events import Commit, Done

    for event in engine.stream(text, raw=raw, **sampling):
        if isinstance(event, Commit):
            sys.stdout.write(event.text)
            sys.stdout.flush()
        elif isinstance(event, Done):
            if not event.reply.text.endswith("\n"):
                print(flush=True)
            return event.reply
    raise AssertionError("a request ends in a reply or an error")


def _summary(reply: "Reply") -> str:
    stats = reply.stats
    steps = f"{stats.num_denoise_steps} denoise steps, " if stats.num_canvases else ""
    return (
        f"[{reply.usage.completion_tokens} tokens, {steps}{stats.wall_s:.2f} s, {stats.tokens_per_s:.0f} tokens/s, "
        f"{reply.finish_reason}]"
    )
