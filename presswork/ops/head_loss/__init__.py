"""Cross-entropy through the vocabulary head, for training, without a float32 matrix over the vocabulary.

N rows, D width, V vocabulary. Products are formed some rows at a time in the weight dtype; loss and gradient of a row
are taken in float32, and the gradient takes the products' place.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from presswork.errors import ConfigError, RequestError
from presswork.ops.choice import Impl, takes_fast
from presswork.ops.head_loss import fast, reference
from presswork.ops.vocab_head import read_vocab

__all__ = ["expected_embedding", "head_cross_entropy", "logit_gradients"]

_CHUNK_ELEMENTS = 1 << 24


def logit_gradients(
    products: Float[Tensor, "n V"],
    targets: Int[Tensor, "n"],
    softcap: float | None,
    scale: float,
    impl: Impl = "auto",
) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
    """(-log p(target) in float32, 1 where the target is most likely) of each row, p = softmax(softcap(products)).

    Mutates: products, which become `scale` times the gradient of a row's loss by them.

    Args:
        softcap: bound c of c tanh(x / c); None for none.
        scale: weight of a row's loss.
        impl: "auto" takes the compiled CPU twin where it can, see presswork.ops.choice.

    Raises:
        RequestError: targets that are not one id below V for each row.
        ConfigError: an unknown impl, or "fast" for tensors it cannot take.
    """
    _check_targets(targets, *products.shape)
    chosen = _choose(impl, products)
    return chosen.logit_gradients(products, targets, softcap, scale)


def _choose(impl: Impl, products: Tensor) -> ModuleType:
    if not takes_fast(impl, products):
        return reference
    if products.is_contiguous():
        return fast
    if impl == "fast":
        raise ConfigError("impl='fast' needs products whose rows lie one after the other; use impl='auto'")
    return reference


def _check_targets(targets: Tensor, num: int, vocab: int) -> None:
    if targets.shape != (num,) or targets.dtype != torch.int64:
        raise RequestError(f"targets must be int64 of shape [{num}], got {targets.dtype} {list(targets.shape)}")
    if num and targets.device.type == "cpu":
        low, high = (int(bound) for bound in targets.aminmax())
        if low < 0 or high >= vocab:
            raise RequestError(f"targets reach from {low} to {high}; ids must be 0 to {vocab - 1}")


def head_cross_entropy(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, "N"],
    softcap: float | None,
    *,
    chunk_elements: int = _CHUNK_ELEMENTS,
    impl: Impl = "auto",
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """(mean of -log p(target) over the rows, how many rows have their target as arg-max); differentiable once.

    The gradient is formed in the forward pass, while a chunk's products are there. No rows give a loss of zero.

    Args:
        chunk_elements: products that exist at a time.
    """
    is_trained = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _HeadCrossEntropy.apply(hidden, weight, targets, softcap, chunk_elements, impl, is_trained)  # type: ignore[return-value]


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, chunk: int,
        impl: Impl, is_trained: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        num, rows = max(1, targets.shape[0]), max(1, chunk // weight.shape[0])
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        right = torch.zeros((), dtype=torch.int64, device=hidden.device)
        needed: Sequence[bool] = ctx.needs_input_grad  # type: ignore[attr-defined]
        grad_hidden = torch.empty_like(hidden) if is_trained and needed[0] else None
        # As large as the vocabulary: not for a head that stays as it is, nor for a look at the loss.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if is_trained and needed[1] else None
        for start in range(0, targets.shape[0], rows):
            part = slice(start, start + rows)
            products = F.linear(hidden[part], weight)
            losses, is_right = logit_gradients(products, targets[part], softcap, 1 / num, impl)
            loss, right = loss + losses.sum(), right + is_right.sum()
            if grad_hidden is not None:
                grad_hidden[part] = products @ weight
            if grad_weight is not None:
                grad_weight += products.T @ hidden[part]
        kept = None if grad_weight is None else grad_weight.to(weight.dtype)
        ctx.save_for_backward(grad_hidden, kept)  # type: ignore[arg-type]
        ctx.mark_non_differentiable(right)  # type: ignore[attr-defined]
        return loss / num, right

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (scale,) = grads[:1]
        found: Sequence[Tensor | None] = ctx.saved_tensors  # type: ignore[attr-defined]
        return (*(None if grad is None else grad * scale.to(grad.dtype) for grad in found), *[None] * 5)


def expected_embedding(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    source: Float[Tensor, "V E"],
    softcap: float | None,
    *,
    chunk_elements: int = _CHUNK_ELEMENTS,
    impl: Impl = "auto",
) -> Float[Tensor, "N E"]:
    """softmax(softcap(hidden weight^T)) @ source, in the dtype of source; differentiable by source alone.

    Self-conditioning in training: the belief's probabilities are given, the embedding they are told in is learned.
    """
    return _ExpectedEmbedding.apply(hidden, weight, source, softcap, chunk_elements, impl)  # type: ignore[return-value]


class _ExpectedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, weight: Tensor, source: Tensor, softcap: float | None, chunk: int, impl: Impl
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.constants = (source.shape[0], softcap, chunk, impl)  # type: ignore[attr-defined]
        ones = torch.ones(hidden.shape[0], device=hidden.device)
        reading = read_vocab(
            hidden.detach(), weight.detach(), softcap=softcap, temperature=ones, soft_embedding=True,
            soft_source=source.detach(), impl="reference" if impl == "reference" else "auto",
        )  # fmt: skip
        assert reading.soft_embedding is not None
        return reading.soft_embedding.to(source.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[None, None, Tensor, None, None, None]:  # type: ignore[override]
        hidden, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        num, softcap, chunk, impl = ctx.constants  # type: ignore[attr-defined]
        (grad,) = grads
        rows = max(1, chunk // weight.shape[0])
        total = torch.zeros(num, grad.shape[1], dtype=torch.float32, device=grad.device)
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            products = F.linear(hidden[part], weight)
            _choose(impl, products).softmax_in_place(products, softcap)
            total += products.T @ grad[part]
        return None, None, total.to(grad.dtype), None, None, None
