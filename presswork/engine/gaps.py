"""Filling the gaps of a text at any length: several at once, longer than a canvas, or kept to a language."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from presswork.engine.borders import opening
from presswork.engine.fill import frame_of, spread_lengths, write_lengths
from presswork.engine.params import SamplingParams, refuse_decided
from presswork.engine.rewrite import Window, behind, check_candidates, rewrite
from presswork.errors import RequestError
from presswork.grammar.languages import Regex, TextLanguage
from presswork.text.tokenizer import Tokenizer, with_token_texts

if TYPE_CHECKING:
    from presswork.engine.engine import Engine

_LENGTHS = 8  # of a single gap; on HumanEval as good as 24 (docs/decisions/0016)
_FLOATING = 4  # candidates of gaps that float
_DECIDED = (
    "mode", "pins", "min_tokens", "stop", "stop_token_ids", "ignore_eos", "logprobs", "start", "constraint", "top_k",
    "top_p", "allowed_token_ids", "banned_token_ids", "trace",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GapsCandidate:
    """One way to fill all gaps.

    Args:
        texts: of the gaps, in order.
        score: causal log-probability of everything behind the first text, in nats; 0 where there is one candidate
            alone, which is not scored.
        num_denoise_steps: over its canvases.
    """

    texts: tuple[str, ...]
    score: float
    num_denoise_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GapsReply:
    """Filled gaps.

    Args:
        fixed: the texts around the gaps, as they were given.
        texts: of the gaps, the best candidate's.
        candidates: best first.
        num_prompt_tokens: read before the gaps.
        is_cut: the context had no room for all of the first text, and its beginning was left out.
        wall_s: for all of them together.
    """

    fixed: tuple[str, ...]
    texts: tuple[str, ...]
    candidates: list[GapsCandidate]
    num_prompt_tokens: int
    is_cut: bool
    wall_s: float

    @property
    def completed(self) -> str:
        """The whole text."""
        return self.fixed[0] + "".join(gap + text for gap, text in zip(self.texts, self.fixed[1:], strict=True))


@dataclass(frozen=True, slots=True)
class _Written:
    """Candidates, best first; tokens read before the gaps; whether the first text's beginning was left out."""

    candidates: list[GapsCandidate]
    num_prompt_tokens: int
    is_cut: bool


def fill_gaps(
    engine: "Engine",
    fixed: Sequence[str],
    *,
    max_tokens: int | None = None,
    gap: TextLanguage | None = None,
    indent: int = 0,
    num_candidates: int | None = None,
    **params: Any,
) -> GapsReply:
    """Fill the gaps between texts.

    One gap that fits a canvas is written once for each of several lengths, which the model sees from the first step on;
    others float. Measured in docs/decisions/0016.

    Args: as Engine.fill_gaps.
    Raises: RequestError, UnsupportedError, ConstraintError, GenerationError.
    """
    started = time.perf_counter()
    refuse_decided("filling gaps", _DECIDED, params)
    texts = tuple(fixed)
    if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        raise RequestError(f"give the texts around the gaps, at least two, got {fixed!r}")
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise RequestError(f"max_tokens must be an integer of at least 1, got {max_tokens!r}")
    check_candidates(_FLOATING if num_candidates is None else num_candidates)
    kept = _indented(indent, gap) if indent else gap
    tokenizer = with_token_texts(engine.tokenizer, "gaps need", engine.name)
    common = engine.defaults.changed(**params, mode="diffusion")
    written = None
    if len(texts) == 2 and gap is None and num_candidates != 1:
        written = _at_lengths(engine, tokenizer, texts, max_tokens, indent, num_candidates, common)
    if written is None:
        written = _floating(engine, tokenizer, texts, max_tokens, kept, num_candidates or _FLOATING, common)
    return GapsReply(
        fixed=texts,
        texts=written.candidates[0].texts,
        candidates=written.candidates,
        num_prompt_tokens=written.num_prompt_tokens,
        is_cut=written.is_cut,
        wall_s=time.perf_counter() - started,
    )


def _at_lengths(
    engine: "Engine", tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int | None, indent: int,
    num_candidates: int | None, common: SamplingParams,
) -> _Written | None:  # fmt: skip
    """One gap, a canvas for each of several lengths.

    None where the gap may be longer than a canvas has room for, and where no candidate is text, and indented.
    """
    frame = frame_of(engine, tokenizer, texts[0], texts[1], common)
    borders = frame.left.num_tokens + frame.right.num_tokens
    most = (max_tokens or max(1, frame.canvas_length // 2)) - borders
    if not 1 <= most <= frame.room:
        return None
    lengths = spread_lengths(most, num_candidates or _LENGTHS)
    candidates = [
        GapsCandidate(texts=(one.text,), score=one.score, num_denoise_steps=one.num_denoise_steps)
        for one in write_lengths(engine, tokenizer, frame, lengths, common)
        if not indent or _is_indented(one.text, indent)
    ]
    return _Written(candidates, len(frame.prompt), frame.is_cut) if candidates else None


def _floating(
    engine: "Engine", tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int | None, gap: TextLanguage | None,
    num_candidates: int, common: SamplingParams,
) -> _Written:  # fmt: skip
    """Gaps that take what they need; what stands behind them floats."""
    start = opening(tokenizer)
    history, before = behind(tokenizer, texts[0], engine.max_context)
    if not start and not history:
        raise RequestError("the first text is empty, and this model's tokenizer has no begin token to start from")
    canvas = common.canvas_length or engine.model.config.canvas_length
    window = Window(
        opening=start,
        history=history,
        before=before,
        fixed=("", *texts[1:]),
        start=None,
        gap_tokens=max_tokens or (len(texts) - 1) * max(1, canvas // 2),
    )
    found = rewrite(engine, tokenizer, window, common, gap=gap, num_candidates=num_candidates)
    candidates = [
        GapsCandidate(texts=one.gaps, score=one.score, num_denoise_steps=one.num_denoise_steps) for one in found
    ]
    num_read = found[0].num_prompt_tokens
    return _Written(candidates, num_read, num_read < len(start) + len(history))


def _is_indented(text: str, num_spaces: int) -> bool:
    """Whether a text is one of `_indented`'s."""
    _, *lines = text.split("\n")
    last = lines.pop() if lines else ""
    return all(line.startswith(" " * num_spaces) or not line.strip(" \t") for line in lines) and (
        not last or last.startswith(" " * num_spaces)
    )


def _indented(num_spaces: int, gap: TextLanguage | None) -> Regex:
    """Texts whose lines but the first begin with so many spaces, or are blank. Raises RequestError.

    A last line of fewer spaces would move what follows the gap; nothing behind its line break moves nothing.
    """
    if type(num_spaces) is not int or num_spaces < 0:
        raise RequestError(f"indent must be an integer of at least 0, got {num_spaces!r}")
    if gap is not None:
        raise RequestError("indent and gap both say what a gap may hold; leave one of them out")
    blank, line = r"(\n[ \t]*)*", rf"\n {{{num_spaces}}}[^\n]*"
    return Regex(rf"[^\n]*({blank}{line})*({blank}\n)?")
