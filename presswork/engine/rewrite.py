"""Writing the gaps of a text whose other parts stay: what filling several gaps and editing have in common.

    prompt        canvas
    ... before    rest of a token | fixed | gap | fixed | gap | as much of what follows as there is room for

The canvas is kept to the texts that have the fixed parts in order (`presswork/grammar/segments.py`), so a gap takes
what it needs and what stands around it comes back byte for byte. Several candidates are written from seeds of their
own; the one whose whole text the causal mode finds likeliest wins.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from presswork.engine.events import Reply
from presswork.engine.params import SamplingParams
from presswork.engine.ranking import seed_of
from presswork.errors import RequestError, UnsupportedError
from presswork.grammar.few_changes import FewChanges
from presswork.grammar.languages import TextLanguage
from presswork.grammar.segments import Segments
from presswork.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from presswork.engine.engine import Engine

_SCORED_TOKENS = 32  # of what follows the last gap: enough to tell whether the gap leads into it
_MAX_UTF8 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of text with gaps, and where it stands.

    Args:
        prompt: tokens before the canvas, at least one.
        before: text behind the prompt that is written again, part of a token that the first gap may change.
        fixed: the parts around the gaps, `before` not included; the last one is all text that follows.
        start: what the gaps held, to start from; None starts from noise.
        gap_tokens: tokens that all gaps together may take, at most.
    """

    prompt: list[int]
    before: str
    fixed: tuple[str, ...]
    start: tuple[str, ...] | None
    gap_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewriting:
    """One way to write a window's gaps.

    Args:
        score: causal log-probability of the window's text, in nats.
        num_changes: tokens that are not those it started from, where they are counted.
    """

    gaps: tuple[str, ...]
    score: float
    reply: Reply
    num_changes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How a window lies in canvases: what they are kept to, and how many tokens they have."""

    language: Segments
    max_tokens: int
    canvas_length: int


def behind(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = True) -> tuple[list[int], str]:
    """(tokens of a text without its last, that one's text); pure.

    The text of a token that is cut would fix how what follows is spelt; so it is written again, with whatever follows.
    Tokens that hold part of a character go with it.
    """
    ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    data = text.encode()
    given = b""
    for count in range(1, min(_MAX_UTF8, len(ids) - 1) + 1):
        given = tokenizer.all_token_bytes[ids[-count]] + given
        if not given or not data.endswith(given):
            break
        try:
            return ids[:-count], given.decode()
        except UnicodeDecodeError:
            continue
    return ids, ""


def rewrite(
    engine: "Engine", window: Window, common: SamplingParams, *, gap: TextLanguage | None = None, num_candidates: int
) -> list[Rewriting]:
    """Write a window's gaps; the likeliest candidate first, of equal ones the first.

    Raises: RequestError where the fixed parts leave no room; ConstraintError.
    """
    tokenizer = require_pieces(engine)
    layout = _lay_out(engine, tokenizer, window, common, gap)
    common = common.changed(
        constraint=layout.language, max_tokens=layout.max_tokens, canvas_length=layout.canvas_length, mode="diffusion"
    )
    if window.start is not None:
        common = common.changed(start=_start(tokenizer, window, layout, engine.model.config.eos_token_id))
    prompts = [window.prompt] * num_candidates
    tries = [common.changed(seed=seed_of(common.seed, i)) for i in range(num_candidates)]
    found = []
    for reply in engine._replies(prompts, tries):
        written = b"".join(tokenizer.all_token_bytes[i] for i in reply.token_ids if i < tokenizer.vocab_size)
        gaps = tuple(part.decode() for part in layout.language.gaps_of(written))
        score = _score(engine, tokenizer, window, gaps, common.adapter) if num_candidates > 1 else 0.0
        found.append(Rewriting(gaps=gaps, score=score, reply=reply))
    found.sort(key=lambda one: -one.score)
    return found


def substitute(
    engine: "Engine", window: Window, common: SamplingParams, *, max_changes: int, num_candidates: int
) -> list[Rewriting]:
    """Write a window's gaps anew with at most so many of their tokens replaced, one token for one.

    Tokens that lie across a gap's border stay. The likeliest candidate comes first.
    """
    tokenizer = require_pieces(engine)
    assert window.start is not None
    parts = [window.before + window.fixed[0]]
    borders = [len(parts[0].encode())]
    for old, text in zip(window.start, window.fixed[1:], strict=True):
        borders += [borders[-1] + len(old.encode()), borders[-1] + len(old.encode()) + len(text.encode())]
        parts += [old, text]
    ids = tokenizer.encode("".join(parts), add_special_tokens=False)
    known = tokenizer.all_token_bytes
    starts = [0, *accumulate(len(known[i]) for i in ids)]
    gap_ranges = list(zip(borders[0::2], borders[1::2], strict=False))
    inside = frozenset(
        place
        for place, (start, stop) in enumerate(pairwise(starts))
        if any(first <= start and stop <= last for first, last in gap_ranges)
    )
    canvas = common.canvas_length or engine.model.config.canvas_length
    reach = 1 + max(inside, default=-1)
    total = min(len(ids), max(canvas, -(-(reach + canvas // 4) // canvas) * canvas))
    whole = total == len(ids)
    language = FewChanges(tuple(ids[:total]), inside, max_changes, ends=whole)
    num = total + whole  # and the end token
    common = common.changed(
        constraint=language, max_tokens=num, canvas_length=min(canvas, num), start=tuple(ids[:total]), mode="diffusion"
    )
    tries = [common.changed(seed=seed_of(common.seed, i)) for i in range(num_candidates)]
    found = []
    for reply in engine._replies([window.prompt] * num_candidates, tries):
        written = reply.token_ids[:total]
        gaps = tuple(_part(known, ids, written, starts, inside, first, last).decode() for first, last in gap_ranges)
        changed = sum(a != b for a, b in zip(written, ids, strict=False))
        score = _score(engine, tokenizer, window, gaps, common.adapter) if num_candidates > 1 else 0.0
        found.append(Rewriting(gaps=gaps, score=score, reply=reply, num_changes=changed))
    found.sort(key=lambda one: -one.score)
    return found


def _part(
    known: Sequence[bytes], old: Sequence[int], new: Sequence[int], starts: Sequence[int], inside: AbstractSet[int],
    first: int, last: int,
) -> bytes:  # fmt: skip
    """What stands between two bytes of the old text after tokens wholly inside were replaced."""
    parts = []
    for place, start in enumerate(starts[:-1]):
        if start < last and starts[place + 1] > first:
            text = known[new[place]] if place in inside else known[old[place]][max(0, first - start) : last - start]
            parts.append(text)
    return b"".join(parts)


def require_pieces(engine: "Engine") -> Tokenizer:
    """The engine's tokenizer. Raises UnsupportedError where its tokens have no text each."""
    tokenizer = engine.tokenizer
    if tokenizer is None or tokenizer.decoder_kind == "whole":
        raise UnsupportedError(f"gaps need a tokenizer whose tokens have a text each; model {engine.name!r} has none")
    return tokenizer


def _lay_out(
    engine: "Engine", tokenizer: Tokenizer, window: Window, common: SamplingParams, gap: TextLanguage | None
) -> _Layout:
    """The text to its end where that fits behind the gaps, else as much of it as fills a canvas."""
    fixed = (window.before + window.fixed[0], *window.fixed[1:])
    inner = sum(len(tokenizer.encode(part, add_special_tokens=False)) for part in fixed[:-1])
    after = tokenizer.encode(fixed[-1], add_special_tokens=False)
    known = common.canvas_length or engine.model.config.canvas_length
    room = engine.max_context - len(window.prompt)
    # Whole canvases for the gaps and what stands between them, the last of which shows what follows.
    needed = inner + window.gap_tokens
    total = -(-(needed + max(1, known // 4)) // known) * known
    # With less behind the gaps than that, a short gap could not fill the canvases.
    is_open = inner + len(after) >= total
    total = total if is_open else needed + len(after) + 1
    if total > room:
        raise _no_room(total, room, engine.max_context)
    if not is_open:
        return _Layout(language=Segments(fixed, gap), max_tokens=total, canvas_length=min(known, total))
    seen = after[:total]
    last = _text_of(tokenizer, seen, fixed[-1])
    least = _text_of(tokenizer, after[: max(1, min(len(seen), known // 4))], fixed[-1])
    language = Segments((*fixed[:-1], last), gap, shown=max(1, len(least.encode())))
    return _Layout(language=language, max_tokens=total, canvas_length=min(known, total))


def _text_of(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> str:
    """The beginning of a text that its first tokens spell, to a whole character."""
    size = sum(len(tokenizer.all_token_bytes[i]) for i in ids)
    return text.encode()[:size].decode(errors="ignore")


def _no_room(total: int, room: int, context: int) -> RequestError:
    return RequestError(
        f"the gaps and what must stand around them take {total} tokens, but {room} of the context of {context} are "
        "left; shorten the text or max_tokens"
    )


def _start(tokenizer: Tokenizer, window: Window, layout: _Layout, end: int) -> tuple[int, ...]:
    """The old text's tokens, as far as the canvases go; behind its end there are end tokens, as in training."""
    assert window.start is not None
    parts = [layout.language.fixed[0]]
    for old, text in zip(window.start, layout.language.fixed[1:], strict=True):
        parts += [old, text]
    ids = tokenizer.encode("".join(parts), add_special_tokens=False)[: layout.max_tokens]
    return (*ids, *[end] * (0 if layout.language.is_open else layout.max_tokens - len(ids)))


def _score(engine: "Engine", tokenizer: Tokenizer, window: Window, gaps: Sequence[str], adapter: str | None) -> float:
    """Causal log-probability of a window's text and the beginning of what follows, given the prompt."""
    after = tokenizer.encode(window.fixed[-1], add_special_tokens=False)[:_SCORED_TOKENS]
    text = window.before + window.fixed[0]
    for number, written in enumerate(gaps, start=1):
        last = number == len(gaps)
        text += written + (_text_of(tokenizer, after, window.fixed[-1]) if last else window.fixed[number])
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(after) < _SCORED_TOKENS:
        ids = [*ids, engine.model.config.eos_token_id]
    return sum(engine.score(window.prompt, ids[: engine.max_context - len(window.prompt)], adapter=adapter))
