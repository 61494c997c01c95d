"""Loss and gradient of rows of products, plain. n rows, V vocabulary."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def logit_gradients(
    products: Float[Tensor, "n V"], targets: Int[Tensor, "n"], softcap: float | None, scale: float
) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
    """(-log p(target) of each row, whether the target is the most likely token); products become scale * gradient."""
    wide = products.float()
    squashed = wide if softcap is None else torch.tanh(wide / softcap)
    z = wide if softcap is None else squashed * softcap
    log_p = torch.log_softmax(z, dim=-1)
    losses = -log_p.gather(1, targets[:, None])[:, 0]
    right = z.gather(1, targets[:, None])[:, 0] == z.amax(-1)
    grad = log_p.exp().scatter_add(1, targets[:, None], torch.full_like(losses, -1)[:, None])
    if softcap is not None:
        grad = grad * (1 - squashed.square())
    products.copy_(grad * scale)
    return losses, right.long()


def softmax_in_place(products: Float[Tensor, "n V"], softcap: float | None) -> None:
    """Products become softmax(softcap(products))."""
    wide = products.float()
    products.copy_(torch.softmax(wide if softcap is None else softcap * torch.tanh(wide / softcap), dim=-1))
