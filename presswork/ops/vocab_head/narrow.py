"""Readings under class weights that leave few tokens: the question put to those tokens alone. N rows, S tokens."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from presswork.ops.vocab_head.reading import EditGroup, LogitEdits, Query, Reading


def read_narrow(query: Query, read: Callable[[Query], Reading]) -> Reading:
    """What `read` says of the query; where few tokens are in classes, of their embedding rows, gathered.

    Tokens of no class have no mass, so the distribution is the same.
    """
    weights = query.class_weights
    if weights is None or weights.classes.narrow is None:
        return read(query)
    ids, classes = weights.classes.narrow
    ids = ids.to(query.hidden.device)
    tied = query.soft_source is query.embedding
    embedding = query.embedding.detach()[ids]
    asked = replace(
        query,
        embedding=embedding,
        soft_source=embedding if tied else query.soft_source.detach()[ids],
        edits=None if query.edits is None else _narrow_edits(query.edits, ids),
        class_weights=replace(weights, classes=classes),
    )
    known = None
    if query.token_ids is not None:
        places, known = _find(query.token_ids, ids)
        asked = replace(asked, token_ids=places)
    return _widened(read(asked), ids, known)


def _find(tokens: Int[Tensor, "..."], ids: Int[Tensor, "S"]) -> tuple[Int[Tensor, "..."], Bool[Tensor, "..."]]:
    """(place of each token among the ids, or 0; whether it is there)."""
    places = torch.searchsorted(ids, tokens.contiguous()).clamp(max=len(ids) - 1)
    known = ids[places] == tokens
    return places * known, known


def _narrow_edits(edits: LogitEdits, ids: Int[Tensor, "S"]) -> LogitEdits:
    def narrow(tokens: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        places, known = _find(tokens.to(ids.device), ids)
        return places[known]

    groups = []
    for group in edits.groups:
        places, known = _find(group.bias_ids.to(ids.device), ids)
        groups.append(
            EditGroup(
                seen_ids=narrow(group.seen_ids),
                repetition_penalty=group.repetition_penalty,
                bias_ids=places[known],
                bias=group.bias.to(ids.device)[known],
                banned_ids=narrow(group.banned_ids),
            )
        )
    return LogitEdits(row_group=edits.row_group, groups=tuple(groups))


def _widened(reading: Reading, ids: Int[Tensor, "S"], known: Bool[Tensor, "N M"] | None) -> Reading:
    """The reading in terms of the whole vocabulary."""
    topk_ids, chosen = reading.topk_ids, reading.chosen_logprobs
    if topk_ids is not None:
        topk_ids = torch.where(topk_ids < 0, -1, ids[topk_ids.clamp(min=0)]) * reading.finite[:, None]
    if chosen is not None and known is not None:
        chosen = torch.where(known | ~reading.finite[:, None], chosen, -torch.inf)
    return replace(
        reading,
        argmax=ids[reading.argmax] * reading.finite,
        sample=ids[reading.sample] * reading.finite,
        topk_ids=topk_ids,
        chosen_logprobs=chosen,
    )
