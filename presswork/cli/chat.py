"""`presswork chat`: a conversation in the terminal."""

import sys
from typing import TYPE_CHECKING, Any

import typer

from presswork.cli.options import (
    DEFAULT_MODEL,
    DeviceOption,
    DtypeOption,
    ModelOption,
    open_engine,
    with_sampling,
)
from presswork.errors import PressworkError, UnsupportedError

if TYPE_CHECKING:
    from presswork.engine.engine import Engine

_HELP = """Talk to a model, turn by turn; the conversation is kept and its computed prefix reused.

/reset starts over, /seed N changes the seed, /exit or Ctrl-D leaves.

[bold]Example[/bold]

presswork chat --model FOLDER --max-tokens 500
"""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("chat", help=_HELP)(with_sampling(chat))


def chat(
    *,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    sampling: dict[str, Any],
) -> None:
    """Body of the verb; see _HELP."""
    engine = open_engine(model, device=device, dtype=dtype)
    if engine.template is None:
        raise UnsupportedError(f"model {model!r} has no chat template; use presswork run")
    history: list[dict[str, str]] = []
    while True:
        line = _read_line()
        if line is None or line == "/exit":
            return
        if line == "/reset":
            history.clear()
        elif line.startswith("/seed "):
            _set_seed(line, sampling)
        elif line:
            _turn(engine, history, line, sampling)


def _read_line() -> str | None:
    """One line of input, None at its end; the prompt mark only where somebody sees it."""
    if sys.stdin.isatty():
        sys.stderr.write("> ")
        sys.stderr.flush()
    line = sys.stdin.readline()
    return line.strip() if line else None


def _set_seed(line: str, sampling: dict[str, Any]) -> None:
    value = line.removeprefix("/seed ").strip()
    if value.isascii() and value.isdigit():
        sampling["seed"] = int(value)
    else:
        print(f"presswork: /seed takes a whole number, got {value!r}", file=sys.stderr)


def _turn(engine: "Engine", history: list[dict[str, str]], line: str, sampling: dict[str, Any]) -> None:
    """One question and its answer; a refused question leaves the conversation as it was. Mutates history."""
    turn = {"role": "user", "content": line}
    try:
        reply = engine.chat([*history, turn], **sampling)
    except PressworkError as error:
        print(f"presswork: {error}", file=sys.stderr)
        return
    print(reply.text, flush=True)
    history += [turn, {"role": "assistant", "content": reply.text}]
