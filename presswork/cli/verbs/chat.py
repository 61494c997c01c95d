"""`presswork chat`."""

import sys
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from presswork.cli.model import open_engine
from presswork.cli.options import AdapterOption, DeviceOption, DtypeOption, ModelArgument, sampling_flags
from presswork.cli.output import note
from presswork.cli.stream import figures, write_events
from presswork.engine.engine import Engine
from presswork.errors import PressworkError, RequestError, UnsupportedError

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_HELP = "/exit ends, /reset forgets the conversation, /seed N changes the seed; anything else is a message"


@app.command()
@sampling_flags
def chat(
    context: typer.Context,
    model: ModelArgument,
    system: Annotated[str | None, typer.Option(help="A system message that starts the conversation.")] = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    adapters: AdapterOption = None,
    *,
    sampling: dict[str, Any],
) -> None:
    """Talk with a model; every turn sees the ones before it.

    /exit (or the end of input) ends, /reset forgets the conversation, /seed N changes the seed. A line is a message.
    Ctrl-C stops an answer; between answers it ends the chat. When input is not a terminal, the first error ends it.

    \b
    Examples:
      presswork chat FOLDER --max-tokens 400
      printf 'Hello!\\nAnd in French?\\n' | presswork chat FOLDER
    """
    engine = open_engine(context.obj, model, device=device, dtype=dtype, sampling=sampling, adapters=adapters or ())
    if engine.template is None:
        raise UnsupportedError(f"{model} has no chat template, so it cannot chat; `presswork run` takes plain prompts")
    talk = Conversation(engine, sampling, system)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        note(_HELP)
    while (line := _read_line(is_terminal)) is not None:
        if line.strip() == "/exit":
            return
        if line.strip():
            _take_turn(talk, line, is_terminal)


@dataclass(slots=True)
class Conversation:
    """The turns so far and how to answer the next one."""

    engine: Engine
    sampling: dict[str, Any]
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def take(self, line: str) -> None:
        """A command or a message. Mutates self; a turn that fails or is stopped leaves no trace."""
        command, _, rest = line.strip().partition(" ")
        if command == "/reset":
            self.turns.clear()
            note("forgotten")
        elif command == "/seed":
            self.sampling["seed"] = _seed(rest)
            note(f"seed {self.sampling['seed']}")
        elif command.startswith("/") and command[1:].isalpha():
            raise RequestError(f"unknown command {command}; {_HELP}")
        else:
            self._answer(line)

    def _answer(self, line: str) -> None:
        opening = [{"role": "system", "content": self.system}] if self.system is not None else []
        messages = [*opening, *self.turns, {"role": "user", "content": line}]
        ids = self.engine.encode_chat(messages)
        reply = self.engine.parse_chat(write_events(self.engine.stream(prompt_token_ids=ids, **self.sampling)))
        self.turns = [*messages[len(opening) :], {"role": "assistant", "content": reply.text}]
        note(figures(reply))


def _take_turn(talk: Conversation, line: str, is_terminal: bool) -> None:
    """One turn; at a terminal what goes wrong in it is told, and the talk goes on."""
    if not is_terminal:
        talk.take(line)
        return
    try:
        talk.take(line)
    except PressworkError as error:
        note(str(error))
    except KeyboardInterrupt:
        note("\nstopped")


def _read_line(is_terminal: bool) -> str | None:
    """The next line without its end; None at the end of input."""
    try:
        if is_terminal:
            return input("> ")
        line = sys.stdin.readline()
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not UTF-8 text: byte {error.start} is wrong") from error
    return line.rstrip("\r\n") if line else None


def _seed(text: str) -> int:
    if not text.strip().isdecimal():
        raise RequestError(f"/seed takes an integer of at least 0, got {text.strip()!r}")
    return int(text)
