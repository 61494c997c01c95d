"""What goes into the vocabulary head and what comes out. N rows, D model, V vocab, M chosen ids, K listed tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from presswork.ops.vocab_head.classes import ClassWeights

MAX_LISTED = 256  # most tokens a Reading lists for a row (top_logprobs)


def _no_ids() -> Int[Tensor, "0"]:
    return torch.empty(0, dtype=torch.int64)


def _no_values() -> Float[Tensor, "0"]:
    return torch.empty(0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EditGroup:
    """Changes shared by some rows of a call, made to the softcapped logits before the temperature.

    seen_ids: ids under the repetition penalty; repeats count once.
    repetition_penalty: above 0; a positive logit is divided by it, a negative one multiplied. 1 changes nothing.
    bias_ids, bias: ids, each at most once, and what is added to their logits after the penalty.
    banned_ids: ids whose logit becomes minus infinity, whatever else is asked for them.
    """

    seen_ids: Int[Tensor, "S"] = field(default_factory=_no_ids)
    repetition_penalty: float = 1.0
    bias_ids: Int[Tensor, "A"] = field(default_factory=_no_ids)
    bias: Float[Tensor, "A"] = field(default_factory=_no_values)
    banned_ids: Int[Tensor, "B"] = field(default_factory=_no_ids)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogitEdits:
    """Per-row logit changes: row i gets groups[row_group[i]], or none where row_group[i] is -1."""

    row_group: Int[Tensor, "N"]
    groups: tuple[EditGroup, ...]

    def select(self, rows: slice | Int[Tensor, "R"]) -> "LogitEdits":
        """The changes of some of the rows."""
        return replace(self, row_group=self.row_group[rows])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What the rest of the engine needs to know of each row's token distribution softmax(z).

    z are the softcapped, edited logits over the row's temperature, minus infinity where top_k or top_p removed a token;
    under class weights, plus the weight of the token's class, minus infinity where it has none.

    argmax: most likely id; ties go to the lowest.
    sample: one draw by inverse CDF in id order; the most likely token in rows without a uniform number. Under class
        weights drawn from, or the most likely of, the row's sample class; argmax where that has no token left.
    log_normalizer: logsumexp of z.
    entropy: in nats.
    max_logprob: log-probability of argmax.
    chosen_logprobs: log-probabilities of the ids asked for.
    topk_ids, topk_logprobs: the most likely tokens, best first, ties by id; id -1 and minus infinity past the last one.
    soft_embedding: softmax(z) @ embedding without any scale; zeros in rows that did not ask.
    finite: False where a product hidden @ embedding.T is NaN or infinite (under class weights, of a token in some
        class), or where no token is left. Such a row has ids 0, numbers NaN and a zero soft embedding.
    """

    argmax: Int[Tensor, "N"]
    sample: Int[Tensor, "N"]
    log_normalizer: Float[Tensor, "N"]
    entropy: Float[Tensor, "N"]
    max_logprob: Float[Tensor, "N"]
    finite: Bool[Tensor, "N"]
    chosen_logprobs: Float[Tensor, "N M"] | None = None
    topk_ids: Int[Tensor, "N K"] | None = None
    topk_logprobs: Float[Tensor, "N K"] | None = None
    soft_embedding: Float[Tensor, "N D"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Query:
    """The checked arguments of one read_vocab call, defaults filled in; what every implementation takes."""

    hidden: Float[Tensor, "N D"]
    embedding: Float[Tensor, "V D"]
    soft_source: Float[Tensor, "V E"]
    temperature: Float[Tensor, "N"]
    softcap: float | None = None
    uniform: Float[Tensor, "N"] | None = None
    token_ids: Int[Tensor, "N M"] | None = None
    top_logprobs: int = 0
    soft_rows: Bool[Tensor, "N"] | None = None
    edits: LogitEdits | None = None
    top_k: Int[Tensor, "N"] | None = None
    top_p: Float[Tensor, "N"] | None = None
    class_weights: ClassWeights | None = None

    def select(self, rows: slice | Int[Tensor, "R"]) -> "Query":
        """The same question for some of the rows."""
        per_row = ("hidden", "temperature", "uniform", "token_ids", "soft_rows", "top_k", "top_p")
        taken = {name: value[rows] for name in per_row if (value := getattr(self, name)) is not None}
        if self.edits is not None:
            taken["edits"] = self.edits.select(rows)
        if self.class_weights is not None:
            taken["class_weights"] = self.class_weights.select(rows)
        return replace(self, **taken)


def concatenate(parts: Sequence[Reading]) -> Reading:
    """Readings of consecutive rows as one."""
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {}
    for f in fields(Reading):
        values = [getattr(part, f.name) for part in parts]
        joined[f.name] = None if values[0] is None else torch.cat(values)
    return Reading(**joined)


def put_rows(reading: Reading, rows: Int[Tensor, "R"], part: Reading) -> None:
    """Overwrite some rows. Mutates the tensors of `reading`."""
    for f in fields(Reading):
        target = getattr(reading, f.name)
        if target is not None:
            target[rows] = getattr(part, f.name)


def blank_unreadable(reading: Reading) -> Reading:
    """Give rows that are not finite the fixed values Reading promises. Mutates the tensors of `reading`."""
    if bool(reading.finite.all()):
        return reading
    bad = ~reading.finite
    for f in fields(Reading):
        values = getattr(reading, f.name)
        if values is not None and f.name != "finite":
            keep_zero = f.name == "soft_embedding" or not values.is_floating_point()
            values[bad] = 0 if keep_zero else float("nan")
    return reading
