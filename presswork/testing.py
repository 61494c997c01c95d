"""Helpers for tests: a tiny real model, and the parity fixture whose values follow from tensor names."""

import zlib
from dataclasses import replace

import torch
from torch import Tensor

from presswork.config import LayerConfig, ModelConfig
from presswork.models.transformer import Transformer
from presswork.weights.names import checkpoint_places


def tiny_config(**changes: object) -> ModelConfig:
    """2 layers, D=16, V=64, 4 experts; the parity fixture's 4 layers of 48 are `fixture_config`."""
    base = ModelConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_attention_heads=2,
        layers=(
            LayerConfig(kind="sliding", head_dim=8, num_key_value_heads=1),
            LayerConfig(kind="full", head_dim=16, num_key_value_heads=1),
        ),
        num_experts=4, top_k_experts=2, moe_intermediate_size=8, sliding_window=6, canvas_length=8,
        max_position_embeddings=512,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def fixture_config(**changes: object) -> ModelConfig:
    """The model of the parity fixture: 4 layers, both kinds, odd sizes, window 6, canvas 8."""
    sliding = LayerConfig(kind="sliding", head_dim=16, num_key_value_heads=2)
    full = LayerConfig(kind="full", head_dim=32, num_key_value_heads=1)
    base = ModelConfig(
        vocab_size=64, hidden_size=48, intermediate_size=40, num_attention_heads=4, layers=(sliding, full) * 2,
        num_experts=6, top_k_experts=2, moe_intermediate_size=24, sliding_window=6, canvas_length=8,
        max_position_embeddings=512,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def fixture_value(name: str, shape: tuple[int, ...], width: float = 1.0) -> Tensor:
    """The fixture's tensor of an upstream name: every value that starts at 1 is moved away from it."""
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("layer_scalar", "scale", "per_expert_scale") or ("norm" in name and leaf == "weight"):
        return 0.5 + drawn
    if "embed_tokens" in name:
        return drawn - 0.5
    return (drawn - 0.5) * (width / shape[-1] ** 0.5)


def fixture_model(config: ModelConfig | None = None, *, peak: float = 1.0, width: float = 1.0) -> Transformer:
    """A model whose tensors follow from their upstream names; peak scales the final norm (more confident logits)."""
    config = config or fixture_config()
    model = Transformer(config).requires_grad_(False)
    state = model.state_dict()
    for name, place in checkpoint_places(config).items():
        state[place.parameter][place.start : place.stop] = fixture_value(name, place.shape, width)
    state["decoder.norm"].mul_(peak)
    return model.eval()
