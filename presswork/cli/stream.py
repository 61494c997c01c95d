"""Brings an engine's events to standard output: as plain text, or as a canvas that settles."""

import sys
import time
from collections.abc import Iterator

from presswork.cli.output import write_text
from presswork.cli.watch import CanvasView
from presswork.engine.engine import Engine
from presswork.engine.events import Commit, Done, Event, Reply

# A small model settles faster than anyone can look.
FRAME_S = 0.12


def write_events(events: Iterator[Event], *, is_quiet: bool = False) -> Reply:
    """Write text as it is committed, with a line end behind it; returns the reply.

    Args:
        is_quiet: write nothing, only wait.
    """
    ends_line = False
    for event in events:
        if isinstance(event, Done):
            if not is_quiet and not ends_line:
                write_text("\n")
            return event.reply
        if not is_quiet and isinstance(event, Commit) and event.text:
            write_text(event.text)
            ends_line = event.text.endswith("\n")
    raise AssertionError("a request ends in a reply or an error")


def figures(reply: Reply, held_s: float = 0.0) -> str:
    """One line on how a request went; seconds that it was held up are not counted."""
    stats, wall_s = reply.stats, max(1e-9, reply.stats.wall_s - held_s)
    work = f"{stats.completion_tokens} tokens one at a time"
    if stats.num_canvases:
        canvases = f" in {stats.num_canvases} canvases" if stats.num_canvases > 1 else ""
        work = f"{stats.num_denoise_steps} denoise steps{canvases}, {stats.completion_tokens} tokens"
    cut = "; cut at max_tokens" if reply.finish_reason == "length" else ""
    return f"{work}, {wall_s:.2f} s, {stats.completion_tokens / wall_s:.1f} tokens/s{cut}"


def can_draw() -> bool:
    """Whether standard output is a terminal that understands cursor movements."""
    if not sys.stdout.isatty():
        return False
    from rich.console import Console

    return not Console().is_dumb_terminal


def watch(events: Iterator[Event], engine: Engine) -> tuple[Reply, float]:
    """Draw drafts and commits in the terminal until the reply is there, then remove the drawing.

    Returns: the reply, and the seconds the drawing was held for the eye, which are not the engine's.
    """
    from rich.console import Console
    from rich.live import Live

    view = CanvasView(engine.tokenizer, engine.end_ids)
    held_s = 0.0
    # No refresh thread: a frame is drawn when there is one, and Ctrl-C leaves through the context manager.
    with Live(view, console=Console(), auto_refresh=False, transient=True, redirect_stdout=False) as live:
        for event in events:
            if isinstance(event, Done):
                return event.reply, held_s
            started = time.perf_counter()
            is_frame = view.update(event)
            live.refresh()
            if is_frame:
                time.sleep(FRAME_S)
                held_s += time.perf_counter() - started
    raise AssertionError("a request ends in a reply or an error")
