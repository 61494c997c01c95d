"""The DiffusionGemma transformer: one stack of layers with a causal and a canvas mode.

N rows of all sequences in a pass, D model width, H query heads, n KV heads, h head width, V vocabulary, E experts.

Rows of several sequences lie one after the other; every operation but attention treats rows alone. What a row
may look at, and where keys and values are kept, is the affair of the `Attend` function a pass is given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from presswork.config import LayerConfig, LayerKind, ModelConfig
from presswork.models.adapters import AdaptedRows, Adapter, ExpertsAdapter, LayerAdapter, MLPAdapter, adapted
from presswork.ops.gated_gelu import gated_mlp
from presswork.ops.moe import mix_adapted_experts, mix_experts, route
from presswork.ops.norm import join_branches, residual_norm, rms_norm
from presswork.ops.qkv import split_norm_rope
from presswork.ops.rope import rope_frequencies, rope_table

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer index, q [N, H, h], k [N, n, h], v [N, n, h]) -> attention output [N, H, h]."""

Observe = Callable[[int, Tensor], None]
"""(layer index, residual stream [N, D] that the layer's router reads)."""

MixExperts = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(normed rows [N, D], weights [N, k], expert ids [N, k], gate_up, down) -> each row's sum over its experts [N, D]."""

RopeTables = dict[LayerKind, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows start .. stop - 1 of a pass, and what one layer adds for them."""

    start: int
    stop: int
    adapter: LayerAdapter | None

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)


def _weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRows:
    """The rows of one pass through the stack.

    Args:
        positions: absolute position of each row.
        is_canvas: rows in canvas mode take the decoder's layer scalars, the others the encoder's.
        output_rows: rows whose final state is wanted; the last layer skips its MLP and experts for the rest.
            None means all.
        adapters: which adapter each stretch of rows is under, in order and without gaps; None puts all rows under the
            model's own.
    """

    positions: Int[Tensor, "N"]
    is_canvas: Bool[Tensor, "N"]
    output_rows: Int[Tensor, "M"] | None = None
    adapters: Sequence[AdaptedRows] | None = None


class Attention(nn.Module):
    """Fused projections and norms of one layer's attention; full layers share keys and values."""

    def __init__(self, config: ModelConfig, layer: LayerConfig):
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_attention_heads, layer.num_key_value_heads
        num_fused = self.num_heads + self.num_kv_heads * (1 if layer.is_full else 2)
        self.qkv = _weight(num_fused * layer.head_dim, config.hidden_size)
        self.output = _weight(config.hidden_size, self.num_heads * layer.head_dim)
        self.q_norm, self.k_norm = _weight(layer.head_dim), _weight(layer.head_dim)


class GatedMLP(nn.Module):
    """gelu(x G^T) * (x U^T), projected back; G and U are stored one above the other."""

    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.gate_up, self.down = _weight(2 * width, hidden_size), _weight(hidden_size, width)

    def forward(self, x: Float[Tensor, "N D"], adapter: MLPAdapter | None = None) -> Float[Tensor, "N D"]:
        return gated_mlp(x, self.gate_up, self.down) if adapter is None else adapter(x, self.gate_up, self.down)


class Experts(nn.Module):
    """The router and the expert weights of one layer.

    `mix` sums a row's experts. A trainer may put another function with the same result in its place, such as one that
    computes every expert for every row, which trains small mixtures faster.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        num, width, hidden = config.num_experts, config.moe_intermediate_size, config.hidden_size
        self.top_k, self.eps = config.top_k_experts, config.rms_norm_eps
        self.mix: MixExperts = mix_experts
        self.router_scale, self.router = _weight(hidden), _weight(num, hidden)
        self.per_expert_scale = _weight(num)
        self.gate_up, self.down = _weight(num, 2 * width, hidden), _weight(num, hidden, width)

    def forward(
        self, raw: Float[Tensor, "N D"], normed: Float[Tensor, "N D"], adapter: ExpertsAdapter | None = None
    ) -> Float[Tensor, "N D"]:
        """Route by the raw residual, compute on the normed one."""
        router = self.router if adapter is None else adapter.routing(self.router)
        weights, experts = route(raw, self.router_scale, router, self.per_expert_scale, self.top_k, self.eps)
        if adapter is not None and adapter.has_experts:
            return mix_adapted_experts(normed, weights, experts, self.gate_up, self.down, *adapter.factors())
        return self.mix(normed, weights, experts, self.gate_up, self.down)


class TransformerLayer(nn.Module):
    """Attention, then a dense MLP and experts side by side, each between two norms."""

    def __init__(self, config: ModelConfig, index: int):
        super().__init__()
        self.index, self.eps = index, config.rms_norm_eps
        self.kind: LayerKind = config.layers[index].kind
        self.attention = Attention(config, config.layers[index])
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)
        self.experts = Experts(config)
        width = config.hidden_size
        self.attention_norm = _weight(width)
        self.attention_output_norm = _weight(width)
        self.mlp_norm = _weight(width)
        self.mlp_output_norm = _weight(width)
        self.experts_norm = _weight(width)
        self.experts_output_norm = _weight(width)
        self.output_norm = _weight(width)

    def forward(
        self, x: Float[Tensor, "N D"], rope: RopeTables, attend: Attend, scale: Float[Tensor, "N"],
        output_rows: Int[Tensor, "M"] | None = None, observe: Observe | None = None,
        groups: Sequence[RowGroup] = (),
    ) -> Float[Tensor, "M D"]:  # fmt: skip
        """The next residual stream; with output_rows only those rows of it."""
        cos, sin = rope[self.kind]
        if len(groups) <= 1:
            adapter = groups[0].adapter if groups else None
            mixed = attend(self.index, *self.project(x, cos, sin, adapter)).flatten(1)
            if output_rows is not None:
                x, mixed, scale = x[output_rows], mixed[output_rows], scale[output_rows]
            return self._finish_observed(x, mixed, scale, observe, adapter)
        parts = [self.project(x[g.rows], cos[g.rows], sin[g.rows], g.adapter) for g in groups]
        q, k, v = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        mixed = attend(self.index, q, k, v).flatten(1)
        wanted = [g.rows for g in groups]
        if output_rows is not None:
            wanted = [output_rows[(output_rows >= g.start) & (output_rows < g.stop)] for g in groups]
        return torch.cat(
            [
                self._finish_observed(x[rows], mixed[rows], scale[rows], observe, g.adapter)
                for rows, g in zip(wanted, groups, strict=True)
            ]
        )

    def _finish_observed(
        self, x: Tensor, mixed: Tensor, scale: Tensor, observe: Observe | None, adapter: LayerAdapter | None
    ) -> Tensor:
        if observe is None:
            return self.finish(x, mixed, scale, adapter)
        y = self.join(x, mixed, adapter)
        observe(self.index, y)
        return self.mix(y, scale, adapter)

    def project(
        self, x: Float[Tensor, "N D"], cos: Float[Tensor, "N half"], sin: Float[Tensor, "N half"],
        adapter: LayerAdapter | None = None,
    ) -> tuple[Float[Tensor, "N H h"], Float[Tensor, "N n h"], Float[Tensor, "N n h"]]:  # fmt: skip
        """Queries, keys and values: everything before attention."""
        attention, eps = self.attention, self.eps
        normed = rms_norm(x, self.attention_norm, eps)
        projected = adapted(normed, attention.qkv, None if adapter is None else adapter.qkv)
        return split_norm_rope(
            projected, attention.q_norm, attention.k_norm, cos, sin, attention.num_heads, attention.num_kv_heads, eps
        )

    def finish(
        self, x: Float[Tensor, "N D"], mixed: Float[Tensor, "N P"], scale: Float[Tensor, "N"],
        adapter: LayerAdapter | None = None,
    ) -> Float[Tensor, "N D"]:  # fmt: skip
        """Everything after attention."""
        return self.mix(self.join(x, mixed, adapter), scale, adapter)

    def join(
        self, x: Float[Tensor, "N D"], mixed: Float[Tensor, "N P"], adapter: LayerAdapter | None = None
    ) -> Float[Tensor, "N D"]:
        """The residual stream with attention's output projected and added."""
        projected = adapted(mixed, self.attention.output, None if adapter is None else adapter.output)
        return residual_norm(x, projected, self.attention_output_norm, self.eps)

    def mix(
        self, y: Float[Tensor, "N D"], scale: Float[Tensor, "N"], adapter: LayerAdapter | None = None
    ) -> Float[Tensor, "N D"]:
        """Dense MLP and experts side by side, and the layer scalar."""
        eps = self.eps
        dense = self.mlp(rms_norm(y, self.mlp_norm, eps), None if adapter is None else adapter.mlp)
        sparse = self.experts(y, rms_norm(y, self.experts_norm, eps), None if adapter is None else adapter.experts)
        return join_branches(
            y, dense, self.mlp_output_norm, sparse, self.experts_output_norm, self.output_norm, eps, scale
        )


class Stack(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embedding = _weight(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TransformerLayer(config, i) for i in range(config.num_layers))
        self.norm = _weight(config.hidden_size)


class SelfConditioning(nn.Module):
    """Mixes the previous step's belief into the canvas embeddings; always applied, also without a belief."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.eps = config.rms_norm_eps
        self.norm = _weight(config.hidden_size)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)

    def forward(
        self, x: Float[Tensor, "N D"], belief: Float[Tensor, "N D"] | None, adapter: MLPAdapter | None = None
    ) -> Float[Tensor, "N D"]:
        """Unweighted norm of x + mlp(norm(belief)); a missing belief contributes exactly zero."""
        if belief is not None:
            x = x + self.mlp(rms_norm(belief, self.norm, self.eps), adapter)
        return rms_norm(x, None, self.eps)


class Transformer(nn.Module):
    """Encoder (causal) and decoder (canvas) modes over one stack, or two stacks where the checkpoint is untied.

    The layer scalars of the two modes are separate even when everything else is shared. `adapter`, where there is one,
    is what all rows are under unless a pass says otherwise: the one that is being trained.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.decoder = Stack(config)
        self.own_encoder = None if config.tie_word_embeddings else Stack(config)
        self.own_head = None if config.tie_word_embeddings else _weight(config.vocab_size, config.hidden_size)
        self.self_conditioning = SelfConditioning(config)
        self.adapter: Adapter | None = None
        self.encoder_scalars: Tensor
        self.decoder_scalars: Tensor
        self.register_buffer("encoder_scalars", torch.ones(config.num_layers))
        self.register_buffer("decoder_scalars", torch.ones(config.num_layers))

    @property
    def encoder(self) -> Stack:
        return self.own_encoder if self.own_encoder is not None else self.decoder

    @property
    def head(self) -> Float[Tensor, "V D"]:
        """The vocabulary head's weight."""
        return self.own_head if self.own_head is not None else self.decoder.embedding

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.embedding.dtype

    @property
    def embedding_scale(self) -> float:
        """sqrt(D), rounded to the weight dtype."""
        return torch.tensor(self.config.hidden_size**0.5).to(self.dtype).item()

    def embed_prompt(self, ids: Int[Tensor, "N"]) -> Float[Tensor, "N D"]:
        """Scaled embeddings for causal rows."""
        return F.embedding(ids, self.encoder.embedding) * self.embedding_scale

    def embed_canvas(
        self, ids: Int[Tensor, "N"], soft_embedding: Float[Tensor, "N D"] | None, adapter: Adapter | None = None
    ) -> Float[Tensor, "N D"]:
        """Canvas embeddings with the belief of the previous step.

        Args:
            soft_embedding: softmax(previous logits) times the embedding, unscaled; None or zero rows in the first step.
            adapter: None is the model's own, if it has one.
        """
        x = F.embedding(ids, self.decoder.embedding) * self.embedding_scale
        belief = None if soft_embedding is None else soft_embedding * self.embedding_scale
        adapter = adapter or self.adapter
        return self.self_conditioning(x, belief, None if adapter is None else adapter.self_conditioning)

    def rope_tables(self, positions: Int[Tensor, "N"]) -> RopeTables:
        """(cos, sin) for each layer kind in use."""
        tables: RopeTables = {}
        for layer in self.config.layers:
            if layer.kind not in tables:
                frequencies = rope_frequencies(self.config.rope(layer.kind), layer.head_dim)
                tables[layer.kind] = rope_table(frequencies, positions, self.dtype)
        return tables

    def forward(
        self, x: Float[Tensor, "N D"], rows: PassRows, attend: Attend, observe: Observe | None = None
    ) -> Float[Tensor, "M D"]:
        """Final hidden state (after the last norm) of the wanted rows.

        Args:
            x: embedded rows, from embed_prompt and embed_canvas.
            observe: shown what each layer's router reads; a layer that is recomputed for its gradient shows it again.
        Source: spec of the released model, 3.2 to 3.5.
        """
        rope = self.rope_tables(rows.positions)
        is_canvas = rows.is_canvas
        if self.own_encoder is not None and bool(is_canvas.any()) and not bool(is_canvas.all()):
            raise ValueError("an untied model runs canvas rows and causal rows in separate passes")
        stack = self.decoder if self.own_encoder is None or bool(is_canvas.all()) else self.encoder
        last = self.config.num_layers - 1
        scales = torch.where(is_canvas, self.decoder_scalars[:, None], self.encoder_scalars[:, None]).unbind()
        adapters = rows.adapters
        if adapters is None:
            adapters = self._own_adapter(is_canvas)
        for i, (layer, scale) in enumerate(zip(stack.layers, scales, strict=True)):
            groups = [_at_layer(group, i) for group in adapters]
            x = layer(x, rope, attend, scale, rows.output_rows if i == last else None, observe, groups)
        return rms_norm(x, stack.norm, self.config.rms_norm_eps)

    def _own_adapter(self, is_canvas: Bool[Tensor, "N"]) -> list[AdaptedRows]:
        """All rows under the model's own adapter; none where it has none."""
        if self.adapter is None:
            return []
        all_canvas = bool(is_canvas.all())
        if not self.adapter.is_shared and not all_canvas and bool(is_canvas.any()):
            raise ValueError("an adapter whose modes differ takes canvas rows and causal rows in separate groups")
        return [AdaptedRows(0, is_canvas.shape[0], self.adapter, all_canvas)]


def _at_layer(group: AdaptedRows, index: int) -> RowGroup:
    layer = None if group.adapter is None else group.adapter.layers(group.is_canvas)[index]
    return RowGroup(group.start, group.stop, layer)  # type: ignore[arg-type]
