"""The architecture of one model, validated once, independent of any file format."""

from dataclasses import dataclass
from typing import Literal

from presswork.errors import ConfigError

LayerKind = Literal["sliding", "full"]


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless the condition holds."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary embedding of one layer kind.

    Args:
        theta: base of the geometric frequency series.
        proportional: exponents are taken over the full head width and the tail does not rotate
            (Gemma 4's full layers); otherwise the rotated width is its own series.
        rotary_fraction: share of the head width that rotates, in (0, 1].
        factor: every frequency is divided by it (context extension), > 0.
    """

    theta: float
    proportional: bool = False
    rotary_fraction: float = 1.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        require(self.theta > 1, f"rope theta must be above 1, got {self.theta}")
        require(0 < self.rotary_fraction <= 1, f"rope rotary fraction must lie in (0, 1], got {self.rotary_fraction}")
        require(
            self.proportional or self.rotary_fraction == 1,
            f"a partial rotary fraction needs proportional rope, got {self.rotary_fraction} with plain rope",
        )
        require(self.factor > 0, f"rope factor must be positive, got {self.factor}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerConfig:
    """What differs from one transformer layer to the next."""

    kind: LayerKind
    head_dim: int
    num_key_value_heads: int

    def __post_init__(self) -> None:
        require(self.kind in ("sliding", "full"), f"layer kind must be sliding or full, got {self.kind!r}")
        require(
            self.head_dim > 0 and self.head_dim % 2 == 0, f"head_dim must be even and positive, got {self.head_dim}"
        )
        require(self.num_key_value_heads > 0, f"num_key_value_heads must be positive, got {self.num_key_value_heads}")

    @property
    def is_full(self) -> bool:
        return self.kind == "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A block-diffusion transformer of the DiffusionGemma family (text part).

    Names follow the released configuration; `layers` gathers what it spreads over several keys.
    Source: spec of the released 26B-A4B checkpoint and transformers' `diffusion_gemma`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    layers: tuple[LayerConfig, ...]
    num_experts: int
    top_k_experts: int
    moe_intermediate_size: int
    sliding_window: int = 512
    canvas_length: int = 256
    sliding_rope: RopeConfig = RopeConfig(theta=1e4)
    full_rope: RopeConfig = RopeConfig(theta=1e6, proportional=True, rotary_fraction=0.25)
    rms_norm_eps: float = 1e-6
    final_logit_softcapping: float = 30.0
    max_position_embeddings: int = 131072
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    pad_token_id: int = 0
    eos_token_id: int = 1
    bos_token_id: int = 2

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_experts",
                     "moe_intermediate_size", "canvas_length", "max_position_embeddings"):  # fmt: skip
            value = getattr(self, name)
            require(isinstance(value, int) and value > 0, f"{name} must be a positive integer, got {value!r}")
        require(len(self.layers) > 0, "a model needs at least one layer, got none")
        require(self.layers[-1].is_full, "the last layer must be a full attention layer, got sliding")
        require(self.sliding_window >= 2, f"sliding_window must be at least 2, got {self.sliding_window}")
        require(
            1 <= self.top_k_experts <= self.num_experts,
            f"top_k_experts must lie in 1..num_experts ({self.num_experts}), got {self.top_k_experts}",
        )
        require(self.rms_norm_eps > 0, f"rms_norm_eps must be positive, got {self.rms_norm_eps}")
        require(
            self.final_logit_softcapping > 0,
            f"final_logit_softcapping must be positive, got {self.final_logit_softcapping}",
        )
        for layer in self.layers:
            require(
                self.num_attention_heads % layer.num_key_value_heads == 0,
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of the key-value heads "
                f"({layer.num_key_value_heads})",
            )
        for kind in ("sliding", "full"):
            widths = sorted({layer.head_dim for layer in self.layers if layer.kind == kind})
            require(len(widths) <= 1, f"all {kind} layers must share one head_dim (one rope table), got {widths}")

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def rope(self, kind: LayerKind) -> RopeConfig:
        """The rotary embedding of a layer kind."""
        return self.full_rope if kind == "full" else self.sliding_rope


def periodic_layers(
    num_layers: int, *, period: int, sliding: tuple[int, int], full: tuple[int, int]
) -> tuple[LayerConfig, ...]:
    """Layers where every `period`-th, and always the last, is full; pairs are (head_dim, num_key_value_heads)."""
    kinds: list[LayerKind] = ["full" if (i + 1) % period == 0 else "sliding" for i in range(num_layers)]
    kinds[-1] = "full"
    return tuple(
        LayerConfig(kind=kind, head_dim=shape[0], num_key_value_heads=shape[1])
        for kind in kinds
        for shape in (full if kind == "full" else sliding,)
    )
