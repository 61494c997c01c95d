"""Lines as editors and patches count them: ended by a line feed, and by nothing else."""

import re


def split_lines(text: str) -> list[str]:
    """The lines of a text with their ends; `str.splitlines` also cuts at form feeds and other separators."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def without_end(line: str) -> str:
    """A line without its line feed, and without a carriage return before it."""
    return line.removesuffix("\n").removesuffix("\r") if line.endswith("\n") else line
