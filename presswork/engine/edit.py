"""Changing parts of a text in place: the canvas starts from what stands there, and what lies outside the parts stays.

A long text is edited window by window: each window is one stretch around parts that lie close together, written behind
everything before it as it now reads.
"""

import difflib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from presswork.engine.borders import cut_history, opening
from presswork.engine.changes import changes_between, mean_over
from presswork.engine.params import SamplingParams, refuse_decided
from presswork.engine.rewrite import (
    Rewriting,
    Window,
    behind,
    check_candidates,
    first_tokens,
    rewrite,
    substitute,
    text_of,
)
from presswork.errors import RequestError, UnsupportedError
from presswork.text.lines import split_lines
from presswork.text.tokenizer import Tokenizer, with_token_texts

if TYPE_CHECKING:
    from presswork.engine.engine import Engine

Span = tuple[int, int]

_WINDOW_CANVASES = 3  # a window's parts fill one or two, and what follows them is shown in one more
_SLACK = 8  # tokens a part may grow by, beside half of its length
_DECIDED = (
    "mode", "pins", "min_tokens", "stop", "stop_token_ids", "ignore_eos", "logprobs", "constraint", "max_tokens",
    "start", "start_noise", "top_k", "top_p", "allowed_token_ids", "banned_token_ids",
    "trace",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class EditedSpan:
    """A part of a text before and after an edit, or a change in one.

    Args:
        start, stop: characters of the old text.
        old, new: what stood and stands there.
        confidence: mean probability of the new tokens in the causal mode, given all before them; 1 where nothing
            changed; of a part edited in several pieces, the least. Of a change that only takes something away, the
            probability of the token that follows now.
    """

    start: int
    stop: int
    old: str
    new: str
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EditReply:
    """An edited text.

    Args:
        old, text: before and after.
        spans: every part that was open to change, in order.
        changes: every stretch of words that changed, in order.
        num_denoise_steps: over all windows and candidates.
    """

    old: str
    text: str
    spans: list[EditedSpan]
    changes: list[EditedSpan]
    num_denoise_steps: int
    wall_s: float

    def diff(self, name: str = "text") -> str:
        """A unified diff; empty where nothing changed."""
        if self.old == self.text:
            return ""
        old, new = split_lines(self.old), split_lines(self.text)
        lines = difflib.unified_diff(old, new, f"a/{name}", f"b/{name}")
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


@dataclass(slots=True, kw_only=True)
class _Progress:
    """An edit on its way.

    Args:
        opening: tokens before the text.
        done: the text so far, as it now reads. place: how much of the old text that is.
        changes_left: tokens that may still change, None for any number.
    """

    opening: list[int]
    done: str = ""
    place: int = 0
    changes_left: int | None = None
    pieces: list[EditedSpan] = field(default_factory=list)
    changes: list[EditedSpan] = field(default_factory=list)
    num_denoise_steps: int = 0


def edit(
    engine: "Engine",
    text: str,
    instruction: str = "",
    *,
    spans: Sequence[Span] | None = None,
    strength: float = 0.5,
    max_changes: int | None = None,
    num_candidates: int = 4,
    **params: Any,
) -> EditReply:
    """Edit parts of a text.

    Args: as Engine.edit.
    Raises: RequestError, UnsupportedError.
    """
    started = time.perf_counter()
    _check(strength, max_changes, params)
    check_candidates(num_candidates)
    wanted = checked_spans(text, spans)
    progress = _Progress(opening=[], changes_left=max_changes)
    if wanted and (strength > 0 or instruction) and max_changes != 0:
        tokenizer = with_token_texts(engine.tokenizer, "an edit needs", engine.name)
        common = engine.defaults.changed(**params, mode="diffusion", start_noise=float(strength))
        progress.opening = _opening(engine, tokenizer, instruction, text)
        canvas = common.canvas_length or engine.model.config.canvas_length
        if engine.max_context - len(progress.opening) < _WINDOW_CANVASES * canvas:
            needed = f"an edit needs {_WINDOW_CANVASES} canvases of {canvas} tokens of the context"
            if not instruction:
                raise RequestError(f"{needed}, which has {engine.max_context}; give a smaller canvas_length")
            raise RequestError(
                f"{needed}, and the instruction and the text take {len(progress.opening)} of its {engine.max_context}; "
                "edit a part of the text, or give no instruction"
            )
        for group in _windows(tokenizer, text, wanted, canvas):
            left = _time_left(common, started)
            if left is not None and left <= 0:
                progress.changes_left = 0  # what has no time left stays as it is
            own = common if left is None else common.changed(max_time=max(left, 0.0))
            _edit_window(engine, tokenizer, text, group, own, num_candidates, progress)
    else:
        progress.pieces = [EditedSpan(start=a, stop=b, old=text[a:b], new=text[a:b], confidence=1.0) for a, b in wanted]
    return EditReply(
        old=text,
        text=progress.done + text[progress.place :],
        spans=[_joined(text, span, progress.pieces) for span in wanted],
        changes=progress.changes,
        num_denoise_steps=progress.num_denoise_steps,
        wall_s=time.perf_counter() - started,
    )


def _time_left(common: SamplingParams, started: float) -> float | None:
    """Seconds that are left for further windows; None is any number. `max_time` is for all of them."""
    return None if common.max_time is None else common.max_time - (time.perf_counter() - started)


def _check(strength: object, max_changes: object, params: Mapping[str, Any]) -> None:
    refuse_decided("edit", _DECIDED, params)
    number = strength if isinstance(strength, (int, float)) and not isinstance(strength, bool) else None
    if number is None or not 0 <= number <= 1:
        raise RequestError(f"strength must be a number in [0, 1], got {strength!r}")
    if max_changes is not None and (type(max_changes) is not int or max_changes < 0):
        raise RequestError(f"max_changes must be an integer of at least 0 or none, got {max_changes!r}")


def checked_spans(text: str, spans: Sequence[Span] | None) -> list[Span]:
    """The parts in order; None is the whole text. Raises RequestError for parts that overlap or lie outside."""
    if spans is None:
        return [(0, len(text))] if text else []
    for span in spans:
        is_pair = isinstance(span, Sequence) and len(span) == 2 and all(type(place) is int for place in span)
        if not is_pair or not 0 <= span[0] <= span[1] <= len(text):
            raise RequestError(
                f"spans must be pairs (start, stop) within the text's {len(text)} characters, got {span!r}"
            )
    ordered = sorted((start, stop) for start, stop in spans)
    for (_, stop), (start, _) in pairwise(ordered):
        if start <= stop:
            raise RequestError(f"spans must not overlap or touch, got one to {stop} and one from {start}; join them")
    return ordered


def _opening(engine: "Engine", tokenizer: Tokenizer, instruction: str, text: str) -> list[int]:
    """Tokens before the edited text: a user turn with what is asked and the old text, or only a begin token."""
    if not instruction:
        ids = opening(tokenizer)
    elif engine.template is None:
        raise UnsupportedError(f"an instruction needs a chat template, which model {engine.name!r} lacks; leave it out")
    else:
        ids = engine.encode_chat([{"role": "user", "content": f"{instruction}\n\n{text}"}])
    if not ids:
        raise UnsupportedError(f"model {engine.name!r} has no begin token to start from; give an instruction")
    return ids


def _windows(tokenizer: Tokenizer, text: str, spans: Sequence[Span], canvas: int) -> Iterator[list[Span]]:
    """The parts in groups that one window takes; a part too long for a window is cut, at line ends where it can be."""
    pieces = [piece for span in spans for piece in _pieces(tokenizer, text, span, max(1, canvas // 2))]
    group: list[Span] = []
    for piece in pieces:
        if group and not _go_together(tokenizer, text, group, piece, canvas):
            yield group
            group = []
        group.append(piece)
    yield group


def _go_together(tokenizer: Tokenizer, text: str, group: Sequence[Span], piece: Span, canvas: int) -> bool:
    """Whether a window has room for one more part, and what lies between tells where the part before it ends."""
    old, between = text[slice(*group[-1])], text[group[-1][1] : piece[0]]
    if not between or (old + between).find(between) != len(old):
        return False
    _, is_all = first_tokens(tokenizer, text[group[0][0] : piece[1]], canvas * 3 // 4)
    return is_all


def _pieces(tokenizer: Tokenizer, text: str, span: Span, most: int) -> Iterator[Span]:
    start, stop = span
    while True:
        ids, is_all = first_tokens(tokenizer, text[start:stop], most)
        if is_all:
            yield (start, stop)
            return
        size = max(1, len(text_of(tokenizer, ids, text[start:stop])))
        line_end = text.rfind("\n", start, start + size) + 1
        cut = line_end if line_end > start else start + size
        yield (start, cut)
        start = cut


def _edit_window(
    engine: "Engine", tokenizer: Tokenizer, text: str, group: list[Span], common: SamplingParams, num_candidates: int,
    progress: _Progress,
) -> None:  # fmt: skip
    """Write one window's parts. Mutates progress."""
    progress.done += text[progress.place : group[0][0]]
    progress.place = group[-1][1]
    history, before = behind(tokenizer, progress.done, engine.max_context)
    old = tuple(text[start:stop] for start, stop in group)
    between = tuple(text[stop:start] for (_, stop), (start, _) in pairwise(group))
    window = Window(
        opening=progress.opening,
        history=history,
        before=before,
        fixed=("", *between, text[progress.place :]),
        start=old,
        gap_tokens=sum(_grown(len(tokenizer.encode_plain(part))) for part in old),
    )
    left = progress.changes_left
    if left == 0:
        found = [Rewriting(gaps=old, score=0.0, num_denoise_steps=0)]
    elif left is None:
        found = rewrite(engine, tokenizer, window, common, num_candidates=num_candidates)
    else:
        found = substitute(engine, tokenizer, window, common, max_changes=left, num_candidates=num_candidates)
        progress.changes_left = left - found[0].num_changes
    progress.num_denoise_steps += sum(one.num_denoise_steps for one in found)
    for number, ((start, stop), new) in enumerate(zip(group, found[0].gaps, strict=True)):
        was, sure = text[start:stop], 1.0
        if new != was:
            sizes, probabilities = _probabilities(engine, tokenizer, progress, new, common.adapter)
            sure = mean_over(new, slice(0, len(new)), sizes, probabilities)
            for gone, come in changes_between(was, new):
                own = mean_over(new, come, sizes, probabilities)
                progress.changes.append(
                    EditedSpan(
                        start=start + gone.start, stop=start + gone.stop, old=was[gone], new=new[come], confidence=own
                    )
                )
        progress.pieces.append(EditedSpan(start=start, stop=stop, old=was, new=new, confidence=sure))
        progress.done += new + (between[number] if number < len(between) else "")


def _joined(text: str, span: Span, pieces: Sequence[EditedSpan]) -> EditedSpan:
    """One part, put together from the pieces it was edited in; as sure as its least sure piece."""
    own = [piece for piece in pieces if span[0] <= piece.start and piece.stop <= span[1]]
    return EditedSpan(
        start=span[0],
        stop=span[1],
        old=text[span[0] : span[1]],
        new="".join(piece.new for piece in own),
        confidence=min(piece.confidence for piece in own),
    )


def _grown(num_tokens: int) -> int:
    """Tokens that a part may take."""
    return num_tokens + num_tokens // 2 + _SLACK


def _probabilities(
    engine: "Engine", tokenizer: Tokenizer, progress: _Progress, new: str, adapter: str | None
) -> tuple[list[int], list[float]]:
    """(bytes, causal probability) of each of a part's tokens behind the text so far."""
    ids = tokenizer.encode_plain(new)
    if not ids:
        return [], []
    history, last = behind(tokenizer, progress.done, engine.max_context)
    history += tokenizer.encode_plain(last)
    given = cut_history(engine.max_context, progress.opening, history, len(ids))
    sizes = [len(tokenizer.all_token_bytes[i]) for i in ids]
    return sizes, [math.exp(logprob) for logprob in engine.score(given, ids, adapter=adapter)]
