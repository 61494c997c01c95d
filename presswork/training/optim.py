"""Optimizers over float32 master weights of a model that computes in a narrower dtype."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from presswork.training.config import OptimizerConfig
from presswork.training.layout import Layout, OneProcess
from presswork.training.muon import muon_step

# Tables with a row for every token or expert: their rows are no linear map that one would orthogonalise.
_TABLES = ("embedding", "own_head", "router")


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Rate of step 0, 1, ...: linear warm-up, then the peak, or a cosine to final_share * peak at the last step."""
    if step < config.warmup_steps:
        return config.peak_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.peak_rate
    progress = (step - config.warmup_steps) / max(1, num_steps - 1 - config.warmup_steps)
    share = config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.peak_rate * share


def adamw_order(masters: Mapping[str, Tensor], momenta: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that AdamW moves, in the order of its state: matrices, then vectors."""
    names = [name for name in masters if name not in momenta]
    return sorted(names, key=lambda name: masters[name].ndim <= 1)


class MasterOptimizer:
    """Float32 masters, their moving average and the optimizer's moments for every trained parameter of a model.

    The model's own parameters are a rounded copy that forward and backward passes use. Where the model lies in parts
    over several processes, all of this is of this process's parts.
    """

    def __init__(
        self, model: nn.Module, config: OptimizerConfig, num_steps: int, ema_decay: float, layout: Layout | None = None
    ):
        self._config, self._num_steps, self._ema_decay = config, num_steps, ema_decay
        self._layout = layout or OneProcess(model)
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.masters = {name: self._layout.local(p.detach()).float().clone() for name, p in self._parameters.items()}
        self.average = {name: master.clone() for name, master in self.masters.items()}
        turned = config.algorithm == "muon"
        self._momenta = {
            name: torch.zeros_like(master)
            for name, master in self.masters.items()
            if turned and master.ndim > 1 and not name.endswith(_TABLES) and not name.startswith("adapter.")
        }
        others = [self.masters[name] for name in adamw_order(self.masters, self._momenta)]
        groups = [
            {"params": [m for m in others if m.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [m for m in others if m.ndim <= 1], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(groups, lr=config.peak_rate, betas=config.betas, fused=True)

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Add what a backward pass left to the masters' gradients, in float32. Mutates both."""
        for name, parameter in self._parameters.items():
            master, grad = self.masters[name], parameter.grad
            if grad is not None:
                found = self._layout.local(grad).float()
                master.grad = found if master.grad is None else master.grad.add_(found)
            parameter.grad = None

    @torch.no_grad()
    def step(self, step: int) -> float:
        """Move the masters by the gradients taken, refresh the model; returns the gradient norm.

        If that is not finite, nothing moves.
        """
        for master in self.masters.values():
            master.grad = torch.zeros_like(master) if master.grad is None else master.grad
        try:
            return self._step(step)
        finally:
            for master in self.masters.values():
                master.grad = None

    def _step(self, step: int) -> float:
        norm = torch.nn.utils.get_total_norm([m.grad for m in self.masters.values() if m.grad is not None])
        norm = self._layout.norm(norm)
        if not torch.isfinite(norm):
            return float(norm)
        torch.nn.utils.clip_grads_with_norm_(self.masters.values(), self._config.clip_norm, norm)
        rate = learning_rate(self._config, step, self._num_steps)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        for name, momentum in self._momenta.items():
            master, config = self.masters[name], self._config
            assert master.grad is not None
            muon_step(
                master, master.grad, momentum, rate=rate, decay=config.weight_decay, beta=config.momentum,
                turn=partial(self._layout.orthogonalise, name), longest=max(self._layout.shape(name)[-2:]),
            )  # fmt: skip
        self._adamw.step()
        decay = min(self._ema_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.average.values()), list(self.masters.values()), 1 - decay)
        self._publish(self.masters)
        return float(norm)

    @torch.no_grad()
    def _publish(self, source: dict[str, Tensor]) -> None:
        parts = [self._layout.local(parameter) for parameter in self._parameters.values()]
        torch._foreach_copy_(parts, [source[name] for name in self._parameters])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights into the model for a while."""
        self._publish(self.average)
        try:
            yield
        finally:
            self._publish(self.masters)

    def state(self) -> dict[str, object]:
        """Everything a resumed run needs."""
        return {
            "masters": self.masters, "average": self.average, "momenta": self._momenta,
            "adamw": self._adamw.state_dict(),
        }  # fmt: skip

    @torch.no_grad()
    def restore(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Continue from state(); the model's parameters are refreshed. Mutates the masters in place."""
        for kept, saved in ((self.masters, "masters"), (self.average, "average"), (self._momenta, "momenta")):
            for name, tensor in kept.items():
                tensor.copy_(state[saved][name])
        self._adamw.load_state_dict(state["adamw"])
        self._publish(self.masters)
