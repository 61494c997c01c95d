"""Losses of one training batch.

B examples, C canvases, T prompt and response, L canvas, N rows, D width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from presswork.models.transformer import PassRows, Transformer
from presswork.training.attention import AttendBatch, CanvasAttention, EncoderAttention, attend_batch

IGNORED_TARGET = -100
_CHUNK_ELEMENTS = 1 << 24


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
    """

    ids: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    examples: Int[Tensor, "C"]
    starts: Int[Tensor, "C"]
    x0: Int[Tensor, "C L"]
    xt: Int[Tensor, "C L"]
    self_conditioned: Int[Tensor, "U"]
    belief: Float[Tensor, "C L D"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """total = diffusion + encoder_weight * encoder, each a mean in nats per token.

    `hidden` is the canvas pass's final state, detached, for batch sources that learn from it.
    """

    total: Float[Tensor, ""]
    diffusion: Float[Tensor, ""]
    encoder: Float[Tensor, ""]
    canvas_accuracy: Float[Tensor, ""]
    hidden: Float[Tensor, "N D"]


def batch_losses(
    model: Transformer, batch: Batch, *, encoder_weight: float = 1.0, attend: AttendBatch = attend_batch
) -> Losses:
    """Causal loss over the clean sequence plus canvas cross-entropy, gradients flowing into the encoder's keys.

    Every canvas position counts, clean ones too, with no weight by t. The first self-conditioning pass runs only
    for canvases that use it, without gradient.
    Source: DiffusionGemma's fine-tuning code; see docs/training.md.
    """
    hidden, kept = encode(model, batch.ids, attend)
    encoder = _cross_entropy(model, hidden, batch.targets.flatten())[0]
    belief = _belief(model, batch, kept, attend)
    canvas = decode(model, batch.xt, batch.examples, batch.starts, kept, belief, attend)
    diffusion, right = _cross_entropy(model, canvas, batch.x0.flatten())
    return Losses(
        total=diffusion + encoder_weight * encoder,
        diffusion=diffusion.detach(),
        encoder=encoder.detach(),
        canvas_accuracy=right / batch.x0.numel(),
        hidden=canvas.detach(),
    )


def encode(
    model: Transformer, ids: Int[Tensor, "B T"], attend: AttendBatch = attend_batch
) -> tuple[Float[Tensor, "N D"], list[tuple[Tensor, Tensor]]]:
    """(final hidden rows, each layer's keys and values) of the causal pass."""
    num, length = ids.shape
    attention = EncoderAttention(model.config, num, length, ids.device, attend)
    positions = torch.arange(length, device=ids.device).repeat(num)
    rows = PassRows(positions=positions, is_canvas=torch.zeros_like(positions, dtype=torch.bool))
    return model(model.embed_prompt(ids.flatten()), rows, attention), attention.kept


def decode(
    model: Transformer,
    canvas: Int[Tensor, "C L"],
    examples: Int[Tensor, "C"],
    starts: Int[Tensor, "C"],
    kept: list[tuple[Tensor, Tensor]],
    belief: Float[Tensor, "N D"] | None,
    attend: AttendBatch = attend_batch,
) -> Float[Tensor, "N D"]:
    """Final hidden rows of the canvases over their examples' keys before their starts."""
    length = canvas.shape[1]
    attention = CanvasAttention(model.config, kept, examples, starts, length, attend)
    positions = (starts[:, None] + torch.arange(length, device=starts.device)).flatten()
    rows = PassRows(positions=positions, is_canvas=torch.ones_like(positions, dtype=torch.bool))
    return model(model.embed_canvas(canvas.flatten(), belief), rows, attention)


@torch.no_grad()
def _belief(
    model: Transformer, batch: Batch, kept: list[tuple[Tensor, Tensor]], attend: AttendBatch
) -> Float[Tensor, "N D"] | None:
    """What a batch brings along, and for the chosen canvases the soft embeddings of a first pass without signal."""
    chosen = batch.self_conditioned
    if chosen.numel() == 0:
        return None if batch.belief is None else batch.belief.flatten(0, 1)
    hidden = decode(model, batch.xt[chosen], batch.examples[chosen], batch.starts[chosen], kept, None, attend)
    soft = torch.cat([_softmax_embedding(model, rows) for rows in hidden.split(_chunk_rows(model))])
    num, length = batch.xt.shape
    belief = hidden.new_zeros(num, length, hidden.shape[-1]) if batch.belief is None else batch.belief.clone()
    belief[chosen] = soft.unflatten(0, (-1, length))
    return belief.flatten(0, 1)


def _softmax_embedding(model: Transformer, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    cap = model.config.final_logit_softcapping
    logits = cap * torch.tanh(F.linear(hidden, model.head).float() / cap)
    return logits.softmax(-1).to(hidden.dtype) @ model.decoder.embedding


def _chunk_rows(model: Transformer) -> int:
    return max(1, _CHUNK_ELEMENTS // model.config.vocab_size)


def _cross_entropy(
    model: Transformer, hidden: Float[Tensor, "N D"], targets: Int[Tensor, "N"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(mean over counted rows of -log p(target), number of counted rows whose arg-max is the target)."""
    counted = torch.where(targets != IGNORED_TARGET)[0]
    if counted.numel() != targets.numel():
        hidden, targets = hidden[counted], targets[counted]
    cap, rows = model.config.final_logit_softcapping, _chunk_rows(model)
    loss, right = HeadCrossEntropy.apply(hidden, model.head, targets, cap, rows)  # type: ignore[misc]
    return loss, right


class HeadCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of softcapped logits, a chunk of rows at a time, so that no [N, V] tensor exists.

    The gradient is formed in the forward pass, while a chunk's logits are there.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float, chunk_rows: int
    ) -> tuple[Tensor, Tensor]:
        num = max(1, targets.shape[0])
        loss, right = hidden.new_zeros((), dtype=torch.float32), hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for start in range(0, targets.shape[0], chunk_rows):
            rows = slice(start, start + chunk_rows)
            h, target = hidden[rows], targets[rows, None]
            squashed = torch.tanh(F.linear(h, weight).float() / softcap)
            log_p = torch.log_softmax(squashed * softcap, dim=-1)
            loss -= log_p.gather(1, target).sum()
            right += (log_p.argmax(-1, keepdim=True) == target).sum()
            grad = log_p.exp_().scatter_add_(1, target, torch.full_like(target, -1, dtype=torch.float32))
            grad = (grad * (1 - squashed.square_()) / num).to(hidden.dtype)
            grad_hidden[rows] = grad @ weight
            grad_weight += (grad.T @ h).float()
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(right)  # type: ignore[attr-defined]
        return loss / num, right

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        grad_hidden, grad_weight = ctx.saved_tensors  # type: ignore[attr-defined]
        scale = grads[0]
        return grad_hidden * scale.to(grad_hidden.dtype), grad_weight * scale.to(grad_weight.dtype), None, None, None
