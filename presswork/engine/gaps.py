"""Filling the gaps of a text at any length: several at once, longer than a canvas, or kept to a language."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from presswork.engine.params import refuse_decided
from presswork.engine.rewrite import Window, behind, check_candidates, opening, rewrite
from presswork.errors import RequestError
from presswork.grammar.languages import Regex, TextLanguage
from presswork.text.tokenizer import with_token_texts

if TYPE_CHECKING:
    from presswork.engine.engine import Engine

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


def fill_gaps(
    engine: "Engine",
    fixed: Sequence[str],
    *,
    max_tokens: int | None = None,
    gap: TextLanguage | None = None,
    indent: int = 0,
    num_candidates: int = 4,
    **params: Any,
) -> GapsReply:
    """Fill the gaps between texts.

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
    check_candidates(num_candidates)
    if indent:
        gap = _indented(indent, gap)
    tokenizer = with_token_texts(engine.tokenizer, "gaps need", engine.name)
    common = engine.defaults.changed(**params, mode="diffusion")
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
    return GapsReply(
        fixed=texts, texts=candidates[0].texts, candidates=candidates, num_prompt_tokens=num_read,
        is_cut=num_read < len(start) + len(history),
        wall_s=time.perf_counter() - started,
    )  # fmt: skip


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
