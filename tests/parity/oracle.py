"""The reference implementation (transformers) built from our configuration and our weights, one sequence at a time.

P cached positions, L canvas, D model width, V vocabulary, n KV heads, S stored positions, h head width.
"""

from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor

from presswork.config import ModelConfig, RopeConfig
from presswork.models.transformer import Transformer
from presswork.weights.names import checkpoint_places

_TINY_VISION = dict(
    hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
    head_dim=8, patch_size=2, pooling_kernel_size=2, position_embedding_size=4,
)  # fmt: skip


def _rope_parameters(rope: RopeConfig) -> dict[str, Any]:
    parameters: dict[str, Any] = {"rope_theta": rope.theta}
    if rope.proportional:
        parameters |= {"rope_type": "proportional", "partial_rotary_factor": rope.rotary_fraction}
    else:
        parameters["rope_type"] = "default" if rope.factor == 1 else "linear"
    if rope.factor != 1:
        parameters["factor"] = rope.factor
    return parameters


def upstream_config(config: ModelConfig) -> Any:
    """The transformers configuration of the same architecture, in the released file's form."""
    full = config.layers[-1]
    sliding = next((layer for layer in config.layers if not layer.is_full), full)
    shares_heads = full.num_key_value_heads == sliding.num_key_value_heads
    text = dict(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_attention_heads,
        num_key_value_heads=sliding.num_key_value_heads, head_dim=sliding.head_dim, global_head_dim=full.head_dim,
        num_global_key_value_heads=None if shares_heads else full.num_key_value_heads,
        layer_types=["full_attention" if layer.is_full else "sliding_attention" for layer in config.layers],
        sliding_window=config.sliding_window, num_experts=config.num_experts, top_k_experts=config.top_k_experts,
        moe_intermediate_size=config.moe_intermediate_size, rms_norm_eps=config.rms_norm_eps,
        rope_parameters={
            "sliding_attention": _rope_parameters(config.sliding_rope),
            "full_attention": _rope_parameters(config.full_rope),
        },
        max_position_embeddings=config.max_position_embeddings, tie_word_embeddings=config.tie_word_embeddings,
        final_logit_softcapping=config.final_logit_softcapping, use_bidirectional_attention="vision",
        pad_token_id=config.pad_token_id, eos_token_id=config.eos_token_id, bos_token_id=config.bos_token_id,
    )  # fmt: skip
    return transformers.DiffusionGemmaConfig(
        text_config=text, vision_config=_TINY_VISION, canvas_length=config.canvas_length,
        tie_word_embeddings=config.tie_word_embeddings,
    )  # fmt: skip


def _build(model: Transformer, attention: str, experts: str) -> Any:
    config = upstream_config(model.config)
    config._attn_implementation, config._experts_implementation = attention, experts
    theirs = transformers.DiffusionGemmaForBlockDiffusion(config).eval().requires_grad_(False)
    # Converted tensor by tensor: casting the module would also round the rope frequencies.
    ours, state = model.state_dict(), theirs.state_dict(keep_vars=True)
    for tensor in state.values():
        tensor.data = tensor.data.to(model.dtype)
    for name, place in checkpoint_places(model.config).items():
        state[name].copy_(ours[place.parameter][place.start : place.stop])
    return theirs


class Oracle:
    """transformers with a model's weights, copied by upstream name.

    Args:
        attention: attention backend; only eager holds to 1e-5 in float32.
        experts: experts backend, "eager" or upstream's default "grouped_mm", which adds up in float32.
    """

    def __init__(self, model: Transformer, *, attention: str = "eager", experts: str = "eager"):
        self.model = _build(model, attention, experts)
        self.config = model.config

    def new_cache(self) -> Any:
        """An empty cache that a decoder can read before anything was encoded."""
        cache = transformers.DynamicCache(config=self.model.config.text_config)
        for i, layer in enumerate(self.config.layers):
            empty = torch.empty(1, layer.num_key_value_heads, 0, layer.head_dim, dtype=self.model.dtype)
            cache.update(empty, empty, i)
        return cache

    def encode(self, tokens: Int[Tensor, "P"], cache: Any) -> Float[Tensor, "P D"]:
        """Hidden states of causal rows. Mutates the cache."""
        return self.model.model.encoder(tokens[None], past_key_values=cache).last_hidden_state[0]

    def denoise(
        self, tokens: Int[Tensor, "L"], cache: Any, belief: Float[Tensor, "L V"] | None = None
    ) -> Float[Tensor, "L V"]:
        """Logits of one canvas step; belief is the previous step's divided logits."""
        previous = None if belief is None else belief[None]
        out = self.model(decoder_input_ids=tokens[None], past_key_values=cache, self_conditioning_logits=previous)
        return out.logits[0]

    def stored(self, cache: Any) -> list[tuple[Float[Tensor, "n S h"], Float[Tensor, "n S h"]]]:
        """Keys and values the cache holds, layer by layer."""
        return [(layer.keys[0], layer.values[0]) for layer in cache.layers]
