"""The processes of a run: how they meet, add up, agree and fail together.

A batch is drawn alike on every process and each trains with its share of it; what must be known of all shares is added
up here. A process that fails tells the others through the store by which they met, so that one line is printed and not
one a process.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

from presswork.errors import PressworkError, TrainingError
from presswork.settings import Launch

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others; an evaluation on the first may take no longer. One that ends is noticed at
once."""

_FAILURE_KEY = "presswork/failed"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The processes of a run and this one's place among them.

    Args:
        rank: this process, from 0.
        num: how many there are; alone there is nobody to talk to, and every method is its trivial self.
        device: where this process computes.
    """

    rank: int = 0
    num: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process prints, and writes what is written once."""
        return self.rank == 0

    def add(self, x: Tensor) -> Tensor:
        """The sum of x over all processes; its gradient is that of this process's own part."""
        return x if self.num == 1 else _Add.apply(x)  # type: ignore[return-value]

    def any(self, is_so: bool) -> bool:
        """Whether it is so on any process."""
        if self.num == 1:
            return is_so
        flag = torch.tensor(int(is_so), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def share(self, value: Any) -> Any:
        """The first process's value, on every process."""
        if self.num == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def first_does(self, work: Callable[[], None]) -> None:
        """Run it on the first process; the others wait, and an error it raises on purpose is raised by all."""
        error: PressworkError | None = None
        if self.is_first:
            try:
                work()
            except PressworkError as raised:
                error = raised
        error = self.share(error)
        if error is not None:
            raise error

    def is_first_to_fail(self) -> bool:
        """Whether this process, which has failed, did so before any other; the one that did tells the user."""
        if self.num == 1:
            return True
        try:
            # The store's own name is private in torch, the function that gives it is what torch's modules use.
            store = dist.distributed_c10d._get_default_store()
            return store.compare_set(_FAILURE_KEY, "", str(self.rank)) == str(self.rank).encode()
        except (RuntimeError, ValueError):
            # The store goes with the process that held it.
            return False


ALONE = Ranks()


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Tensor:  # type: ignore[override]
        return grads[0]


@contextmanager
def joined(launch: Launch | None) -> Iterator[Ranks]:
    """Meet the other processes of a launch, and part at the end; alone where there are none.

    Raises:
        TrainingError: the others cannot be met, or one of them is gone.
        SystemExit: another process failed before this one did, and says why. Other errors pass through.
    """
    if launch is None or launch.num_ranks == 1:
        yield ALONE
        return
    ranks = _meet(launch)
    try:
        yield ranks
    except (Exception, KeyboardInterrupt) as error:
        if not ranks.is_first_to_fail():
            raise SystemExit(1) from error
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            reason = str(error).partition("\n")[0]
            raise TrainingError(f"process {ranks.rank} has lost another process of the run: {reason}") from error
        raise
    finally:
        dist.destroy_process_group()


def _meet(launch: Launch) -> Ranks:
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda", launch.local_rank) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    backend = "nccl" if has_gpu else "gloo"
    try:
        dist.init_process_group(backend, rank=launch.rank, world_size=launch.num_ranks, timeout=TIMEOUT)
    except (dist.DistError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise TrainingError(
            f"process {launch.rank} of {launch.num_ranks} cannot meet the others: {reason}; start them with torchrun"
        ) from error
    logger.info("process %d of %d, on %s by %s", launch.rank, launch.num_ranks, device, backend)
    return Ranks(rank=launch.rank, num=launch.num_ranks, device=device)
