"""A gap between two texts, as the protocols that ask for one want it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from presswork.engine.gaps import GapsReply
from presswork.engine.ranking import seed_of
from presswork.errors import RequestError
from presswork.grammar.languages import TextLanguage
from presswork.server.registry import Lease
from presswork.server.wire import bounded

_WAYS = 8  # to fill a gap, where a client wants several texts
_END_OF_TEXT = "<|endoftext|>"  # what some clients send for an empty suffix


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What is to stand between two texts.

    Args:
        stop: strings that end it; what would follow them is left out.
        indent: as Engine.fill_gaps.
        params: of Engine.fill_gaps.
    """

    prefix: str
    suffix: str
    max_tokens: int
    stop: Sequence[str] = ()
    indent: int = 0
    language: TextLanguage | None = None
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Filled:
    """Texts for a gap, best first; usage counts the first as many as were asked for.

    Args: is_cut: the prefix did not fit, and its beginning was left out.
    """

    texts: list[str]
    reasons: list[str]
    prompt_tokens: int
    completion_tokens: int
    is_cut: bool

    def usage(self) -> dict[str, int]:
        """As OpenAI counts."""
        both = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "total_tokens": both,
        }  # fmt: skip


def suffix_of(given: str | None) -> str:
    """A suffix, empty where a client means so."""
    return "" if given in (None, _END_OF_TEXT) else given or ""


def stops_of(given: str | Sequence[str] | None) -> list[str]:
    """Stop strings as a list. Raises RequestError for more than a request may have."""
    bounded({"stop": given})
    return [one for one in ([given] if isinstance(given, str) else given or []) if one]


def until_stop(text: str, stops: Sequence[str]) -> str:
    """What stands before the first of these strings."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text


async def fill_gap(lease: Lease, gap: Gap, num: int = 1) -> Filled:
    """So many texts for a gap, the causal mode's likeliest first. Raises RequestError."""
    if not gap.prefix and not gap.suffix:
        raise RequestError("there is nothing around the gap; give text before or behind it")
    return await lease.run(_fill, lease, gap, num)


def _fill(lease: Lease, gap: Gap, num: int) -> Filled:
    params = dict(gap.params)
    # Clients send one bound for all gaps, and most are short: a canvas is room enough, and can be tried at lengths.
    room = min(gap.max_tokens, max(1, lease.model.model.config.canvas_length // 2))

    def ask(**own: Any) -> GapsReply:
        return lease.model.fill_gaps(
            [gap.prefix, gap.suffix], max_tokens=room, gap=gap.language, indent=gap.indent, adapter=lease.adapter,
            **{**params, **own},
        )  # fmt: skip

    reply = ask(**({"num_candidates": max(num, params.get("num_candidates", _WAYS))} if num > 1 else {}))
    found = list(reply.candidates)
    # Where too few lengths gave texts, the rest are of any length.
    for number in range(num - len(found)):
        found += ask(num_candidates=1, seed=seed_of(params.get("seed", 0), 1 + number)).candidates
    tokenizer = lease.model.tokenizer
    assert tokenizer is not None
    texts, reasons, num_tokens = [], [], 0
    for candidate in found[:num]:
        whole = candidate.texts[0]
        text = until_stop(whole, gap.stop)
        size = len(tokenizer.encode_plain(whole))
        num_tokens += size
        texts.append(text)
        reasons.append("stop" if text != whole or size < gap.max_tokens else "length")
    prompt = reply.num_prompt_tokens + len(tokenizer.encode_plain(gap.suffix))
    return Filled(texts, reasons, prompt, num_tokens, is_cut=reply.is_cut)
