"""AdamW over float32 master weights of a model that computes in a narrower dtype."""

import math

import torch
from torch import Tensor, nn

from presswork.training.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Rate of step 0, 1, ...: linear warm-up, then a cosine that reaches final_share * peak at the last step."""
    if step < config.warmup_steps:
        return config.peak_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - 1 - config.warmup_steps)
    share = config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.peak_rate * share


class MasterOptimizer:
    """Float32 masters, their moving average and AdamW's moments for every parameter of a model.

    The model's own parameters are a rounded copy that forward and backward passes use.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, num_steps: int, ema_decay: float):
        self._config, self._num_steps, self._ema_decay = config, num_steps, ema_decay
        self._parameters = dict(model.named_parameters())
        self.masters = {name: p.detach().float().clone() for name, p in self._parameters.items()}
        self.average = {name: master.clone() for name, master in self.masters.items()}
        matrices = [m for m in self.masters.values() if m.ndim > 1]
        vectors = [m for m in self.masters.values() if m.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(groups, lr=config.peak_rate, betas=config.betas, fused=True)

    @torch.no_grad()
    def step(self, step: int) -> float:
        """Take the gradients the backward pass left, move the masters, refresh the model; returns the gradient norm."""
        for name, parameter in self._parameters.items():
            grad = parameter.grad
            self.masters[name].grad = torch.zeros_like(self.masters[name]) if grad is None else grad.float()
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self.masters.values(), self._config.clip_norm)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate(self._config, step, self._num_steps)
        self._adamw.step()
        decay = min(self._ema_decay, (step + 1) / (step + 10))
        for name, average in self.average.items():
            average.lerp_(self.masters[name], 1 - decay)
        self._publish(self.masters)
        return float(norm)

    @torch.no_grad()
    def _publish(self, source: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(source[name])

    def state(self) -> dict[str, object]:
        """Everything a resumed run needs."""
        return {"masters": self.masters, "average": self.average, "adamw": self._adamw.state_dict()}

    def restore(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Continue from state(); the model's parameters are refreshed. Mutates the masters in place."""
        for name, master in self.masters.items():
            master.copy_(state["masters"][name])
            self.average[name].copy_(state["average"][name])
        self._adamw.load_state_dict(state["adamw"])
        self._publish(self.masters)
