"""Choosing among several replies to one prompt by the model's own causal likelihood."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from presswork.engine.events import Reply
from presswork.errors import RequestError

if TYPE_CHECKING:
    from presswork.engine.engine import Engine

MAX_BEST_OF = 64
_WEYL = 0x9E3779B97F4A7C15  # odd, so that a seed's multiples come back to it only after 2^64 tries


def check_best_of(best_of: int) -> None:
    """Raises RequestError for what is no number of tries."""
    if not isinstance(best_of, int) or isinstance(best_of, bool) or not 1 <= best_of <= MAX_BEST_OF:
        raise RequestError(f"best_of must be an integer in 1..{MAX_BEST_OF}, got {best_of!r}")


def seed_of(seed: int, number: int) -> int:
    """The seed of a request's try 0, 1, ...; the first is the request's own."""
    return (seed + number * _WEYL) % 2**64


def likeliest_of_each(
    engine: "Engine", prompts: Sequence[Sequence[int]], replies: Sequence[Reply], adapters: Sequence[str | None]
) -> list[Reply]:
    """The likeliest reply to each prompt; there are as many to each, one prompt's behind the other's."""
    num = len(replies) // max(1, len(prompts))
    if num <= 1:
        return list(replies)
    groups = [replies[i : i + num] for i in range(0, len(replies), num)]
    return [likeliest(engine, *each) for each in zip(prompts, groups, adapters, strict=True)]


def likeliest(engine: "Engine", prompt_ids: Sequence[int], replies: Sequence[Reply], adapter: str | None) -> Reply:
    """The reply with the highest mean causal log-probability of its tokens; of equal ones the first.

    A mean, because a sum would prefer short replies. Its stats count the work of all.
    """

    def score(reply: Reply) -> float:
        if not prompt_ids or not reply.token_ids:
            return float("-inf")
        return sum(engine.score(prompt_ids, reply.token_ids, adapter=adapter)) / len(reply.token_ids)

    best = max(replies, key=score)
    stats = replace(
        best.stats,
        num_canvases=sum(reply.stats.num_canvases for reply in replies),
        num_denoise_steps=sum(reply.stats.num_denoise_steps for reply in replies),
        num_passes=sum(reply.stats.num_passes for reply in replies),
        wall_s=max(reply.stats.wall_s for reply in replies),
    )
    return replace(best, stats=stats)
