"""The vocabulary head over the whole [N, V] matrix, in float64 after the logits: the definition. N rows, V vocab."""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from presswork.ops.vocab_head.classes import ClassReading, ClassWeights, TokenClasses
from presswork.ops.vocab_head.reading import LogitEdits, Query, Reading, blank_unreadable


def apply_edits(logits: Float[Tensor, "N V"], edits: LogitEdits) -> Float[Tensor, "N V"]:
    """Repetition penalty, then biases, then bans, on the rows of each group; pure."""
    logits = logits.clone()
    for number, group in enumerate(edits.groups):
        rows = (edits.row_group == number).nonzero()
        seen, banned = group.seen_ids.to(logits.device), group.banned_ids.to(logits.device)
        found = logits[rows, seen]
        factor = torch.tensor(group.repetition_penalty, dtype=found.dtype, device=found.device)
        logits[rows, seen] = torch.where(found > 0, found / factor, found * factor)
        logits[rows, group.bias_ids.to(logits.device)] += group.bias.to(logits)
        logits[rows, banned] = -torch.inf
    return logits


def keep_top_k(z: Float[Tensor, "N V"], top_k: Int[Tensor, "N"]) -> Float[Tensor, "N V"]:
    """All but the k largest of each row to minus infinity, ties kept by lowest id; k = 0 keeps the row; pure."""
    rank = z.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    limit = torch.where(top_k > 0, top_k, z.shape[1])
    return z.masked_fill(rank >= limit[:, None], -torch.inf)


def keep_top_p(z: Float[Tensor, "N V"], top_p: Float[Tensor, "N"]) -> Float[Tensor, "N V"]:
    """Keep the fewest most likely tokens whose mass reaches p, at least one; p >= 1 keeps the row; pure."""
    ranked, order = z.double().softmax(dim=1).sort(dim=1, descending=True, stable=True)
    mass_before = ranked.cumsum(dim=1) - ranked
    keep = (mass_before < top_p.double()[:, None]) | (top_p >= 1)[:, None]
    keep[:, 0] = True
    return z.masked_fill(~torch.zeros_like(keep).scatter(1, order, keep), -torch.inf)


def draw(p: Float[Tensor, "N V"], uniform: Float[Tensor, "N"]) -> Int[Tensor, "N"]:
    """First id whose cumulative mass exceeds uniform times the total, never one of mass zero."""
    cdf = p.double().cumsum(dim=1)
    found = torch.searchsorted(cdf, uniform.double()[:, None] * cdf[:, -1:], right=True)[:, 0]
    last = p.shape[1] - 1 - (p > 0).flip(1).int().argmax(dim=1)
    return torch.minimum(found, last)


def _token_weights(weights: ClassWeights) -> Float64[Tensor, "N V"]:
    """Weight of every token's class, minus infinity for tokens of none."""
    by_slot = torch.nn.functional.pad(weights.log_weight.double(), (0, 1), value=-torch.inf)
    return by_slot[:, weights.classes.slots.to(by_slot.device).long()]


def _sample(z: Float[Tensor, "N V"], query: Query) -> Int[Tensor, "N"]:
    """One id a row, of the sample class where it has a token left."""
    argmax = z.argmax(dim=1)
    if query.class_weights is not None:
        wanted = query.class_weights.sample_class[:, None]
        outside = (wanted >= 0) & (query.class_weights.classes.class_of.to(z.device) != wanted)
        z = z.masked_fill(outside, -torch.inf)
    sample = z.argmax(dim=1)
    if query.uniform is not None:
        drawn = draw(z.double().softmax(dim=1), query.uniform.nan_to_num(0.0))
        sample = torch.where(query.uniform.isnan(), sample, drawn)
    return torch.where((z > -torch.inf).any(dim=1), sample, argmax)


def filtered_logits(query: Query) -> tuple[Float[Tensor, "N V"], Float[Tensor, "N V"]]:
    """(raw products, z) of every row."""
    raw = (query.hidden.to(query.embedding.dtype) @ query.embedding.T).float()
    x = torch.where(raw.isfinite(), raw, 0.0)
    if query.softcap is not None:
        x = query.softcap * torch.tanh(x / query.softcap)
    if query.edits is not None:
        x = apply_edits(x, query.edits)
    z = x / query.temperature.float()[:, None]
    if query.class_weights is not None:
        z = z.double() + _token_weights(query.class_weights).to(z.device)
    if query.top_k is not None:
        z = keep_top_k(z, query.top_k)
    if query.top_p is not None:
        z = keep_top_p(z, query.top_p)
    return raw, z


def read_reference(query: Query) -> Reading:
    """Every reading straight from its definition; memory grows with N times V."""
    raw, z = filtered_logits(query)
    log_normalizer = z.double().logsumexp(dim=1)
    logprob = z.double() - log_normalizer[:, None]
    p = logprob.exp()
    argmax = z.argmax(dim=1)
    topk_ids = topk_logprobs = None
    if query.top_logprobs:
        order = z.argsort(dim=1, descending=True, stable=True)[:, : query.top_logprobs]
        topk_logprobs = logprob.gather(1, order).float()
        topk_ids = torch.where(topk_logprobs > -torch.inf, order, -1)
        short = (0, query.top_logprobs - order.shape[1])
        topk_ids = torch.nn.functional.pad(topk_ids, short, value=-1)
        topk_logprobs = torch.nn.functional.pad(topk_logprobs, short, value=-torch.inf)
    living = raw if query.class_weights is None else raw[:, query.class_weights.classes.class_of >= 0]
    soft = None
    if query.soft_rows is not None:
        soft = (p.to(query.embedding.dtype) @ query.soft_source) * query.soft_rows[:, None]
    return blank_unreadable(
        Reading(
            argmax=argmax,
            sample=_sample(z, query),
            log_normalizer=log_normalizer.float(),
            entropy=-torch.where(p > 0, p * logprob, 0.0).sum(dim=1).float(),
            max_logprob=logprob.gather(1, argmax[:, None])[:, 0].float(),
            finite=living.isfinite().all(dim=1) & log_normalizer.isfinite(),
            chosen_logprobs=None if query.token_ids is None else logprob.gather(1, query.token_ids).float(),
            topk_ids=topk_ids,
            topk_logprobs=topk_logprobs,
            soft_embedding=soft,
        )
    )


def read_classes_reference(query: Query, classes: TokenClasses) -> ClassReading:
    """Every class straight from its definition; memory grows with N times V."""
    raw, z = filtered_logits(query)
    class_of = classes.class_of.to(z.device)
    shape = (len(z), classes.num_classes)
    log_mass, mean = z.new_full(shape, -torch.inf).double(), z.new_zeros(shape).double()
    best, top = z.new_full(shape, -1).long(), z.new_full(shape, -torch.inf)
    for c in range(classes.num_classes):
        ids = (class_of == c).nonzero()[:, 0]
        if len(ids) == 0:
            continue
        own = z[:, ids].double()
        top[:, c] = z[:, ids].amax(dim=1)
        log_mass[:, c] = own.logsumexp(dim=1)
        p = (own - log_mass[:, c : c + 1]).exp()
        left = top[:, c] > -torch.inf
        mean[:, c] = torch.where(left, torch.where(p > 0, p * own, 0.0).sum(dim=1), 0.0)
        best[:, c] = torch.where(left, ids[z[:, ids].argmax(dim=1)], -1)
    finite = raw[:, class_of >= 0].isfinite().all(dim=1)
    for numbers in (log_mass, mean, top):
        numbers[~finite] = torch.nan
    best[~finite] = 0
    return ClassReading(log_mass=log_mass, mean=mean, best=best, top=top, finite=finite)
