"""Filling a gap between two texts: several gap lengths are denoised side by side, and the likeliest whole text wins.

    prompt          canvas
    <bos> def f (x  ):  \\n···  ~  ~  ~  \\n···  return  y  \\n  <eos>  <eos>
                    border     gap of 3  border pinned: the suffix, then ends

At the borders the model spells anew what the cuts would otherwise fix (`presswork/engine/borders.py`); bytes that come
out beyond what was there belong to the gap.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from presswork.cache.contiguous import SequenceCache
from presswork.engine.adapters import LoadedAdapter
from presswork.engine.borders import (
    MOST_CHARACTERS,
    SCORED_TOKENS,
    Border,
    cut_after,
    cut_before,
    cut_history,
    opening,
)
from presswork.engine.events import Reply
from presswork.engine.params import SamplingParams, refuse_decided
from presswork.engine.probe import prefilled
from presswork.engine.request import Request
from presswork.errors import GenerationError, NonFiniteError, RequestError
from presswork.text.tokenizer import Tokenizer, with_token_texts

if TYPE_CHECKING:
    from presswork.engine.engine import Engine

_MAX_LENGTHS = 16
_DECIDED = (
    "mode", "pins", "min_tokens", "stop", "stop_token_ids", "ignore_eos", "logprobs", "constraint", "start", "trace",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FillCandidate:
    """One way to fill a gap.

    Args:
        text: of the gap alone.
        length: free tokens of the gap; a token at each border comes on top.
        score: causal log-probability of gap and suffix given the prefix, in nats.
        num_denoise_steps: of its canvas.
    """

    text: str
    length: int
    score: float
    num_denoise_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FillReply:
    """A filled gap.

    Args:
        text: of the gap alone, the best candidate's.
        candidates: one for each length whose text is valid, best first.
        wall_s: for all of them together.
    """

    prefix: str
    text: str
    suffix: str
    candidates: list[FillCandidate]
    wall_s: float

    @property
    def completed(self) -> str:
        """The whole text."""
        return self.prefix + self.text + self.suffix


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What all lengths of a gap share.

    Args:
        prompt: tokens before the canvas.
        left, right: the gap's borders.
        pinned: the canvas behind the right border: the suffix, and ends where it has room for more.
        scored: the suffix as it counts: as much as a canvas holds, and the end where that is all.
        room: free tokens that the gap may have; less than 1 where a canvas has no room for a gap.
        is_cut: the context had no room for all of the prefix, and its beginning was left out.
    """

    canvas_length: int
    prompt: list[int]
    left: Border
    right: Border
    pinned: list[int]
    scored: list[int]
    room: int
    is_cut: bool


def fill(
    engine: "Engine",
    prefix: str,
    suffix: str,
    *,
    max_tokens: int | None = None,
    lengths: Sequence[int] | None = None,
    **params: Any,
) -> FillReply:
    """Fill the gap between two texts.

    Candidates are ranked by the model's own causal log-probability of everything behind the prefix. All of them explain
    the same prefix and the same suffix tokens, so their sums compare whatever their length.

    Args: as Engine.fill.
    Raises: RequestError, UnsupportedError; GenerationError when no candidate is valid text.
    """
    started = time.perf_counter()
    refuse_decided("fill", _DECIDED, params)
    common = engine.defaults.changed(**params, mode="diffusion")
    tokenizer = with_token_texts(engine.tokenizer, "fill needs", engine.name)
    frame = frame_of(engine, tokenizer, prefix, suffix, common)
    wanted = _lengths(frame, max_tokens, lengths)
    candidates = write_lengths(engine, tokenizer, frame, wanted, common)
    if not candidates:
        raise GenerationError(
            f"none of {len(wanted)} candidates is UTF-8 text; try other lengths, another seed or more steps"
        )
    return FillReply(
        prefix=prefix,
        text=candidates[0].text,
        suffix=suffix,
        candidates=candidates,
        wall_s=time.perf_counter() - started,
    )


def frame_of(engine: "Engine", tokenizer: Tokenizer, prefix: str, suffix: str, common: SamplingParams) -> Frame:
    """What a gap's canvases have around it. Raises RequestError where the context has no room for a canvas."""
    config = engine.model.config
    canvas_length = common.canvas_length or config.canvas_length
    # What a token can hold of a long prefix is enough of it.
    start, prefix = opening(tokenizer), prefix[-MOST_CHARACTERS * engine.max_context :]
    whole, left = cut_after(tokenizer, prefix, config.vocab_size)
    tail, right = cut_before(tokenizer, prefix, suffix, config.vocab_size)
    if not whole:
        raise RequestError("fill needs a prefix: this model's tokenizer has no begin token to start from")
    num_scored = min(canvas_length, SCORED_TOKENS)
    prompt = cut_history(engine.max_context, start, whole[len(start) :], canvas_length + num_scored)
    room = engine.max_context - len(prompt) - canvas_length
    if room < 0:
        raise RequestError(
            f"a canvas of {canvas_length} tokens and what must stand before it do not fit the context of "
            f"{engine.max_context}; lower canvas_length"
        )
    borders = left.num_tokens + right.num_tokens
    return Frame(
        canvas_length=canvas_length,
        prompt=prompt,
        left=left,
        right=right,
        # Behind a text's end a canvas holds end tokens, in training too.
        pinned=tail + [config.eos_token_id] * max(0, canvas_length - len(tail)),
        scored=[*tail, config.eos_token_id][: min(canvas_length, room)],
        # A quarter of the canvas stays pinned, so that the gap has a right side.
        room=canvas_length - borders - max(1, canvas_length // 4),
        is_cut=len(prompt) < len(whole),
    )


def write_lengths(
    engine: "Engine", tokenizer: Tokenizer, frame: Frame, lengths: Sequence[int], common: SamplingParams
) -> list[FillCandidate]:
    """One candidate for each length whose text is valid, the likeliest first, of equal ones the shorter.

    Raises: RequestError, GenerationError.
    """
    under = engine._adapters.find(common.adapter)
    candidates = []
    with prefilled(engine, frame.prompt, under) as (cache, last):
        for length, reply in zip(lengths, _denoise(engine, tokenizer, frame, lengths, common), strict=True):
            ids = reply.token_ids[: frame.left.num_tokens + length + frame.right.num_tokens]
            text = _gap_text(tokenizer, frame, ids)
            if text is not None:
                score, num_steps = _score(engine, cache, last, ids + frame.scored, under), reply.stats.num_denoise_steps
                candidates.append(FillCandidate(text=text, length=length, score=score, num_denoise_steps=num_steps))
    # Sorting is stable.
    return sorted(candidates, key=lambda candidate: -candidate.score)


def spread_lengths(most: int, num: int) -> list[int]:
    """At most so many lengths up to the longest, closer to each other where they are short; pure."""
    if most <= num:
        return list(range(1, most + 1))
    return sorted({round(most ** (i / (num - 1))) for i in range(num)})


def _lengths(frame: Frame, max_tokens: int | None, lengths: Sequence[int] | None) -> list[int]:
    """The gap lengths to try, shortest first."""
    room = frame.room
    if room < 1:
        raise RequestError(f"a canvas of {frame.canvas_length} tokens has no room for a gap; raise canvas_length")
    borders = frame.left.num_tokens + frame.right.num_tokens
    if lengths is not None:
        if max_tokens is not None:
            raise RequestError("give either max_tokens or lengths, got both")
        bad = [n for n in lengths if not isinstance(n, int) or isinstance(n, bool) or not 0 <= n <= room]
        if bad or not lengths or (borders == 0 and 0 in lengths):
            got = bad[0] if bad else list(lengths)
            low = 0 if borders else 1
            raise RequestError(f"lengths must be integers in {low}..{room} for this gap and canvas, got {got!r}")
        return sorted(set(lengths))
    if max_tokens is None:
        max_tokens = min(room, max(1, frame.canvas_length // 2))
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or not 1 <= max_tokens <= room:
        raise RequestError(f"max_tokens must be an integer in 1..{room} for this gap and canvas, got {max_tokens!r}")
    return spread_lengths(max_tokens, _MAX_LENGTHS)


def _denoise(
    engine: "Engine", tokenizer: Tokenizer, frame: Frame, lengths: Sequence[int], common: SamplingParams
) -> list[Reply]:
    """One canvas of each length, all in shared passes."""
    vocab, canvas_length = engine.model.config.vocab_size, frame.canvas_length
    # As end tokens they are ruled out before the last pin, and behind it there is nothing to write.
    no_text = [*(i for i in tokenizer.ids_without_text if i < vocab), *range(tokenizer.vocab_size, vocab)]
    common = common.changed(max_tokens=canvas_length, canvas_length=canvas_length, stop_token_ids=no_text)
    requests: list[Request] = []
    try:
        for length in lengths:
            right = frame.left.num_tokens + length
            first = right + frame.right.num_tokens
            pins = tuple(zip(range(first, canvas_length), frame.pinned, strict=False))
            borders = {0: frame.left.banned, right: frame.right.banned}
            banned = {position: ids for position, ids in borders.items() if ids is not None}
            requests.append(engine.submit(frame.prompt, common.changed(pins=pins), banned=banned))
        return [engine.reply(request) for request in requests]
    finally:
        for request in requests:
            engine.cancel(request)


def _gap_text(tokenizer: Tokenizer, frame: Frame, ids: Sequence[int]) -> str | None:
    """The gap's text, None where its bytes are none."""
    parts = b"".join(tokenizer.all_token_bytes[i] for i in ids)
    assert parts.startswith(frame.left.given) and parts.endswith(frame.right.given)
    try:
        return parts[len(frame.left.given) : len(parts) - len(frame.right.given)].decode()
    except UnicodeDecodeError:
        return None


def _score(
    engine: "Engine", cache: SequenceCache, last: Float[Tensor, "1 D"], ids: Sequence[int], under: LoadedAdapter
) -> float:
    """Causal log-probability of tokens behind a prompt, given its keys and values and its last hidden row."""
    twin = cache.snapshot()
    try:
        with engine._lock:
            if len(ids) > 1:
                last = torch.cat([last, engine._runner.causal_hidden(twin, ids[:-1], under.adapter)])
            reading = engine._runner.reader.read_logprobs(last, torch.tensor(ids, device=last.device))
    finally:
        twin.release()
    assert reading.chosen_logprobs is not None
    total = float(reading.chosen_logprobs.sum())
    if total != total:
        raise NonFiniteError("fill failed: the model produced NaN or infinite logits; check the weights")
    return total
