"""Where a run's parameters lie: whole in one process, or a part of each in every process (training/sharding.py)."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from presswork.models.transformer import Transformer
from presswork.training.distributed import ALONE, Ranks
from presswork.training.loss import Batch, Losses, batch_losses
from presswork.training.muon import orthogonalise
from presswork.training.shares import on_device


class Layout(Protocol):
    """What a trainer and its optimizer must know of where parameters lie.

    A part is what this process holds of a parameter, or of anything of a parameter's shape, such as its moments.
    """

    @property
    def ranks(self) -> Ranks: ...

    def losses(self, batch: Batch, **weights: Any) -> Losses:
        """`batch_losses` of the whole batch; the gradients end as parts."""
        ...

    def to(self, dtype: torch.dtype) -> None:
        """Round the model's parameters. Mutates the model."""
        ...

    def local(self, tensor: Tensor) -> Tensor:
        """The part of a parameter or gradient as a plain tensor that shares its memory."""
        ...

    def shape(self, name: str) -> torch.Size:
        """Of a whole parameter."""
        ...

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This process's part of a whole tensor."""
        ...

    def gather(self, name: str, part: Tensor) -> Tensor:
        """The whole tensor; every process must call it."""
        ...

    def norm(self, norm: Tensor) -> Tensor:
        """The norm over all processes, from that over this one's parts."""
        ...

    def orthogonalise(self, name: str, part: Tensor) -> Tensor:
        """This process's part of the orthogonalised matrix."""
        ...


class OneProcess:
    """A model whole in this process.

    Mutates: the model, which moves to the device where one is given.
    """

    def __init__(self, model: nn.Module, device: torch.device | None = None):
        self._model = model if device is None else model.to(device)
        self.ranks = ALONE if device is None else Ranks(device=device)

    def losses(self, batch: Batch, **weights: Any) -> Losses:
        assert isinstance(self._model, Transformer)
        return batch_losses(self._model, on_device(batch, self.ranks.device), **weights)

    def to(self, dtype: torch.dtype) -> None:
        self._model.to(dtype)

    def local(self, tensor: Tensor) -> Tensor:
        return tensor

    def shape(self, name: str) -> torch.Size:
        return self._model.get_parameter(name).shape

    def part(self, name: str, whole: Tensor) -> Tensor:
        return whole

    def gather(self, name: str, part: Tensor) -> Tensor:
        return part

    def norm(self, norm: Tensor) -> Tensor:
        return norm

    def orthogonalise(self, name: str, part: Tensor) -> Tensor:
        return orthogonalise(part)
