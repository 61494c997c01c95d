"""What the vocabulary head says of the rows of a pass: one sweep for all canvases that are free, two for each language.

N rows, D model width, L canvas, R open rows.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from presswork.diffusion.sampler import StepReading
from presswork.engine.constrained import DecidedCanvas, decide, next_weights
from presswork.engine.events import TokenLogprob
from presswork.engine.request import Request
from presswork.errors import GenerationError
from presswork.models.transformer import Transformer
from presswork.ops.vocab_head import (
    ClassReading,
    ClassWeights,
    EditGroup,
    LogitEdits,
    Reading,
    TokenClasses,
    read_classes,
    read_vocab,
)


class VocabReader:
    """Reads the token distributions of hidden rows as their requests want them."""

    def __init__(self, model: Transformer):
        self._model, self._config = model, model.config

    def read_canvases(
        self, requests: Sequence[Request], hidden: Sequence[Float[Tensor, "L D"]]
    ) -> list[StepReading | None]:
        """Each canvas's reading under its step's temperature; None where the model produced NaN or infinity.

        A request whose constraint has no text left fails, and has None too. Mutates such requests.
        """
        readings: list[StepReading | None] = [None] * len(requests)
        for members in _by_constraint(requests):
            some, rows = [requests[i] for i in members], [hidden[i] for i in members]
            read = self._free if some[0].constraint is None else self._constrained
            for i, reading in zip(members, read(some, rows), strict=True):
                readings[i] = reading
        return readings

    def read_next(self, requests: Sequence[Request], hidden: Sequence[Float[Tensor, "1 D"]]) -> list[Reading]:
        """Each ar request's next-token reading."""
        readings: list[Reading | None] = [None] * len(requests)
        for members in _by_constraint(requests):
            some = [requests[i] for i in members]
            for i, reading in zip(members, self._next(some, [hidden[i] for i in members]), strict=True):
                readings[i] = reading
        return [reading for reading in readings if reading is not None]

    def read_logprobs(self, hidden: Float[Tensor, "N D"], ids: Int[Tensor, "N"], num_top: int = 0) -> Reading:
        """Log-probabilities of given tokens under the model itself: temperature 1, nothing edited or filtered."""
        return read_vocab(
            hidden,
            self._model.head,
            softcap=self._config.final_logit_softcapping,
            temperature=torch.ones(hidden.shape[0], device=hidden.device),
            token_ids=ids[:, None],
            top_logprobs=num_top,
        )

    def read_choices(self, hidden: Float[Tensor, "N D"], ids: Int[Tensor, "N M"]) -> Float[Tensor, "N M"]:
        """Log-probabilities of several tokens a row under the model itself; NaN in rows with NaN or infinity."""
        reading = read_vocab(
            hidden,
            self._model.head,
            softcap=self._config.final_logit_softcapping,
            temperature=torch.ones(hidden.shape[0], device=hidden.device),
            token_ids=ids.to(hidden.device),
        )
        assert reading.chosen_logprobs is not None
        return reading.chosen_logprobs

    def _free(self, requests: Sequence[Request], hidden: Sequence[Float[Tensor, "L D"]]) -> list[StepReading | None]:
        counts = [rows.shape[0] for rows in hidden]
        uniform, top_k, top_p, soft = [], [], [], []
        for request, count in zip(requests, counts, strict=True):
            canvas, params = request.canvas, request.params
            assert canvas is not None
            drawn = request.noise.uniforms(canvas.index, canvas.step, count)
            uniform.append(drawn if params.temperature else torch.full_like(drawn, float("nan")))
            top_k.append(torch.full((count,), params.top_k))
            top_p.append(torch.full((count,), params.top_p))
            soft.append(torch.full((count,), _wants_more(request)))
        reading = self._read(
            torch.cat(list(hidden)),
            temperature=_temperatures(requests, counts),
            uniform=torch.cat(uniform),
            top_k=torch.cat(top_k),
            top_p=torch.cat(top_p),
            soft=torch.cat(soft),
            edits=_edits(requests, counts),
        )
        return [_as_step(part) for part in split_reading(reading, counts)]

    def _constrained(
        self, requests: Sequence[Request], hidden: Sequence[Float[Tensor, "L D"]]
    ) -> list[StepReading | None]:
        """Canvases of one language: a sweep for the masses of its classes, one for the rows that those leave open."""
        state = requests[0].constraint
        assert state is not None
        rows, counts = torch.cat(list(hidden)), [part.shape[0] for part in hidden]
        temperature, edits = _temperatures(requests, counts), _edits(requests, counts)
        classes = state.constraint.classes
        reading = read_classes(
            rows, self._model.head, softcap=self._config.final_logit_softcapping, temperature=temperature,
            classes=classes, edits=edits,
        ).cpu()  # fmt: skip
        decided: list[DecidedCanvas | None] = []
        starts = [0, *itertools.accumulate(counts)]
        for i, request in enumerate(requests):
            part = reading.select(slice(starts[i], starts[i + 1]))
            decided.append(_decide_or_fail(request, part) if bool(part.finite.all()) else None)
        # Samples and beliefs only feed a next step.
        more = {i: canvas for i, canvas in enumerate(decided) if canvas is not None and _wants_more(requests[i])}
        second = self._open_rows(classes, more, starts, rows, temperature, edits)
        return [
            None if canvas is None else self._as_constrained_step(requests[i], canvas, second.get(i), rows.device)
            for i, canvas in enumerate(decided)
        ]

    def _open_rows(
        self, classes: TokenClasses, more: Mapping[int, DecidedCanvas], starts: Sequence[int],
        hidden: Float[Tensor, "N D"], temperature: Float[Tensor, "N"], edits: LogitEdits | None,
    ) -> dict[int, Reading]:  # fmt: skip
        """The rows that the classes leave open, by canvas: tokens and beliefs under the weights of their classes."""
        open_of = {i: canvas.is_open.nonzero()[:, 0] for i, canvas in more.items() if bool(canvas.is_open.any())}
        if not open_of:
            return {}
        rows = torch.cat([open_rows + starts[i] for i, open_rows in open_of.items()])
        reading = self._read(
            hidden[rows.to(hidden.device)],
            temperature=temperature[rows],
            uniform=torch.cat([more[i].uniform[own] for i, own in open_of.items()]),
            soft=torch.ones(len(rows), dtype=torch.bool),
            edits=None if edits is None else edits.select(rows),
            class_weights=ClassWeights(
                classes=classes,
                log_weight=torch.cat([more[i].log_weight[own] for i, own in open_of.items()]),
                sample_class=torch.cat([more[i].sampled_class[own] for i, own in open_of.items()]),
            ),
        )
        return dict(zip(open_of, split_reading(reading, [len(own) for own in open_of.values()]), strict=True))

    def _as_constrained_step(
        self, request: Request, decided: DecidedCanvas, second: Reading | None, device: torch.device
    ) -> StepReading:
        """A canvas whose classes are decided, its open rows as the second sweep says where there is one."""
        soft, sample = None, decided.sample
        if _wants_more(request):
            soft = self._model.decoder.embedding[decided.surest.to(device)]
        if second is not None:
            assert soft is not None and second.soft_embedding is not None
            rows = decided.is_open.nonzero()[:, 0]
            soft[rows.to(device)] = second.soft_embedding
            if request.params.temperature:
                sample = sample.index_copy(0, rows, second.sample.cpu())
        return StepReading(
            argmax=decided.argmax.to(device), sample=sample.to(device), entropy=decided.entropy.to(device),
            max_logprob=decided.max_logprob.to(device), soft_embedding=soft, num_kept=decided.num_kept,
        )  # fmt: skip

    def _next(self, requests: Sequence[Request], hidden: Sequence[Float[Tensor, "1 D"]]) -> list[Reading]:
        counts = [1] * len(requests)
        uniform = [
            r.noise.autoregressive(len(r.output.token_ids)) if r.params.temperature else float("nan") for r in requests
        ]
        reading = self._read(
            torch.cat(list(hidden)),
            temperature=torch.tensor([r.params.temperature or 1.0 for r in requests]),
            uniform=torch.tensor(uniform, dtype=torch.float64),
            top_k=torch.tensor([r.params.top_k for r in requests]),
            top_p=torch.tensor([r.params.top_p for r in requests]),
            soft=None,
            edits=_edits(requests, counts),
            class_weights=next_weights(requests),
        )
        return split_reading(reading, counts)

    def _read(
        self, hidden: Float[Tensor, "N D"], *, temperature: Float[Tensor, "N"], uniform: Float64[Tensor, "N"],
        soft: Bool[Tensor, "N"] | None, edits: LogitEdits | None, top_k: Int[Tensor, "N"] | None = None,
        top_p: Float[Tensor, "N"] | None = None, class_weights: ClassWeights | None = None,
    ) -> Reading:  # fmt: skip
        device = hidden.device
        return read_vocab(
            hidden,
            self._model.head,
            softcap=self._config.final_logit_softcapping,
            temperature=temperature.to(device),
            uniform=uniform.to(device),
            soft_embedding=False if soft is None else soft.to(device),
            soft_source=self._model.decoder.embedding,
            edits=edits,
            top_k=top_k.to(device) if top_k is not None and bool((top_k > 0).any()) else None,
            top_p=top_p.to(device) if top_p is not None and bool((top_p < 1).any()) else None,
            class_weights=class_weights,
        )


def token_logprobs(
    reading: Reading, ids: Int[Tensor, "N"], entropy: Sequence[float], settled: Sequence[int], num_steps: int
) -> list[TokenLogprob]:
    """What `read_logprobs` says of tokens, one by one; the other arguments as TokenLogprob's."""
    assert reading.chosen_logprobs is not None
    chosen = reading.chosen_logprobs[:, 0].tolist()
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(chosen)
    if reading.topk_ids is not None and reading.topk_logprobs is not None:
        pairs = zip(reading.topk_ids.tolist(), reading.topk_logprobs.tolist(), strict=True)
        tops = [tuple(zip(row_ids, row_logprobs, strict=True)) for row_ids, row_logprobs in pairs]
    return [
        TokenLogprob(token_id=token, logprob=logprob, entropy=h, settled_step=step, num_steps=num_steps, top=top)
        for token, logprob, h, step, top in zip(ids.tolist(), chosen, entropy, settled, tops, strict=True)
    ]


def _decide_or_fail(request: Request, reading: ClassReading) -> DecidedCanvas | None:
    """A canvas's classes; None, and the request fails, where no text of its language is left. Mutates the request."""
    try:
        return decide(request, reading)
    except GenerationError as error:
        request.fail(error)
        return None


def split_reading(reading: Reading, counts: Sequence[int]) -> list[Reading]:
    """One reading a request."""
    if len(counts) == 1:
        return [reading]
    columns = {f.name: getattr(reading, f.name) for f in fields(Reading)}
    pieces = {name: rows.split(list(counts)) for name, rows in columns.items() if rows is not None}
    return [replace(reading, **{name: parts[i] for name, parts in pieces.items()}) for i in range(len(counts))]


def _as_step(reading: Reading) -> StepReading | None:
    if not bool(reading.finite.all()):
        return None
    return StepReading(
        argmax=reading.argmax,
        sample=reading.sample,
        entropy=reading.entropy,
        max_logprob=reading.max_logprob,
        soft_embedding=reading.soft_embedding,
    )


def _by_constraint(requests: Sequence[Request]) -> list[list[int]]:
    """Places of the requests that are kept to the same language, in order of the first of each."""
    groups: dict[int, list[int]] = {}
    for i, request in enumerate(requests):
        key = 0 if request.constraint is None else id(request.constraint.constraint)
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _wants_more(request: Request) -> bool:
    """Whether another step may follow, which is all that samples and beliefs are for."""
    assert request.canvas is not None
    return request.canvas.step + 1 < request.rules.schedule.num_steps


def _temperatures(requests: Sequence[Request], counts: Sequence[int]) -> Float[Tensor, "N"]:
    parts = []
    for request, count in zip(requests, counts, strict=True):
        assert request.canvas is not None
        # Scaled by 0 the schedule would divide by 0: samples become the arg-max and the schedule stays.
        scale = request.params.temperature or 1.0
        parts.append(torch.full((count,), request.rules.schedule.temperature(request.canvas.step) * scale))
    return torch.cat(parts)


def _edits(requests: Sequence[Request], counts: Sequence[int]) -> LogitEdits | None:
    """Penalties and biases, end tokens ruled out in rows before min_tokens, tokens ruled out at single positions."""
    groups: list[EditGroup] = []
    row_group: list[int] = []
    for request, count in zip(requests, counts, strict=True):
        params, written, num_rows = request.params, request.num_before_canvas, count
        plain, own = -1, _own_edits(request)
        if own is not None:
            plain = len(groups)
            groups.append(own)
        num_early = min(count, max(0, params.min_tokens - written))
        if num_early and request.end_ids:
            banned = torch.tensor(sorted(request.end_ids), dtype=torch.int64)
            row_group += [len(groups)] * num_early
            shared = own or EditGroup()
            groups.append(replace(shared, banned_ids=torch.cat([shared.banned_ids, banned])))
            count -= num_early
        row_group += [plain] * count
        _ban_at(request, range(len(row_group) - num_rows, len(row_group)), row_group, groups)
    if not groups:
        return None
    return LogitEdits(row_group=torch.tensor(row_group), groups=tuple(groups))


def _own_edits(request: Request) -> EditGroup | None:
    """What a request's parameters change in all of its rows."""
    params = request.params
    seen, bias = torch.empty(0, dtype=torch.int64), dict(params.logit_bias)
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(list(request.seen_ids()), dtype=torch.int64)
    if params.presence_penalty or params.frequency_penalty:
        for token, count in Counter(request.output.token_ids[: request.num_before_canvas]).items():
            taken = params.presence_penalty + params.frequency_penalty * count
            bias[token] = bias.get(token, 0.0) - taken
    if params.repetition_penalty == 1.0 and not bias and not len(request.never):
        return None
    return EditGroup(
        banned_ids=request.never,
        seen_ids=seen,
        repetition_penalty=params.repetition_penalty,
        bias_ids=torch.tensor(list(bias), dtype=torch.int64),
        bias=torch.tensor(list(bias.values()), dtype=torch.float32),
    )


def _ban_at(request: Request, rows: range, row_group: list[int], groups: list[EditGroup]) -> None:
    """Give each row with bans of its own a group of its own. Mutates row_group and groups."""
    first = request.num_before_canvas
    for position, banned in request.banned.items():
        if 0 <= position - first < len(rows):
            row = rows[position - first]
            shared = groups[row_group[row]] if row_group[row] >= 0 else EditGroup()
            row_group[row] = len(groups)
            groups.append(replace(shared, banned_ids=torch.cat([shared.banned_ids, banned])))
