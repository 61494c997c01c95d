"""Readings from the few most likely tokens of a row: top_logprobs, top_k, top_p. R rows, C candidates, V vocab.

A filtered row whose surviving tokens are all among the candidates is read from them alone. Any other (a top_k above
MAX_CANDIDATES, a nucleus wider than it) is left to the caller's `read_rest`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from presswork.ops.vocab_head.reading import Query, Reading, concatenate, put_rows
from presswork.ops.vocab_head.reference import draw, read_reference

MAX_CANDIDATES = 256
FALLBACK_ROWS = 4  # rows the reference reads at once; about 16 MB each at V = 262,144
GATHER_ROWS = 16  # rows whose candidate embeddings are gathered at once; 8 MiB at D = 1024


class Candidates(NamedTuple):
    """Most likely tokens of each row, best first, ties by id; z minus infinity and id -1 where a row has fewer.

    top and mass describe all tokens of the row: the largest z, and the sum of exp(z - top).
    """

    z: Float[Tensor, "R C"]
    ids: Int[Tensor, "R C"]
    top: Float[Tensor, "R"]
    mass: Float[Tensor, "R"]


def _uses_top_k(query: Query) -> Bool[Tensor, "N"]:
    rows, vocab = query.hidden.shape[0], query.embedding.shape[0]
    if query.top_k is None:
        return torch.zeros(rows, dtype=torch.bool, device=query.hidden.device)
    return (query.top_k > 0) & (query.top_k < vocab)


def _uses_top_p(query: Query) -> Bool[Tensor, "N"]:
    if query.top_p is None:
        return torch.zeros(query.hidden.shape[0], dtype=torch.bool, device=query.hidden.device)
    return query.top_p < 1


def filtered_rows(query: Query) -> Bool[Tensor, "N"]:
    """Rows in which top_k or top_p may remove a token."""
    return _uses_top_k(query) | _uses_top_p(query)


def candidate_limits(query: Query) -> Int[Tensor, "N"]:
    """How many candidates each row should keep during the sweep."""
    count = min(query.top_logprobs, query.embedding.shape[0])
    limits = torch.full_like(query.temperature, count, dtype=torch.int64)
    uses_top_k = _uses_top_k(query)
    if query.top_k is not None:
        wanted = torch.where(uses_top_k & (query.top_k <= MAX_CANDIDATES), query.top_k, 0)
        limits = torch.maximum(limits, wanted)
    if query.top_p is not None:
        limits[_uses_top_p(query) & ~uses_top_k] = min(MAX_CANDIDATES, query.embedding.shape[0])
    return limits


def list_top(
    candidates: Candidates, log_normalizer: Float[Tensor, "R"], count: int
) -> tuple[Int[Tensor, "R K"], Float[Tensor, "R K"]]:
    """(ids, log-probabilities) of the first `count` candidates, filled up with -1 and minus infinity."""
    short = (0, max(0, count - candidates.z.shape[1]))
    ids = torch.nn.functional.pad(candidates.ids[:, :count], short, value=-1)
    logprobs = torch.nn.functional.pad(candidates.z[:, :count] - log_normalizer[:, None], short, value=-torch.inf)
    return ids, logprobs.float()


def read_filtered(
    query: Query, reading: Reading, candidates: Candidates, read_rest: Callable[[Query], Reading]
) -> None:
    """Replace the readings of rows that top_k or top_p filter. Mutates the tensors of `reading`."""
    filtered = filtered_rows(query)
    rows = (filtered & reading.finite).nonzero()[:, 0]
    few = Candidates(*(column[rows] for column in candidates))
    narrow = query.select(rows)
    keep, covered = _survivors(narrow, few)
    inside, outside = covered.nonzero()[:, 0], (~covered).nonzero()[:, 0]
    if len(inside):
        kept = Candidates(*(column[inside] for column in few))
        kept = kept._replace(
            z=kept.z.masked_fill(~keep[inside], -torch.inf), ids=kept.ids.masked_fill(~keep[inside], -1)
        )
        put_rows(reading, rows[inside], _read_survivors(narrow.select(inside), kept))
    if len(outside):
        put_rows(reading, rows[outside], read_rest(narrow.select(outside)))


def read_in_parts(query: Query) -> Reading:
    """The reference, FALLBACK_ROWS rows at a time."""
    starts = range(0, query.hidden.shape[0], FALLBACK_ROWS)
    return concatenate([read_reference(query.select(slice(start, start + FALLBACK_ROWS))) for start in starts])


def _survivors(query: Query, candidates: Candidates) -> tuple[Bool[Tensor, "R C"], Bool[Tensor, "R"]]:
    """(which candidates pass top_k and top_p, whether no other token can)."""
    uses_top_k = _uses_top_k(query)
    weights = (candidates.z.double() - candidates.top.double()[:, None]).exp()
    keep = candidates.z > -torch.inf
    rank = torch.arange(keep.shape[1], device=keep.device)
    asked = candidate_limits(query)
    complete = (keep.sum(dim=1) < asked) | (asked >= query.embedding.shape[0])
    mass = candidates.mass
    if query.top_k is not None:
        keep = keep & ((rank < query.top_k[:, None]) | ~uses_top_k[:, None])
        mass = torch.where(uses_top_k, (weights * keep).sum(dim=1), mass)
        complete = complete | (uses_top_k & (query.top_k <= MAX_CANDIDATES))
    if query.top_p is None:
        return keep, complete
    weights = weights * keep
    enough = torch.where(query.top_p < 1, query.top_p.double() * mass, torch.inf)
    mass_before = weights.cumsum(dim=1) - weights
    reached = ~uses_top_k & (weights.sum(dim=1) >= enough)
    return keep & ((mass_before < enough[:, None]) | (rank == 0)), complete | reached


def _read_survivors(query: Query, kept: Candidates) -> Reading:
    """Readings of rows whose surviving tokens are exactly those in `kept`, best first."""
    log_normalizer = kept.z.double().logsumexp(dim=1)
    logprob = kept.z.double() - log_normalizer[:, None]
    p = logprob.exp()
    argmax = kept.ids[:, 0]
    sample = argmax
    if query.uniform is not None:
        by_id = kept.ids.argsort(dim=1)
        drawn = draw(p.gather(1, by_id), query.uniform.nan_to_num(0.0))
        drawn = kept.ids.gather(1, by_id).gather(1, drawn[:, None])[:, 0]
        sample = torch.where(query.uniform.isnan(), argmax, drawn)
    listed = list_top(kept, log_normalizer, query.top_logprobs) if query.top_logprobs else (None, None)
    return Reading(
        argmax=argmax,
        sample=sample,
        log_normalizer=log_normalizer.float(),
        entropy=-torch.where(p > 0, p * logprob, 0.0).sum(dim=1).float(),
        max_logprob=logprob[:, 0].float(),
        finite=torch.ones_like(argmax, dtype=torch.bool),
        chosen_logprobs=None if query.token_ids is None else _chosen(query.token_ids, kept, logprob),
        topk_ids=listed[0],
        topk_logprobs=listed[1],
        soft_embedding=None if query.soft_rows is None else _soft_embedding(query, query.soft_rows, kept, p),
    )


def _chosen(token_ids: Int[Tensor, "R M"], kept: Candidates, logprob: Float[Tensor, "R C"]) -> Float[Tensor, "R M"]:
    columns = []
    for wanted in token_ids.unbind(dim=1):
        columns.append(torch.where(kept.ids == wanted[:, None], logprob, -torch.inf).amax(dim=1))
    return torch.stack(columns, dim=1).float() if columns else logprob[:, :0].float()


def _soft_embedding(
    query: Query, wanted: Bool[Tensor, "R"], kept: Candidates, p: Float[Tensor, "R C"]
) -> Float[Tensor, "R E"]:
    source = query.soft_source
    soft = torch.zeros(len(p), source.shape[1], dtype=source.dtype, device=source.device)
    for part in wanted.nonzero()[:, 0].split(GATHER_ROWS):
        ids = kept.ids[part].clamp(min=0)
        soft[part] = torch.bmm(p[part].to(source.dtype)[:, None], source[ids])[:, 0]
    return soft
