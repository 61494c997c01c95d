"""Parameters, gradients and optimizer state in parts, by FSDP2 and expert parallelism.

R processes, e of them to a set of experts, E experts. Every tensor is cut along its first dimension:

    most parameters      R parts over all processes
    expert weights       e parts of E / e experts, and each of those in R / e parts over the processes that hold it

FSDP brings the whole of a layer together (of an expert weight: a process's E / e experts) for the time it computes, and
adds the gradients up into parts. The loss is the root module: the vocabulary head and the embeddings belong to no layer
and are read outside Transformer.forward.

Invariant: every element of a gradient is summed over all processes exactly once (tests/training/test_distributed.py).
"""

from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from presswork.errors import DataError
from presswork.models.transformer import Experts, Transformer
from presswork.training.distributed import Ranks
from presswork.training.expert_parallel import mix_any_rows, mix_over_ranks
from presswork.training.loss import Batch, Losses, Whole, batch_losses
from presswork.training.muon import orthogonalise
from presswork.training.shares import on_device, share_of

_EXPERT_WEIGHTS = ("gate_up", "down")


@dataclass(frozen=True, slots=True)
class _Place:
    """The whole shape of a parameter, and the processes that it is cut over, first by the mesh's first dimension."""

    shape: torch.Size
    mesh: DeviceMesh


class Sharded:
    """A model in parts over the processes of a run; see Layout.

    Mutates: the model, whose parameters become parts and whose experts exchange rows.

    Args:
        expert_parallel: processes that share one set of experts.
    """

    def __init__(self, model: Transformer, ranks: Ranks, expert_parallel: int):
        self.ranks = ranks
        flat = init_device_mesh(ranks.device.type, (ranks.num,))
        # Neighbours share a set of experts, as their connection is the fastest.
        grid = torch.arange(ranks.num).view(-1, expert_parallel).T
        spread = DeviceMesh(ranks.device.type, grid, mesh_dim_names=("experts", "copies"))
        shared = {id(p) for layer in _layers(model) for p in _expert_weights(layer)} if expert_parallel > 1 else set()
        self._places = {
            name: _Place(p.shape, spread if id(p) in shared else flat) for name, p in model.named_parameters()
        }
        for layer in _layers(model):
            if expert_parallel > 1:
                _share_experts(layer.experts, spread)  # type: ignore[arg-type]
                _shard(layer, flat, ignored=_expert_weights(layer))
                others = set(layer.experts.parameters()) - _expert_weights(layer)  # type: ignore[union-attr]
                _shard(layer.experts, spread["copies"], ignored=others)  # type: ignore[arg-type]
            else:
                layer.experts.mix = mix_any_rows  # type: ignore[union-attr]
                _shard(layer, flat)
        self._root = _LossModule(model, ranks)
        _shard(self._root, flat)

    def losses(self, batch: Batch, **weights: Any) -> Losses:
        check_size(batch, self.ranks.num)
        return Losses(**self._root(batch, weights))

    def to(self, dtype: torch.dtype) -> None:
        self._root.to(dtype)

    def local(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def shape(self, name: str) -> torch.Size:
        return self._places[name].shape

    def part(self, name: str, whole: Tensor) -> Tensor:
        return _cut(whole, self._places[name].mesh, self.ranks.rank).clone()

    def spread(self, name: str, part: Tensor) -> DTensor:
        """The whole tensor as one that knows where its parts are; shares the part's memory."""
        place = self._places[name]
        stride = torch.empty(place.shape, device="meta").stride()
        cuts = [Shard(0)] * place.mesh.ndim
        return DTensor.from_local(part, place.mesh, cuts, run_check=False, shape=place.shape, stride=stride)

    def gather(self, name: str, part: Tensor) -> Tensor:
        place = self._places[name]
        rows = torch.arange(place.shape[0])
        cuts = [_cut(rows, place.mesh, rank) for rank in range(self.ranks.num)]
        padded = part.new_zeros(max(map(len, cuts)), *place.shape[1:])
        padded[: part.shape[0]] = part
        pieces = [torch.empty_like(padded) for _ in cuts]
        dist.all_gather(pieces, padded)
        return torch.cat([piece[: len(cut)] for piece, cut in zip(pieces, cuts, strict=True)])[
            torch.cat(cuts).argsort()
        ]

    def norm(self, norm: Tensor) -> Tensor:
        return self.ranks.add(norm.square()).sqrt()

    def orthogonalise(self, name: str, part: Tensor) -> Tensor:
        if part.ndim > 2:
            # A stack is cut between its matrices.
            return orthogonalise(part)
        # It is computed in bfloat16, so nothing is lost on the way.
        whole = self.gather(name, part.bfloat16())
        return self.part(name, orthogonalise(whole)).to(part.dtype)


class _LossModule(nn.Module):
    """The losses of this process's share of a batch; parameters outside the layers are there for all of it."""

    def __init__(self, model: Transformer, ranks: Ranks):
        super().__init__()
        self.model, self._ranks = model, ranks

    def forward(self, batch: Batch, weights: dict[str, Any]) -> dict[str, Tensor]:
        share = on_device(share_of(batch, self._ranks.rank, self._ranks.num), self._ranks.device)
        found = batch_losses(self.model, share, whole=Whole.of(batch, self._ranks.add), **weights)
        # FSDP looks for the tensors that a gradient comes back by.
        return {f.name: getattr(found, f.name) for f in fields(found)}


def check_size(batch: Batch, num_ranks: int) -> None:
    """Raise DataError where a batch does not go round."""
    if batch.ids.shape[0] < num_ranks:
        raise DataError(
            f"a batch has {batch.ids.shape[0]} examples, fewer than the {num_ranks} processes that share it; "
            "make batches larger or start fewer processes"
        )


def _cut(whole: Tensor, mesh: DeviceMesh, rank: int) -> Tensor:
    """The part of a process, cut by the mesh's dimensions in turn; a view."""
    for size, place in zip(mesh.shape, (mesh.mesh == rank).nonzero()[0].tolist(), strict=True):
        pieces = whole.chunk(size)
        whole = pieces[place] if place < len(pieces) else whole[:0]
    return whole


def _layers(model: Transformer) -> list[nn.Module]:
    return [layer for stack in {id(s): s for s in (model.decoder, model.encoder)}.values() for layer in stack.layers]


def _expert_weights(layer: nn.Module) -> set[nn.Parameter]:
    return {getattr(layer.experts, name) for name in _EXPERT_WEIGHTS}


def _share_experts(experts: Experts, mesh: DeviceMesh) -> None:
    """Keep this process's experts alone. Mutates the module."""
    index, group = mesh.get_local_rank("experts"), mesh.get_group("experts")
    for name in _EXPERT_WEIGHTS:
        weight: nn.Parameter = getattr(experts, name)
        mine = weight.detach().chunk(group.size())[index].clone()
        setattr(experts, name, nn.Parameter(mine, requires_grad=weight.requires_grad))
    experts.mix = partial(mix_over_ranks, group=group)


def _shard(module: nn.Module, mesh: DeviceMesh, ignored: set[nn.Parameter] | None = None) -> None:
    """Cut a module's parameters that no module inside it has cut. Mutates the module."""
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    # Also the root: what stays together after a pass without gradient would miss the next change of its parts.
    fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True, ignored_params=ignored)
    assert isinstance(module, FSDPModule)
    # Losses are means over all shares already: gradients are added and not averaged.
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)
