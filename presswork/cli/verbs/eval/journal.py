"""The journal of an evaluation, as its flag gives it."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import presswork
from presswork.engine.engine import Engine
from presswork.tasks.journal import NO_JOURNAL, Journal, open_journal
from presswork.text.check_sum import check_sum

JournalOption = Annotated[
    Path | None,
    typer.Option(
        "--journal", metavar="FILE", show_default=False,
        help="Write what is found to this file as it comes; the same command goes on from it.",
    ),
]  # fmt: skip
_NOT_RESULTS = ("as_json", "journal")
_SHOWN = 64  # numbers of each tensor that tell weights apart


@contextmanager
def journal_of(context: typer.Context, engine: Engine, file: Path | None) -> Iterator[Journal]:
    """The journal in a file, of this command with these weights. Raises DataError as `open_journal`."""
    if file is None:
        yield NO_JOURNAL
        return
    params = {name: _plain(value) for name, value in context.params.items() if name not in _NOT_RESULTS}
    about = {
        "presswork": presswork.__version__, "task": context.info_name, "weights": _fingerprint(engine.model),
        **{f"generation.{name}": value for name, value in asdict(engine.defaults).items()}, **params,
    }  # fmt: skip
    with open_journal(file, about) as journal:
        yield journal


def _plain(value: Any) -> Any:
    """A flag's value; of a file, its name and what tells its contents apart."""
    return f"{value} ({check_sum(value):08x})" if isinstance(value, Path) else value


def _fingerprint(model: torch.nn.Module) -> int:
    """A number that other weights have another of, from the beginning of each tensor."""
    found = 0
    for weight in model.state_dict().values():
        shown = weight.detach().flatten()[:_SHOWN].cpu().contiguous()
        found = zlib.crc32(shown.view(torch.uint8).numpy().tobytes(), found)
    return found
