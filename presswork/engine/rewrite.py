"""Writing the gaps of a text whose other parts stay: what filling several gaps and editing have in common.

    prompt        canvas
    ... before    rest of a token | fixed | gap | fixed | gap | as much of what follows as there is room for

The canvas is kept to the texts that have the fixed parts in order (`presswork/grammar/segments.py`), so a gap takes
what it needs and what stands around it comes back byte for byte. Several candidates are written from seeds of their
own; the one whose whole text the causal mode finds likeliest wins.
"""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from presswork.engine.borders import MOST_CHARACTERS, SCORED_TOKENS, cut_history
from presswork.engine.events import Reply
from presswork.engine.params import SamplingParams
from presswork.engine.ranking import MAX_BEST_OF, seed_of
from presswork.errors import RequestError, UnsupportedError
from presswork.grammar.few_changes import FewChanges
from presswork.grammar.languages import TextLanguage
from presswork.grammar.segments import ANCHOR, Segments, anchor_length
from presswork.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from presswork.engine.engine import Engine

_FEW = 4
_MAX_UTF8 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of text with gaps, and where it stands.

    Args:
        opening: tokens before the text, such as a begin token.
        history: tokens of the text before the canvas, one at least where there is no opening. Where the context has no
            room for all of them the beginning is left out.
        before: text behind the history that is written again, part of a token that the first gap may change.
        fixed: the parts around the gaps, `before` not included; the last one is all text that follows.
        start: what the gaps held, to start from; None starts from noise.
        gap_tokens: tokens that all gaps together may take, at most.
    """

    opening: list[int]
    history: list[int]
    before: str
    fixed: tuple[str, ...]
    start: tuple[str, ...] | None
    gap_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewriting:
    """One way to write a window's gaps.

    Args:
        score: causal log-probability of the window's text, in nats.
        num_denoise_steps: over its canvases.
        num_prompt_tokens: read before the window.
        num_changes: tokens that are not those it started from, where they are counted.
    """

    gaps: tuple[str, ...]
    score: float
    num_denoise_steps: int
    num_prompt_tokens: int = 0
    num_changes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How a window lies in canvases: what they are kept to, and how many tokens they have."""

    language: Segments
    max_tokens: int
    canvas_length: int


def behind(tokenizer: Tokenizer, text: str, most: int) -> tuple[list[int], str]:
    """(tokens of a text without its last, that one's text); pure. Of a long text so many last tokens may be all.

    The text of a token that is cut would fix how what follows is spelt; so it is written again, with whatever follows.
    Tokens that hold part of a character go with it.
    """
    text = text[-MOST_CHARACTERS * most :]
    ids, data, given = tokenizer.encode_plain(text), text.encode(), b""
    for count in range(1, min(_MAX_UTF8, len(ids)) + 1):
        given = tokenizer.all_token_bytes[ids[-count]] + given
        if not given or not data.endswith(given):
            break
        try:
            return ids[:-count], given.decode()
        except UnicodeDecodeError:
            continue
    return ids, ""


def check_candidates(num_candidates: object) -> None:
    """Raises RequestError for what is no number of candidates."""
    if type(num_candidates) is not int or not 1 <= num_candidates <= MAX_BEST_OF:
        raise RequestError(f"num_candidates must be an integer in 1..{MAX_BEST_OF}, got {num_candidates!r}")


def rewrite(
    engine: "Engine", tokenizer: Tokenizer, window: Window, common: SamplingParams, *,
    gap: TextLanguage | None = None, num_candidates: int,
) -> list[Rewriting]:  # fmt: skip
    """Write a window's gaps; the likeliest candidate first, of equal ones the first.

    An old text that the end of its gap cannot be told from is written token for token instead (`substitute`).

    Raises: RequestError where the fixed parts leave no room; ConstraintError.
    """
    layout = _lay_out(engine, tokenizer, window, common, gap)
    if layout is None:
        return substitute(engine, tokenizer, window, common, max_changes=None, num_candidates=num_candidates)
    common = common.changed(
        constraint=layout.language, max_tokens=layout.max_tokens, canvas_length=layout.canvas_length
    )
    if window.start is not None:
        common = common.changed(start=_start(tokenizer, window, layout, engine.model.config.eos_token_id))

    def gaps_of(reply: Reply) -> tuple[str, ...]:
        written = b"".join(tokenizer.all_token_bytes[i] for i in reply.token_ids if i < tokenizer.vocab_size)
        return tuple(part.decode() for part in layout.language.gaps_of(written))

    prompt = cut_history(engine.max_context, window.opening, window.history, layout.max_tokens + SCORED_TOKENS)
    return _candidates(engine, tokenizer, window, prompt, common, num_candidates, gaps_of)


def substitute(
    engine: "Engine", tokenizer: Tokenizer, window: Window, common: SamplingParams, *, max_changes: int | None,
    num_candidates: int,
) -> list[Rewriting]:  # fmt: skip
    """Write a window's gaps anew with at most so many of their tokens replaced, one token for one.

    Tokens that lie across a gap's border stay. The likeliest candidate comes first.

    Raises: UnsupportedError where tokens do not spell the text byte for byte.
    """
    known = tokenizer.all_token_bytes
    assert window.start is not None
    parts = [window.before + window.fixed[0]]
    borders = [len(parts[0].encode())]
    for old, text in zip(window.start, window.fixed[1:-1], strict=False):
        borders += [borders[-1] + len(old.encode()), borders[-1] + len(old.encode()) + len(text.encode())]
        parts += [old, text]
    borders.append(borders[-1] + len(window.start[-1].encode()))
    gap_ranges = list(zip(borders[0::2], borders[1::2], strict=True))
    canvas = common.canvas_length or engine.model.config.canvas_length
    text = "".join([*parts, window.start[-1]])
    after, is_all = first_tokens(tokenizer, window.fixed[-1], canvas)
    ids = tokenizer.encode_plain(text + text_of(tokenizer, after, window.fixed[-1]))
    starts = [0, *accumulate(len(known[i]) for i in ids)]
    if b"".join(known[i] for i in ids)[: borders[-1]] != text.encode():
        raise UnsupportedError(
            "this model's tokenizer does not spell the text byte for byte, so single tokens of it cannot be held; "
            "leave out max_changes"
        )
    inside = frozenset(
        place
        for place, (start, stop) in enumerate(pairwise(starts))
        if any(first <= start and stop <= last for first, last in gap_ranges)
    )
    if not inside:
        return [Rewriting(gaps=window.start, score=0.0, num_denoise_steps=0)]
    total = min(len(ids), -(-(1 + max(inside) + canvas // 4) // canvas) * canvas)
    ends = is_all and total == len(ids)
    room = engine.max_context - max(1, len(window.opening))
    if total + ends > room:
        raise _no_room(total + ends, room, engine.max_context)
    limit = len(inside) if max_changes is None else max_changes
    language = FewChanges(tuple(ids[:total]), inside, limit, ends=ends)
    num = total + ends  # and the end token
    common = common.changed(
        constraint=language, max_tokens=num, canvas_length=min(canvas, num), start=tuple(ids[:total])
    )

    def gaps_of(reply: Reply) -> tuple[str, ...]:
        ranges = (_part(known, ids, reply.token_ids, starts, inside, first, last) for first, last in gap_ranges)
        return tuple(part.decode() for part in ranges)

    def num_changes(reply: Reply) -> int:
        return sum(a != b for a, b in zip(reply.token_ids, ids[:total], strict=False))

    prompt = cut_history(engine.max_context, window.opening, window.history, num + SCORED_TOKENS)
    return _candidates(engine, tokenizer, window, prompt, common, num_candidates, gaps_of, num_changes)


def _candidates(
    engine: "Engine", tokenizer: Tokenizer, window: Window, prompt: list[int], common: SamplingParams,
    num_candidates: int, gaps_of: Callable[[Reply], tuple[str, ...]],
    num_changes: Callable[[Reply], int] = lambda reply: 0,
) -> list[Rewriting]:  # fmt: skip
    """So many ways to write a window from seeds of their own, the likeliest first; a single one is not scored."""
    tries = [common.changed(seed=seed_of(common.seed, i)) for i in range(num_candidates)]
    found = []
    for reply in engine._replies([prompt] * num_candidates, tries):
        gaps = gaps_of(reply)
        found.append(
            Rewriting(
                gaps=gaps,
                score=_score(engine, tokenizer, window, prompt, gaps, common.adapter) if num_candidates > 1 else 0.0,
                num_denoise_steps=reply.stats.num_denoise_steps,
                num_prompt_tokens=len(prompt),
                num_changes=num_changes(reply),
            )
        )
    return sorted(found, key=lambda one: -one.score)


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


def _lay_out(
    engine: "Engine", tokenizer: Tokenizer, window: Window, common: SamplingParams, gap: TextLanguage | None
) -> _Layout | None:
    """The text to its end where a canvas hardly reaches past it, else as much of it as fills whole canvases.

    None where an old text cannot be told from what follows it.
    """
    fixed = (window.before + window.fixed[0], *window.fixed[1:])
    inner = sum(len(tokenizer.encode_plain(part)) for part in fixed[:-1])
    known = common.canvas_length or engine.model.config.canvas_length
    room = engine.max_context - max(1, len(window.opening))
    # Whole canvases for the gaps and what stands between them, the last of which shows what follows.
    needed = inner + window.gap_tokens
    total = -(-(needed + max(1, known // 4)) // known) * known
    while True:
        after, is_all = first_tokens(tokenizer, fixed[-1], total)
        # With less behind the gaps than that, a short gap could not fill the canvases.
        is_open = not is_all or inner + len(after) >= total
        total = total if is_open else needed + len(after) + 1
        if total > room:
            raise _no_room(total, room, engine.max_context)
        last = text_of(tokenizer, after, fixed[-1]) if is_open else fixed[-1]
        anchors = None if window.start is None else _anchors(window.start, (*fixed[:-1], last), is_open=is_open)
        if window.start is not None and anchors is None:
            return None
        shown = _shown(tokenizer, after, last, total - needed, max(1, known // 4), anchors[-1] if anchors else 0)
        if not is_open or shown is not None:
            break
        # What has to be seen behind the last gap would take the gaps' room.
        total += known
    seen = len(shown.encode()) if is_open and shown is not None else None
    language = Segments((*fixed[:-1], last), gap, shown=seen, anchors=anchors)
    return _Layout(language=language, max_tokens=total, canvas_length=min(known, total))


def _shown(tokenizer: Tokenizer, after: Sequence[int], text: str, room: int, least: int, anchor: int) -> str | None:
    """What the canvases have to show of a text behind the last gap: what the gaps may not take, and the anchor.

    Whole characters, so many tokens at least; None where they have no room for it. Cut elsewhere than between the
    tokens it has, a text may take a few more.
    """
    for count in dict.fromkeys((*range(room, max(least, room - _FEW), -1), least)):
        count = min(count, len(after))
        while not text_of(tokenizer, after[:count], text) and count < len(after):
            count += 1
        shown = max(text_of(tokenizer, after[:count], text), text[:anchor], key=len)
        if len(tokenizer.encode_plain(shown)) <= room:
            return shown
    return None


def _anchors(start: Sequence[str], fixed: Sequence[str], *, is_open: bool) -> tuple[int, ...] | None:
    """How much of each part ends the gap before it, so that each gap can hold what it held; None where none does."""
    found = []
    for number, (old, part) in enumerate(zip(start, fixed[1:], strict=True), start=1):
        size = anchor_length(old, part)
        if number == len(fixed) - 1 and not is_open and (size is None or len(part) <= ANCHOR):
            size = 0
        if size is None or (size == 0 and (number < len(fixed) - 1 or is_open)):
            return None
        found.append(size)
    return tuple(found)


def first_tokens(tokenizer: Tokenizer, text: str, count: int) -> tuple[list[int], bool]:
    """(the first tokens of a text, at most so many, whether those are all); looks no further than it must."""
    size = 8 * count + 64
    while True:
        ids = tokenizer.encode_plain(text[:size])
        if size >= len(text):
            return ids[:count], len(ids) <= count
        # The last few tokens before a cut are not those of the whole text.
        if len(ids) >= count + 8:
            return ids[:count], False
        size *= 2


def text_of(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> str:
    """The beginning of a text that its first tokens spell, to a whole character."""
    size = sum(len(tokenizer.all_token_bytes[i]) for i in ids)
    return text[:size].encode()[:size].decode(errors="ignore")


def _no_room(total: int, room: int, context: int) -> RequestError:
    return RequestError(
        f"the gaps and what must stand around them take {total} tokens, but {room} of the context of {context} are "
        "left; take a part of the text, or smaller gaps"
    )


def _start(tokenizer: Tokenizer, window: Window, layout: _Layout, end: int) -> tuple[int, ...]:
    """The old text's tokens, as far as the canvases go; behind its end there are end tokens, as in training."""
    assert window.start is not None
    parts = [layout.language.fixed[0]]
    for old, text in zip(window.start, layout.language.fixed[1:], strict=True):
        parts += [old, text]
    ids = tokenizer.encode_plain("".join(parts))[: layout.max_tokens]
    return (*ids, *[end] * (0 if layout.language.is_open else layout.max_tokens - len(ids)))


def _score(
    engine: "Engine", tokenizer: Tokenizer, window: Window, prompt: list[int], gaps: Sequence[str], adapter: str | None
) -> float:
    """Causal log-probability of a window's text and the beginning of what follows, given the prompt."""
    after, is_all = first_tokens(tokenizer, window.fixed[-1], SCORED_TOKENS)
    text = window.before + window.fixed[0]
    for number, written in enumerate(gaps, start=1):
        last = number == len(gaps)
        text += written + (text_of(tokenizer, after, window.fixed[-1]) if last else window.fixed[number])
    ids = tokenizer.encode_plain(text)
    if is_all:
        ids = [*ids, engine.model.config.eos_token_id]
    return sum(engine.score(prompt, ids[: engine.max_context - len(prompt)], adapter=adapter))
