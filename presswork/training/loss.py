"""Losses of one training batch.

B examples, C canvases, T prompt and response, L canvas, N rows, D width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from presswork.diffusion.accept import EntropyBoundRule
from presswork.models.adapters import LayerAdapter
from presswork.models.transformer import Experts, Observe, PassRows, Stack, Transformer
from presswork.ops.head_loss import expected_embedding, head_cross_entropy
from presswork.ops.moe import router_probabilities
from presswork.ops.vocab_head import read_vocab
from presswork.training.attention import PLAIN_ATTENTION, AttentionFunctions, CanvasAttention, EncoderAttention

IGNORED_TARGET = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafts:
    """Canvases whose second pass reads what the sampler would have made of the first, W of them.

    Args:
        canvases: their indices; each is self-conditioned too.
        uniform: draws their samples, in [0, 1).
        noise: tokens for the positions that are not accepted.
        bounds: entropy bound of each canvas.
    """

    canvases: Int[Tensor, "W"]
    uniform: Float64[Tensor, "W L"]
    noise: Int[Tensor, "W L"]
    bounds: Float[Tensor, "W"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Everything one step needs, drawn beforehand so that the loss is a pure function of batch and weights.

    Args:
        ids: clean prompt and response, right-padded.
        targets: next token of each encoder position, IGNORED_TARGET where there is none or it should not count.
        examples: the example each drawn canvas belongs to; one example may lend its prompt to several.
        starts: position where each canvas begins.
        x0, xt: the canvases, clean and noised.
        self_conditioned: indices of the canvases whose pass is fed a first pass's belief.
        belief: soft embeddings the canvases bring along from an earlier step, zero where they bring none.
        drafts: which of the self-conditioned canvases go through a sampler step, and its random numbers.
        origins: where rows hold several documents, the first position of each position's document.
        canvas_origins: the same of each canvas.
    """

    ids: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    examples: Int[Tensor, "C"]
    starts: Int[Tensor, "C"]
    x0: Int[Tensor, "C L"]
    xt: Int[Tensor, "C L"]
    self_conditioned: Int[Tensor, "U"]
    belief: Float[Tensor, "C L D"] | None = None
    drafts: Drafts | None = None
    origins: Int[Tensor, "B T"] | None = None
    canvas_origins: Int[Tensor, "C"] | None = None

    @property
    def has_targets(self) -> bool:
        """Whether the causal loss counts any position."""
        return bool(_is_counted(self.targets).any())


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """total is the weighted sum of diffusion, encoder and balance; the first two are nats per token.

    `balance` is 1 where every expert gets as many rows as any other, and 0 where it was not asked for. `hidden` is the
    canvas pass's final state, detached, for batch sources that learn from it.
    """

    total: Float[Tensor, ""]
    diffusion: Float[Tensor, ""]
    encoder: Float[Tensor, ""]
    balance: Float[Tensor, ""]
    canvas_accuracy: Float[Tensor, ""]
    hidden: Float[Tensor, "N D"]


Add = Callable[[Tensor], Tensor]
"""The sum of a tensor over the processes of a run; the gradient of it is that of a process's own part."""


def alone(x: Tensor) -> Tensor:
    """The sum over one process."""
    return x


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """What the processes of a run must know of the whole batch, each having a share of it.

    Losses are means over the whole batch's positions: a mean over shares of their means would weigh the positions of
    a small share more.

    Args:
        num_targets, num_canvas_tokens: positions that count in the two losses.
        has_first_pass: whether any canvas is self-conditioned; every process then makes the first pass.
    """

    num_targets: Int[Tensor, ""]
    num_canvas_tokens: int
    has_first_pass: bool
    add: Add = alone

    @classmethod
    def of(cls, batch: Batch, add: Add = alone) -> "Whole":
        return cls(
            num_targets=_is_counted(batch.targets).sum(), num_canvas_tokens=batch.x0.numel(),
            has_first_pass=batch.self_conditioned.numel() > 0, add=add,
        )  # fmt: skip


def batch_losses(
    model: Transformer,
    batch: Batch,
    *,
    encoder_weight: float = 1.0,
    diffusion_weight: float = 1.0,
    balance_weight: float = 0.0,
    keys_learn: bool = True,
    attend: AttentionFunctions = PLAIN_ATTENTION,
    whole: Whole | None = None,
) -> Losses:
    """Causal loss over the clean sequence plus canvas cross-entropy, gradients flowing into the encoder's keys.

    Every canvas position counts, clean ones too, with no weight by t. The first self-conditioning pass runs only
    for canvases that use it, without gradient.

    Args:
        diffusion_weight: at 0 there is no canvas pass, and its loss is told as 0.
        keys_learn: False stops those gradients at the keys and values.
        whole: the batch that this one is a share of; None: it is a whole one. Losses are those of the whole batch, and
            the gradients of the processes add up to its gradient.
    Source: DiffusionGemma's fine-tuning code; see docs/training.md.
    """
    whole = whole or Whole.of(batch)
    stacks = (model.encoder, model.decoder)
    loads: list[RouterLoads | None] = [None, None]
    if balance_weight:
        adapters = [None if model.adapter is None else model.adapter.layers(at) for at in (False, True)]
        counted = (_before_padding(batch.targets, whole), None)
        loads = [
            RouterLoads(stack, whole.add, adapter, rows)
            for stack, adapter, rows in zip(stacks, adapters, counted, strict=True)
        ]
    hidden, kept = encode(model, batch.ids, attend, batch.origins, loads[0])
    if not keys_learn:
        kept = [(keys.detach(), values.detach()) for keys, values in kept]
    encoder = _cross_entropy(model, hidden, batch.targets.flatten())[0]
    encoder = whole.add(encoder * (_is_counted(batch.targets).sum() / whole.num_targets.clamp(min=1)))
    diffusion, canvas, right = encoder.new_zeros(()), hidden[:0], batch.x0.new_zeros(())
    if diffusion_weight:
        belief, xt = _first_pass(model, batch, kept, attend, whole.has_first_pass)
        canvas = decode(model, xt, batch.examples, batch.starts, kept, belief, attend, batch.canvas_origins, loads[1])
        diffusion, right = _cross_entropy(model, canvas, batch.x0.flatten())
        diffusion = whole.add(diffusion * (batch.x0.numel() / whole.num_canvas_tokens))
    watched = loads if diffusion_weight else loads[:1]
    balances = [load.loss() for load in watched if load is not None]
    balance = torch.stack(balances).mean() if balances else diffusion.new_zeros(())
    return Losses(
        total=diffusion_weight * diffusion + encoder_weight * encoder + balance_weight * balance,
        diffusion=diffusion.detach(),
        encoder=encoder.detach(),
        balance=balance.detach(),
        canvas_accuracy=whole.add(right) / whole.num_canvas_tokens,
        hidden=canvas.detach(),
    )


class RouterLoads:
    """Watches the routers of one pass, and says how unevenly they share out its rows.

    Args:
        adapter: the factors of the stack's layers, which may change the routers.
        rows: those that count; None are all.
    Source: Fedus et al. 2022 (arXiv:2101.03961), section 2.2, for several experts a row.
    """

    def __init__(
        self, stack: Stack, add: Add = alone, adapter: nn.ModuleList | None = None,
        rows: Bool[Tensor, "N"] | None = None,
    ):  # fmt: skip
        self._stack, self._add, self._adapter, self._rows = stack, add, adapter, rows
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, residual: Float[Tensor, "N D"]) -> None:
        """Keep how often each expert is chosen and the sum of its probabilities, by layer."""
        experts: Experts = self._stack.layers[layer].experts  # type: ignore[assignment]
        factors: LayerAdapter | None = None if self._adapter is None else self._adapter[layer]  # type: ignore[assignment]
        router = experts.router
        if factors is not None and factors.experts is not None:
            router = factors.experts.routing(router)
        if self._rows is not None:
            residual = residual[self._rows]
        probabilities = router_probabilities(residual, experts.router_scale, router, experts.eps)
        chosen = probabilities.topk(experts.top_k, dim=-1).indices
        counts = torch.bincount(chosen.flatten(), minlength=probabilities.shape[-1])
        # A layer that is recomputed for its gradient must do the same again, but counts once.
        self._seen.setdefault(layer, (counts, probabilities.sum(0)))

    def loss(self) -> Float[Tensor, ""]:
        """E times the sum over experts of (share of the choices) * (mean probability), the mean over layers.

        1 where all experts get the same. The shares are those of all processes' rows.
        """
        mine, sums = (torch.stack(parts) for parts in zip(*self._seen.values(), strict=True))
        counts = self._add(mine)
        num_choices = counts.sum(-1, keepdim=True)
        top_k: int = self._stack.layers[0].experts.top_k  # type: ignore[assignment, union-attr]
        means = sums / (num_choices / top_k)
        return self._add(counts.shape[-1] * (counts / num_choices * means).sum(-1).mean())


def _before_padding(targets: Int[Tensor, "B T"], whole: Whole) -> Bool[Tensor, "N"]:
    """Positions up to the last that has a target; all of a batch that has none."""
    counts = _is_counted(targets).flip(1).cumsum(1).flip(1) > 0
    return (counts | (whole.num_targets == 0)).flatten()


def encode(
    model: Transformer,
    ids: Int[Tensor, "B T"],
    attend: AttentionFunctions = PLAIN_ATTENTION,
    origins: Int[Tensor, "B T"] | None = None,
    observe: Observe | None = None,
) -> tuple[Float[Tensor, "N D"], list[tuple[Tensor, Tensor]]]:
    """(final hidden rows, each layer's keys and values) of the causal pass; a row's documents are apart."""
    num, length = ids.shape
    attention = EncoderAttention(model.config, num, length, ids.device, attend.causal, origins)
    places = torch.arange(length, device=ids.device)
    positions = (places.expand(num, -1) if origins is None else places - origins).flatten()
    rows = PassRows(positions=positions, is_canvas=torch.zeros_like(positions, dtype=torch.bool))
    return model(model.embed_prompt(ids.flatten()), rows, attention, observe), attention.kept


def decode(
    model: Transformer,
    canvas: Int[Tensor, "C L"],
    examples: Int[Tensor, "C"],
    starts: Int[Tensor, "C"],
    kept: list[tuple[Tensor, Tensor]],
    belief: Float[Tensor, "N D"] | None,
    attend: AttentionFunctions = PLAIN_ATTENTION,
    origins: Int[Tensor, "C"] | None = None,
    observe: Observe | None = None,
) -> Float[Tensor, "N D"]:
    """Final hidden rows of the canvases over their examples' keys from their origins to their starts."""
    length = canvas.shape[1]
    attention = CanvasAttention(model.config, kept, examples, starts, length, attend.canvases, origins)
    first = starts if origins is None else starts - origins
    positions = (first[:, None] + torch.arange(length, device=starts.device)).flatten()
    rows = PassRows(positions=positions, is_canvas=torch.ones_like(positions, dtype=torch.bool))
    return model(model.embed_canvas(canvas.flatten(), belief), rows, attention, observe)


def _first_pass(
    model: Transformer, batch: Batch, kept: list[tuple[Tensor, Tensor]], attend: AttentionFunctions, is_made: bool
) -> tuple[Float[Tensor, "N D"] | None, Int[Tensor, "C L"]]:
    """(beliefs, canvases) that the second pass reads.

    A batch may bring beliefs along; the self-conditioned canvases get the soft embeddings of a first pass without
    signal, and the drafted ones among them also the canvas that the sampler makes of it. No gradient reaches the first
    pass; one does reach the embedding that its belief is told in.
    """
    chosen, (num, length) = batch.self_conditioned, batch.xt.shape
    if not is_made:
        return (None if batch.belief is None else batch.belief.flatten(0, 1)), batch.xt
    origins = None if batch.canvas_origins is None else batch.canvas_origins[chosen]
    with torch.no_grad():
        hidden = decode(
            model, batch.xt[chosen], batch.examples[chosen], batch.starts[chosen], kept, None, attend, origins
        )
    soft = expected_embedding(hidden, model.head, model.decoder.embedding, model.config.final_logit_softcapping)
    belief = hidden.new_zeros(num, length, hidden.shape[-1]) if batch.belief is None else batch.belief
    belief = belief.index_put((chosen,), soft.unflatten(0, (-1, length))).flatten(0, 1)
    if batch.drafts is None or batch.drafts.canvases.numel() == 0:
        return belief, batch.xt
    rows = torch.searchsorted(chosen, batch.drafts.canvases)
    drafted = draft_canvases(model, hidden.unflatten(0, (-1, length))[rows], batch.drafts)
    return belief, batch.xt.index_put((batch.drafts.canvases,), drafted)


def draft_canvases(model: Transformer, hidden: Float[Tensor, "W L D"], drafts: Drafts) -> Int[Tensor, "W L"]:
    """What the sampler makes of a pass: samples at temperature 1 where each canvas's bound accepts, noise elsewhere."""
    shape = drafts.noise.shape
    reading = read_vocab(
        hidden.flatten(0, 1),
        model.head,
        softcap=model.config.final_logit_softcapping,
        temperature=torch.ones(drafts.noise.numel(), device=hidden.device),
        uniform=drafts.uniform.flatten(),
    )
    samples, entropies = reading.sample.view(shape), reading.entropy.view(shape)
    kept = [
        EntropyBoundRule(float(bound)).accept(entropy, entropy)
        for bound, entropy in zip(drafts.bounds, entropies, strict=True)
    ]
    return torch.where(torch.stack(kept), samples, drafts.noise)


def _cross_entropy(
    model: Transformer, hidden: Float[Tensor, "N D"], targets: Int[Tensor, "N"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """(mean over counted rows of -log p(target), number of counted rows whose arg-max is the target)."""
    counted = torch.where(_is_counted(targets))[0]
    if counted.numel() != targets.numel():
        hidden, targets = hidden[counted], targets[counted]
    return head_cross_entropy(hidden, model.head, targets, model.config.final_logit_softcapping)


def _is_counted(targets: Int[Tensor, "*X"]) -> Bool[Tensor, "*X"]:
    return targets != IGNORED_TARGET
