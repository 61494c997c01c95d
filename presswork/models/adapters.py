"""Low-rank adapters: what a pass adds to the products with a model's weights.

N rows, K inner width, M output columns, r rank, E experts, D model width, f width of an MLP.

    x ──▶ W ──────────────────────▶ + ──▶
     └──▶ dropout ─▶ A ─▶ B ─▶ scale ┘

An adapter has one set of factors for each mode; where the modes share weights it is usually the same set. Rows under
different adapters share a pass and its attention; each group of rows takes its layers' products on its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from presswork.config import require
from presswork.ops.gated_gelu import gated_gelu
from presswork.ops.linear import linear
from presswork.ops.moe import Factors


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Which weights get factors, and of what kind.

    Args:
        rank: of the factors.
        alpha: the factors' product is scaled by alpha / rank.
        dropout: probability that an input of the factors is dropped while training; not applied to experts.
        targets: patterns of upstream weight names, such as `*_proj` for every product but the router's or
            `*.self_attn.*_proj`; a weight gets factors where any of them matches its name.
    Source: Hu et al. 2021 (arXiv:2106.09685).
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("*_proj",)

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"rank must be at least 1, got {self.rank}")
        require(0 < self.alpha < float("inf"), f"alpha must be positive, got {self.alpha}")
        require(0 <= self.dropout < 1, f"dropout must lie in [0, 1), got {self.dropout}")
        require(len(self.targets) > 0, "targets must hold at least one pattern, got none")


class LowRank(nn.Module):
    """Factors of one upstream weight: rows start .. stop - 1 of ours, for experts one pair each.

    Args:
        a: [r, K] or [E, r, K]. b: [M, r] or [E, M, r].
        scale: of their product.
    """

    def __init__(self, start: int, stop: int, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0):
        super().__init__()
        self.start, self.stop, self.scale, self.dropout = start, stop, scale, dropout
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x: Float[Tensor, "N K"]) -> Float[Tensor, "N M"]:
        """What is added to the product with the weight."""
        x = F.dropout(x, self.dropout, self.training)
        return linear(linear(x, self.a), self.b) * self.scale

    def delta(self) -> Float[Tensor, "*E M K"]:
        """What is added to the weight itself, in float32."""
        return self.scale * (self.b.float() @ self.a.float())


class WeightAdapter(nn.Module):
    """The factors of one of our weights, which may be several upstream ones above each other."""

    def __init__(self, num_rows: int, parts: Sequence[LowRank]):
        super().__init__()
        self.num_rows = num_rows
        self.parts = nn.ModuleList(sorted(parts, key=lambda part: part.start))

    def __iter__(self) -> Iterator[LowRank]:
        return iter(self.parts)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "N K"]) -> Float[Tensor, "N M"]:
        """What is added to the product with our weight; zero for rows of it without factors."""
        pieces, end = [], 0
        for part in self:
            if part.start > end:
                pieces.append(x.new_zeros(x.shape[0], part.start - end))
            pieces.append(part(x))
            end = part.stop
        if end < self.num_rows:
            pieces.append(x.new_zeros(x.shape[0], self.num_rows - end))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)


class MLPAdapter(nn.Module):
    """Factors of a gated MLP; either weight may have none."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up: WeightAdapter | None = None
        self.down: WeightAdapter | None = None

    def forward(
        self, x: Float[Tensor, "N D"], gate_up: Float[Tensor, "F2 D"], down: Float[Tensor, "D f"]
    ) -> Float[Tensor, "N D"]:
        """The adapted MLP of rows x."""
        return adapted(gated_gelu(adapted(x, gate_up, self.gate_up)), down, self.down)


class ExpertsAdapter(nn.Module):
    """Factors of a layer's router and of each of its experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router: WeightAdapter | None = None
        self.gate_up: WeightAdapter | None = None
        self.down: WeightAdapter | None = None

    @property
    def has_experts(self) -> bool:
        return self.gate_up is not None or self.down is not None

    def routing(self, projection: Float[Tensor, "E D"]) -> Float[Tensor, "E D"]:
        """The router's projection; small enough to be added up."""
        if self.router is None:
            return projection
        return (projection.float() + sum(part.delta() for part in self.router)).to(projection.dtype)

    def factors(self) -> tuple[Factors | None, Factors | None]:
        """Those of gate_up and of down."""
        gate_up, down = (None if of is None else _expert_factors(of) for of in (self.gate_up, self.down))
        return gate_up, down


def _expert_factors(adapter: WeightAdapter) -> Factors:
    (part,) = adapter
    return part.a, part.b, part.scale


class LayerAdapter(nn.Module):
    """Factors of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv: WeightAdapter | None = None
        self.output: WeightAdapter | None = None
        self.mlp: MLPAdapter | None = None
        self.experts: ExpertsAdapter | None = None


class StackAdapter(nn.Module):
    """Factors of all layers in one mode."""

    def __init__(self, num_layers: int):
        super().__init__()
        self.layers = nn.ModuleList(LayerAdapter() for _ in range(num_layers))


class Adapter(nn.Module):
    """Factors for a model: of the canvas mode, of the causal mode (often the same), and of self-conditioning."""

    def __init__(self, decoder: StackAdapter, encoder: StackAdapter, self_conditioning: MLPAdapter | None):
        super().__init__()
        self.decoder, self.encoder, self.self_conditioning = decoder, encoder, self_conditioning

    @property
    def is_shared(self) -> bool:
        """Whether both modes have the same factors."""
        return self.decoder is self.encoder

    def layers(self, is_canvas: bool) -> nn.ModuleList:
        return (self.decoder if is_canvas else self.encoder).layers


@dataclass(frozen=True, slots=True)
class AdaptedRows:
    """Rows start .. stop - 1 of a pass; all of one mode where the adapter's modes differ. No adapter: the model's own.

    Args:
        is_canvas: their mode.
    """

    start: int
    stop: int
    adapter: Adapter | None
    is_canvas: bool


def adapted(
    x: Float[Tensor, "N K"], weight: Float[Tensor, "M K"], adapter: WeightAdapter | None
) -> Float[Tensor, "N M"]:
    """x weight^T, and what the factors add to it."""
    product = linear(x, weight)
    return product if adapter is None else product + adapter(x)
