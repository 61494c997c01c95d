"""The canvas settling in the terminal: what is certain is bright, what is still noise is dim."""

import math
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from presswork.engine.events import Commit, Done, Draft

if TYPE_CHECKING:
    from presswork.engine.engine import Engine
    from presswork.engine.events import Reply

# From noise to ink; a position's share of the largest possible entropy picks the shade.
_SHADES = ("bold bright_white", "white", "grey70", "grey50", "grey35", "grey23")
_STEPS = (1e-3, 1e-2, 5e-2, 0.2, 0.5)


def watch_canvas(engine: "Engine", prompt: str, *, console: Console | None = None, **params: Any) -> "Reply":
    """Generate while drawing every draft; leaves the finished text on the screen."""
    console = console or Console()
    committed = Text()
    with Live(console=console, refresh_per_second=30, transient=False) as live:
        for event in engine.stream(prompt, drafts=True, **params):
            if isinstance(event, Draft):
                live.update(Group(committed + draw(engine, event), _status(event)))
            elif isinstance(event, Commit):
                committed.append(event.text, style=_SHADES[0])
                live.update(committed)
            elif isinstance(event, Done):
                return event.reply
    raise AssertionError("a request ends in a reply or an error")


def draw(engine: "Engine", draft: Draft) -> Text:
    """The draft's tokens, each shaded by its entropy; an end token is a mark, what follows it is left out."""
    largest = math.log(engine.model.config.vocab_size)
    text = Text()
    for token, entropy in zip(draft.token_ids, draft.entropy, strict=True):
        if token in engine.end_ids:
            text.append("⏹", style="grey50")
            break
        text.append(_piece(engine, token), style=_shade(entropy / largest))
    return text


def _piece(engine: "Engine", token: int) -> str:
    """What stands for a token: its text, or a dot for markers and bytes that are no text."""
    tokenizer = engine.tokenizer
    if tokenizer is None:
        return f"{token} "
    text = tokenizer.decode_continuation([token])
    is_shown = bool(text) and all(c == "\n" or c.isprintable() for c in text)
    return text if is_shown else "·"


def _shade(share: float) -> str:
    return _SHADES[sum(share > step for step in _STEPS)]


def _status(draft: Draft) -> Text:
    accepted = f"accepted {sum(draft.accepted)}/{len(draft.accepted)}"
    return Text(f"canvas {draft.canvas_index + 1}  step {draft.step}/{draft.max_steps}  {accepted}", style="grey50")
