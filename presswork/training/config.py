"""What a training run is made of, in frozen parts."""

from dataclasses import dataclass
from typing import Literal

from presswork.config import require


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """How weights move: the algorithm, a linear warm-up, and what the learning rate does after it.

    Args:
        peak_rate: highest learning rate.
        algorithm: adamw, or muon for the matrices inside the layers and adamw for all else.
        schedule: cosine, or constant after the warm-up.
        warmup_steps: steps of linear growth from 0.
        final_share: learning rate at a cosine's last step over the peak rate, in [0, 1].
        betas: of AdamW's moments.
        momentum: Muon's.
        weight_decay: decoupled; applies to matrices only.
        clip_norm: largest global gradient norm.
    """

    peak_rate: float
    algorithm: Literal["adamw", "muon"] = "adamw"
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 100
    final_share: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    momentum: float = 0.95
    weight_decay: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        require(self.peak_rate > 0, f"peak_rate must be positive, got {self.peak_rate}")
        require(self.algorithm in ("adamw", "muon"), f"algorithm must be adamw or muon, got {self.algorithm!r}")
        require(self.schedule in ("cosine", "constant"), f"schedule must be cosine or constant, got {self.schedule!r}")
        require(0 <= self.momentum < 1, f"momentum must lie in [0, 1), got {self.momentum}")
        require(self.warmup_steps >= 0, f"warmup_steps must not be negative, got {self.warmup_steps}")
        require(0 <= self.final_share <= 1, f"final_share must lie in [0, 1], got {self.final_share}")
        require(all(0 <= beta < 1 for beta in self.betas), f"betas must lie in [0, 1), got {self.betas}")
        require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        require(self.clip_norm > 0, f"clip_norm must be positive, got {self.clip_norm}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One run of the trainer.

    Args:
        num_steps: optimizer steps in total; the schedule ends there.
        optimizer: how weights move.
        encoder_weight: weight of the causal loss.
        diffusion_weight: weight of the canvas loss; 0 trains the causal mode alone, and the finished model is saved as
            an autoregressive one.
        balance_weight: weight of the router's load-balancing loss; from scratch about 0.01, for fine-tuning 0.
        keys_learn: whether the canvas loss moves the encoder too, through the keys and values that canvases read.
        recompute: layers are computed again in the backward pass instead of keeping what they computed: about a third
            more arithmetic for a fraction of the memory.
        accumulate: batches whose gradients are averaged into one optimizer step.
        validate_every: steps between looks at the validation batches; 0 never looks.
        patience: validations in a row without a lower loss after which the run stops; 0 never stops early.
        ema_decay: decay of the averaged weights that are exported, in [0, 1).
        device: cpu or cuda, of a run of one process; several take CUDA where there is some.
        dtype: compute dtype of the passes, bfloat16 or float32; master weights are float32.
        compile: fuse the passes with torch.compile (needs a C++ compiler; a minute at the start).
        checkpoint_every, log_every: steps.
        expert_parallel: processes that share one set of experts, in a run of several (docs/training.md); it divides
            their number and the number of experts. 1 shards every parameter over all of them alike.
    """

    num_steps: int
    optimizer: OptimizerConfig
    encoder_weight: float = 1.0
    diffusion_weight: float = 1.0
    balance_weight: float = 0.0
    keys_learn: bool = True
    recompute: bool = False
    accumulate: int = 1
    validate_every: int = 0
    patience: int = 0
    ema_decay: float = 0.999
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: str = "bfloat16"
    compile: bool = False
    checkpoint_every: int = 500
    log_every: int = 20
    expert_parallel: int = 1

    def __post_init__(self) -> None:
        require(self.num_steps > 0, f"num_steps must be positive, got {self.num_steps}")
        for name in ("encoder_weight", "diffusion_weight", "balance_weight"):
            value = getattr(self, name)
            require(0 <= value < float("inf"), f"{name} must be finite and not negative, got {value}")
        require(self.dtype in ("bfloat16", "float32"), f"dtype must be bfloat16 or float32, got {self.dtype!r}")
        require(0 <= self.ema_decay < 1, f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        for name in ("accumulate", "checkpoint_every", "log_every", "expert_parallel"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        require(
            self.patience == 0 or self.validate_every > 0,
            f"patience counts validations: set validate_every too, got patience {self.patience}",
        )
        for name in ("validate_every", "patience"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
