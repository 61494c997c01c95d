"""Mixture of experts whose experts lie on several processes: rows travel to their experts and back.

N rows of this process, M rows received, D model width, E experts of all processes, F of one, k experts a row.

    rows by expert   | 0 0 1 | 2 2 2 3 |     sorted; the first part stays here, the second goes to the next process
    received         | 0 0 1 | 0 1 1   |     each sender's rows, by expert

Each expert sees the rows of all processes that share it, so the gradient of its weights is already their sum.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx

from presswork.ops.moe import mix_experts, mix_experts_dense


def mix_over_ranks(
    h: Float[Tensor, "N D"],
    weights: Float[Tensor, "N k"],
    experts: Int[Tensor, "N k"],
    gate_up: Float[Tensor, "F G D"],
    down: Float[Tensor, "F D f"],
    *,
    group: dist.ProcessGroup,
) -> Float[Tensor, "N D"]:
    """The same sum as mix_experts, of experts of which each process of the group holds the next F; pure.

    Every process of the group must call it, with any number of rows.
    """
    num_local, num_ranks, top_k = gate_up.shape[0], group.size(), experts.shape[1]
    order = torch.argsort(experts.flatten(), stable=True)
    sent = torch.bincount(experts.flatten(), minlength=num_local * num_ranks)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    send, receive = (counts.view(num_ranks, num_local).sum(1).tolist() for counts in (sent, received))
    rows = _Exchange.apply(h[order // top_k], send, receive, group)
    local = torch.arange(num_local, device=h.device).repeat(num_ranks).repeat_interleave(received)
    ones = torch.ones(local.shape[0], 1, device=h.device)
    results = mix_any_rows(rows, ones, local[:, None], gate_up, down)  # type: ignore[arg-type]
    back: Tensor = _Exchange.apply(results, receive, send, group)  # type: ignore[assignment]
    total = torch.zeros(h.shape, dtype=torch.float32, device=h.device)
    return total.index_add(0, order // top_k, back.float() * weights.flatten()[order, None]).to(h.dtype)


def mix_any_rows(
    h: Float[Tensor, "N D"],
    weights: Float[Tensor, "N k"],
    experts: Int[Tensor, "N k"],
    gate_up: Float[Tensor, "E F2 D"],
    down: Float[Tensor, "E D f"],
) -> Float[Tensor, "N D"]:
    """mix_experts, also of no rows: the weights then get a gradient of zero and not none.

    Processes add their gradients up, and each must bring one.
    """
    mix = mix_experts if h.shape[0] else mix_experts_dense
    return mix(h, weights, experts, gate_up, down)


class _Exchange(torch.autograd.Function):
    """Rows to other processes, `send[i]` to the i-th, and theirs to here; the gradient goes the way back."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.way = (send, receive, group)  # type: ignore[attr-defined]
        return _exchanged(rows, send, receive, group)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        send, receive, group = ctx.way  # type: ignore[attr-defined]
        return _exchanged(grads[0], receive, send, group), None, None, None


def _exchanged(rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
    found = rows.new_empty(sum(receive), rows.shape[1])
    dist.all_to_all_single(found, rows.contiguous(), receive, send, group=group)
    return found
