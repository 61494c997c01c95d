"""From the running totals of a sweep to a Reading. N rows, M chosen ids, E soft width."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from presswork.ops.vocab_head.candidates import Candidates, list_top, read_filtered
from presswork.ops.vocab_head.reading import Query, Reading, blank_unreadable


@dataclass(slots=True, kw_only=True)
class Totals:
    """What a sweep over the whole vocabulary leaves, before top_k and top_p.

    top: largest z, minus infinity where no token is left.
    mass, moment: sums of e and (z - top) e, with e = exp(z - top).
    chosen_z: z of the ids asked for.
    soft: sum of e times the embedding rows, where wanted.
    shift: what class weights were lessened by, and z with them.
    """

    top: Float[Tensor, "N"]
    mass: Float[Tensor, "N"]
    moment: Float[Tensor, "N"]
    best: Int[Tensor, "N"]
    sample: Int[Tensor, "N"]
    finite: Bool[Tensor, "N"]
    chosen_z: Float[Tensor, "N M"] | None
    candidates: Candidates
    soft: Float[Tensor, "N E"] | None
    shift: Float[Tensor, "N"] | None = None


def to_reading(query: Query, totals: Totals, read_rest: Callable[[Query], Reading]) -> Reading:
    """Finish the readings, then replace those of rows that top_k or top_p filter.

    read_rest: reads filtered rows that the candidates cannot decide.
    """
    log_mass = totals.mass.log()
    log_normalizer = totals.top + log_mass
    listed, chosen, soft = (None, None), None, None
    if query.top_logprobs:
        listed = list_top(totals.candidates, log_normalizer, query.top_logprobs)
    if totals.chosen_z is not None:
        chosen = (totals.chosen_z - log_normalizer[:, None]).float()
    if totals.soft is not None:
        soft = (totals.soft / totals.mass.float()[:, None]).to(query.embedding.dtype)
    reading = Reading(
        argmax=totals.best,
        sample=totals.sample,
        log_normalizer=(log_normalizer if totals.shift is None else log_normalizer + totals.shift).float(),
        entropy=(log_mass - totals.moment / totals.mass).float(),
        max_logprob=-log_mass.float(),
        finite=totals.finite & (totals.mass > 0),
        chosen_logprobs=chosen,
        topk_ids=listed[0],
        topk_logprobs=listed[1],
        soft_embedding=soft,
    )
    if query.top_k is not None or query.top_p is not None:
        read_filtered(query, reading, totals.candidates, read_rest)
    return blank_unreadable(reading)
