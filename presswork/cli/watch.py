"""A canvas as it settles, drawn with rich: certain letters bright, doubtful ones dim.

Looks:
    settled     entropy near zero            bold, bright
    accepted    its sample stays this step   green, the dimmer the more doubtful
    renoised    it will be random again      grey, the dimmer the more doubtful
    dropped     behind the end of the text   hardly visible
"""

from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from presswork.cli.output import shown
from presswork.engine.events import Commit, Draft, Event
from presswork.text.pieces import pieces
from presswork.text.tokenizer import Tokenizer

_SETTLED_NATS = 0.02
_SETTLED = Style(bold=True, color="bright_white")
_DROPPED = Style(dim=True, color="grey30")
# (entropy below, accepted, renoised): from sure to clueless.
_SHADES = (
    (0.3, Style(color="green3"), Style(color="grey74")),
    (1.0, Style(color="green4"), Style(color="grey58")),
    (float("inf"), Style(color="dark_green", dim=True), Style(color="grey39", dim=True)),
)
_NO_TEXT = "·"
_HEADER_LINES = 2


class CanvasView:
    """What `run --watch` shows: committed text, the present draft behind it, and a line of figures above.

    Longer texts show their end.
    """

    def __init__(self, tokenizer: Tokenizer | None, end_ids: frozenset[int]):
        self._tokenizer, self._end_ids = tokenizer, end_ids
        self._committed = Text()
        self._draft: Draft | None = None

    def update(self, event: Event) -> bool:
        """Take in an event; returns whether it was a draft, which is worth a look. Mutates self."""
        if isinstance(event, Draft):
            self._draft = event
            return True
        if isinstance(event, Commit):
            self._committed.append(shown(event.text), style=_SETTLED)
            self._draft = None
        return False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self._committed.copy()
        if self._draft is not None:
            text.append_text(canvas_text(self._draft, self._tokenizer, self._end_ids))
            yield Text(_figures(self._draft), style="cyan", no_wrap=True, overflow="ellipsis")
            yield Text("")
        lines = text.wrap(console, options.max_width, tab_size=4)
        room = max(1, console.height - _HEADER_LINES - 1)
        yield from lines[-room:]


def canvas_text(draft: Draft, tokenizer: Tokenizer | None, end_ids: frozenset[int]) -> Text:
    """What of a draft is not committed yet, each token in its look."""
    text, is_dropped = Text(), False
    for piece, first, stop in pieces(tokenizer, draft.token_ids):
        if stop <= draft.num_committed:
            continue
        entropy, accepted = max(draft.entropy[first:stop]), all(draft.accepted[first:stop])
        text.append(shown(piece) or _NO_TEXT, style=_DROPPED if is_dropped else _style(entropy, accepted))
        is_dropped = is_dropped or draft.token_ids[first] in end_ids
    return text


def _style(entropy: float, accepted: bool) -> Style:
    if entropy < _SETTLED_NATS:
        return _SETTLED
    _, sure, doubtful = next(shade for shade in _SHADES if entropy < shade[0])
    return sure if accepted else doubtful


def _figures(draft: Draft) -> str:
    num = len(draft.token_ids)
    settled = sum(entropy < _SETTLED_NATS for entropy in draft.entropy)
    return (
        f"canvas {draft.canvas_index + 1}  step {draft.step} of at most {draft.max_steps}  settled {settled}/{num}  "
        f"accepted {sum(draft.accepted)}/{num}  mean entropy {sum(draft.entropy) / num:.3f}"
    )
