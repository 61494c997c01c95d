"""What every verb prints with: JSON, aligned columns, sizes, and text that cannot move the cursor."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer

# Control characters of a model's text would steer the terminal; their pictures cannot.
_PICTURES = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
_PICTURES |= {0x7F: "␡"} | dict.fromkeys(range(0x80, 0xA0), "\ufffd")


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(value, indent=2))


def note(message: str) -> None:
    """A line about what happens, on standard error."""
    typer.echo(message, err=True)


def print_facts(facts: Mapping[str, object]) -> None:
    """Names and values, one a line, values aligned."""
    print_columns([(f"{name}", str(value)) for name, value in facts.items()], indent=2)


def print_columns(rows: Iterable[Sequence[str]], *, indent: int = 0) -> None:
    """Rows of text with aligned columns; the last is not padded."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        typer.echo(" " * indent + "  ".join(cells).rstrip())


def format_bytes(num: float) -> str:
    """A size in decimal units: 1.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num < 1000:
            return f"{num:.0f} {unit}" if unit == "bytes" else f"{num:.3g} {unit}"
        num /= 1000
    return f"{num:,.1f} TB"


def format_count(num: int) -> str:
    """A count of parameters: 25.2B."""
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if num >= limit:
            return f"{num / limit:.3g}{unit}"
    return str(num)


def shown(text: str) -> str:
    """Text as a terminal may see it: control characters become pictures of themselves."""
    return text.translate(_PICTURES)


def write_text(text: str) -> None:
    """Text of a reply, at once; as it is unless a terminal reads it."""
    sys.stdout.write(shown(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def reply_json(reply: Any) -> dict[str, Any]:
    """A Reply as plain data, the derived statistics included."""
    from dataclasses import asdict

    stats = reply.stats
    derived = {name: getattr(stats, name) for name in ("steps_per_canvas", "tokens_per_forward", "tokens_per_s")}
    return {**asdict(reply), "stats": {**asdict(stats), **derived}}
