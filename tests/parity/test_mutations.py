"""Every known mistake, made on purpose, must break the comparison with the oracle.

Numbers and names are those of the model's specification. It lists how far each mistake moves the encoder's hidden
states, the first step's logits and the self-conditioned logits of the fixture (prompt of 13, window of 6, beliefs
taken from the oracle); a mistake made here must reach half of that, and leave alone what it cannot touch.
All 24 can be expressed: most as other weights or another configuration of the same model, which holds for any
kernel; the rest by replacing a method of the model.

N rows, D model width, E experts, H query heads, n KV heads, h head width, S visible positions.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from presswork.cache.contiguous import LayerCache, SequenceCache
from presswork.config import ModelConfig
from presswork.models import attention as attention_module
from presswork.models import transformer as transformer_module
from presswork.models.attention import CachedAttention, Segment
from presswork.models.transformer import Attend, Experts, GatedMLP, PassRows, SelfConditioning, Transformer
from presswork.ops.attention.reference import attend
from presswork.ops.gated_gelu.reference import gated_gelu
from presswork.ops.moe.reference import mix_experts
from presswork.ops.norm.reference import rms_norm
from presswork.testing import fixture_model
from tests.models.passes import canvas, capped_logits, ids, prefill, run

LENGTH = 13
PROMPT, FIRST, SECOND = ids(LENGTH, 1), ids(8, 2, 0, 64), ids(8, 3, 0, 64)
TEMPERATURE = 0.7
TOLERANCE = 5e-5
BROKEN = 1e-4


class Readings(NamedTuple):
    """The three results that are compared."""

    encoder: Tensor
    first: Tensor
    self_conditioned: Tensor


@dataclass
class Mutant:
    """A model in which one mistake can be made."""

    model: Transformer
    patch: pytest.MonkeyPatch
    canvas_position: int | None = None

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def configure(self, **changes: object) -> None:
        """The same weights under another configuration."""
        state = self.model.state_dict()
        self.model = Transformer(replace(self.config, **changes)).requires_grad_(False)  # type: ignore[arg-type]
        self.model.load_state_dict(state)

    def weights(self, ending: str) -> Sequence[Tensor]:
        """All parameters whose name ends so."""
        found = [p for name, p in self.model.named_parameters() if name.endswith(ending)]
        assert found
        return found

    def read(self, belief: Tensor) -> Readings:
        cache, hidden = prefill(self.model, PROMPT)
        first = run(self.model, [canvas(self.model, cache, FIRST, None, self.canvas_position)])
        again = run(self.model, [canvas(self.model, cache, SECOND, belief, self.canvas_position)])
        return Readings(hidden, capped_logits(self.model, first), capped_logits(self.model, again))


Mutation = Callable[[Mutant], None]
Effect = tuple[float, float, float]
MISTAKES: list[Any] = []


def mistake(number: str, encoder: float, first: float, self_conditioned: float) -> Callable[[Mutation], Mutation]:
    """Register a mistake with the effects the specification lists; 0 means out of the mistake's reach."""

    def register(mutation: Mutation) -> Mutation:
        case = pytest.param(mutation, (encoder, first, self_conditioned), id=f"{number}-{mutation.__name__}")
        MISTAKES.append(case)
        return mutation

    return register


# Visibility


def _keep(mutant: Mutant, kept: Callable[[LayerCache], int | None]) -> None:
    original = SequenceCache.__init__

    def init(self: SequenceCache, config: ModelConfig) -> None:
        original(self, config)
        for layer in self.layers:
            layer.kept = None if layer.kept is None else kept(layer)

    mutant.patch.setattr(SequenceCache, "__init__", init)


@mistake("01", 0, 3.4, 6.7)
def canvas_sees_a_whole_window_of_prefix(mutant: Mutant) -> None:
    _keep(mutant, lambda layer: (layer.kept or 0) + 1)


@mistake("02", 0, 7.7, 6.1)
def canvas_sees_the_whole_prefix_in_sliding_layers(mutant: Mutant) -> None:
    _keep(mutant, lambda layer: None)


def _canvas_mask(mutant: Mutant, visible: Callable[[int, Tensor, Tensor], Tensor]) -> None:
    """visible(layer, row positions [N, 1], key positions [1, S]) -> [N, S] for canvas segments."""
    original = CachedAttention._segment

    def segment(self: CachedAttention, one: Segment, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not one.is_canvas:
            return original(self, one, layer, q, k, v)
        rows = slice(one.start, one.stop)
        view = one.cache.stage(layer, k[rows], v[rows])
        keys = view.first + torch.arange(view.k.shape[1])
        positions = one.cache.length + torch.arange(one.stop - one.start)
        return attend(q[rows], view.k, view.v, visible(layer, positions[:, None], keys[None, :]))

    mutant.patch.setattr(CachedAttention, "_segment", segment)


@mistake("03", 0, 6.6, 6.7)
def canvas_has_a_window_per_row(mutant: Mutant) -> None:
    config = mutant.config

    def visible(layer: int, rows: Tensor, keys: Tensor) -> Tensor:
        near = (rows - keys).abs() < config.sliding_window
        return near | torch.tensor(config.layers[layer].is_full)

    _canvas_mask(mutant, visible)


@mistake("04", 0, 8.1, 7.0)
def canvas_is_causal(mutant: Mutant) -> None:
    _canvas_mask(mutant, lambda layer, rows, keys: keys <= rows)


@mistake("05", 3.0, 4.9, 4.3)
def encoder_window_is_one_key_too_wide(mutant: Mutant) -> None:
    original = attention_module.causal_visibility

    def wider(num_rows: int, first_row: int, num_keys: int, first_key: int, window: int | None, device: Any) -> Any:
        return original(num_rows, first_row, num_keys, first_key, window and window + 1, device)

    mutant.patch.setattr(attention_module, "causal_visibility", wider)


@mistake("24", 0, 8.8, 8.8)
def canvas_positions_start_at_zero(mutant: Mutant) -> None:
    mutant.canvas_position = 0


# Attention


def _change_values(mutant: Mutant, layers: Callable[[bool], bool], values: Callable[..., Tensor]) -> None:
    """values(key or value heads before any norm, k_norm, eps) replaces v in layers(shares keys and values)."""
    original = transformer_module.split_norm_rope

    def changed(projected: Tensor, q_norm: Tensor, k_norm: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        num_heads, num_kv, eps = rest[-3:]
        q, k, v = original(projected, q_norm, k_norm, *rest)
        heads = projected.unflatten(-1, (-1, q_norm.shape[0]))
        if layers(heads.shape[1] == num_heads + num_kv):
            v = values(heads[:, -num_kv:], k_norm, eps)
        return q, k, v

    mutant.patch.setattr(transformer_module, "split_norm_rope", changed)


def _value_of_key(heads: Tensor, k_norm: Tensor, eps: float) -> Tensor:
    return rms_norm(rms_norm(heads, k_norm, eps), None, eps)


@mistake("07", 1.6, 2.6, 2.5)
def values_of_full_layers_come_after_the_key_norm(mutant: Mutant) -> None:
    _change_values(mutant, lambda shared: shared, _value_of_key)


@mistake("08", 1.6, 5.9, 3.5)
def values_have_no_norm(mutant: Mutant) -> None:
    _change_values(mutant, lambda shared: True, lambda heads, k_norm, eps: heads)


@mistake("09", 3.1, 7.6, 7.2)
def scores_are_divided_by_the_root_of_the_head_width(mutant: Mutant) -> None:
    for q_norm in mutant.weights("q_norm"):
        q_norm.mul_(q_norm.shape[0] ** -0.5)


@mistake("10", 3.1, 7.2, 5.3)
def rope_exponents_run_over_the_rotated_width(mutant: Mutant) -> None:
    rope = mutant.config.full_rope
    mutant.configure(full_rope=replace(rope, theta=rope.theta ** (1 / rope.rotary_fraction)))


@mistake("11", 2.7, 2.3, 2.1)
def full_layers_rotate_everything(mutant: Mutant) -> None:
    mutant.configure(full_rope=replace(mutant.config.full_rope, rotary_fraction=1.0))


# Experts and MLP


def _experts(
    self: Experts, raw: Tensor, normed: Tensor, adapter: None, *, renormalise: bool = True, scale_first: bool = False,
    mlp: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """The experts once more, with switches for the mistakes."""
    routed = rms_norm(raw, None, self.eps) * self.router_scale * raw.shape[-1] ** -0.5
    probabilities = torch.softmax(F.linear(routed, self.router), dim=-1)
    weights, experts = probabilities.topk(self.top_k, dim=-1)
    scale = self.per_expert_scale[experts]
    weights = weights * scale if scale_first else weights
    weights = weights / weights.sum(-1, keepdim=True) if renormalise else weights
    weights = weights if scale_first else weights * scale
    if mlp is None:
        return mix_experts(normed, weights, experts, self.gate_up, self.down)
    every = torch.stack([F.linear(mlp(F.linear(normed, g)), d) for g, d in zip(self.gate_up, self.down, strict=True)])
    return (every[experts, torch.arange(len(raw))[:, None]] * weights[..., None]).sum(1)


def _exact_gelu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate) * up


def _replace_experts(mutant: Mutant, **switches: Any) -> None:
    mutant.patch.setattr(Experts, "forward", functools.partialmethod(_experts, **switches))


@mistake("12", 0.7, 1.3, 0.7)
def chosen_experts_are_not_renormalised(mutant: Mutant) -> None:
    _replace_experts(mutant, renormalise=False)


@mistake("13", 2.7, 3.8, 3.1)
def per_expert_scale_is_dropped(mutant: Mutant) -> None:
    for scale in mutant.weights("per_expert_scale"):
        scale.fill_(1.0)


# The specification gives numbers for the dropped scale only; these were measured here.
@mistake("13b", 0.017, 0.043, 0.046)
def per_expert_scale_comes_before_renormalising(mutant: Mutant) -> None:
    _replace_experts(mutant, scale_first=True)


@mistake("14", 1.2, 3.1, 1.3)
def router_has_no_root_of_the_width(mutant: Mutant) -> None:
    for scale in mutant.weights("router_scale"):
        scale.mul_(mutant.config.hidden_size**0.5)


@mistake("15", 2.3, 5.1, 8.1)
def router_reads_the_normed_input_of_the_experts(mutant: Mutant) -> None:
    original = Experts.forward
    mutant.patch.setattr(Experts, "forward", lambda self, raw, normed, _: original(self, normed, normed))


@mistake("16", 2.4, 4.3, 6.2)
def gate_and_up_are_swapped(mutant: Mutant) -> None:
    for gate_up in mutant.weights("experts.gate_up"):
        gate_up.copy_(gate_up.roll(gate_up.shape[1] // 2, dims=1))


@mistake("17", 7e-4, 4e-3, 2e-3)
def gelu_is_exact(mutant: Mutant) -> None:
    _replace_experts(mutant, mlp=_exact_gelu)
    mutant.patch.setattr(
        GatedMLP, "forward", lambda self, x, _: F.linear(_exact_gelu(F.linear(x, self.gate_up)), self.down)
    )


@mistake("18", 2.6, 5.6, 6.2)
def experts_are_fed_the_mlp_norm(mutant: Mutant) -> None:
    for theirs, mlps in zip(mutant.weights("experts_norm"), mutant.weights("mlp_norm"), strict=True):
        theirs.copy_(mlps)


# Residual stream, embeddings and head


@mistake("06", 1.4, 1.1, 1.3)
def encoder_takes_the_scalars_of_the_decoder(mutant: Mutant) -> None:
    mutant.model.encoder_scalars.copy_(mutant.model.decoder_scalars)


@mistake("19", 0, 6.9, 0)
def self_conditioning_is_skipped_without_a_belief(mutant: Mutant) -> None:
    original = SelfConditioning.forward
    mutant.patch.setattr(
        SelfConditioning, "forward", lambda self, x, belief, _: x if belief is None else original(self, x, belief)
    )


@mistake("21", 1.8, 5.1, 4.0)
def layer_scalar_touches_the_branch_only(mutant: Mutant) -> None:
    # The branch ends in a weighted norm, so its weight can carry the scalar of the mode that a pass runs in.
    original = Transformer.forward

    def forward(self: Transformer, x: Tensor, rows: PassRows, attend: Attend) -> Tensor:
        scalars = self.decoder_scalars if bool(rows.is_canvas.all()) else self.encoder_scalars
        saved = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        for layer, scalar in zip(self.decoder.layers, scalars, strict=True):
            layer.output_norm.mul_(scalar)  # type: ignore[operator]
        scalars.fill_(1.0)
        result = original(self, x, rows, attend)
        self.load_state_dict(saved)
        return result

    mutant.patch.setattr(Transformer, "forward", forward)


@mistake("22", 6.7, 17, 12)
def norms_add_one_to_the_weight(mutant: Mutant) -> None:
    for norm in mutant.weights("norm"):
        norm.add_(1.0)


@mistake("23", 0, 0.1, 0.1)
def logits_have_no_softcap(mutant: Mutant) -> None:
    mutant.configure(final_logit_softcapping=1e6)


@pytest.fixture
def consult(build_oracle: Callable) -> Callable[[Transformer], Readings]:
    """The oracle's readings for a model's weights; its beliefs are those of its first step."""

    def read(model: Transformer) -> Readings:
        oracle = build_oracle(model)
        cache = oracle.new_cache()
        hidden, first = oracle.encode(PROMPT, cache), oracle.denoise(FIRST, cache)
        return Readings(hidden, first, oracle.denoise(SECOND, cache, first / TEMPERATURE))

    return read


def effects(found: Readings, expected: Readings) -> Effect:
    """Largest difference of each reading."""
    worst = [(a - b).abs().max().item() for a, b in zip(found, expected, strict=True)]
    return worst[0], worst[1], worst[2]


@pytest.mark.parametrize("restated", [False, True], ids=["the-model", "the-restated-experts"])
def test_without_a_mistake_the_comparison_holds(
    restated: bool, consult: Callable[[Transformer], Readings], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = consult(fixture_model())
    mutant = Mutant(fixture_model(), monkeypatch)
    if restated:
        _replace_experts(mutant, mlp=gated_gelu)
        _canvas_mask(mutant, lambda layer, rows, keys: keys >= 0 * rows)
        _change_values(mutant, lambda shared: True, lambda heads, k_norm, eps: rms_norm(heads, None, eps))
    assert max(effects(mutant.read(expected.first / TEMPERATURE), expected)) < TOLERANCE


@pytest.mark.parametrize(("mutation", "listed"), MISTAKES)
def test_a_mistake_breaks_the_comparison(
    mutation: Mutation, listed: Effect, consult: Callable[[Transformer], Readings], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = consult(fixture_model())
    mutant = Mutant(fixture_model(), monkeypatch)
    mutation(mutant)
    found = effects(mutant.read(expected.first / TEMPERATURE), expected)
    for effect, expected_effect in zip(found, listed, strict=True):
        assert (effect > max(0.5 * expected_effect, BROKEN)) if expected_effect else effect < BROKEN, (found, listed)


def test_20_an_unscaled_soft_embedding_breaks_the_comparison_where_eps_matters(
    consult: Callable[[Transformer], Readings], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The norm of the belief cancels any scale, so the mistake shows only where the embedding is as small as eps.
    model = fixture_model()
    model.decoder.embedding.mul_(1e-3)
    expected = consult(model)
    belief = expected.first / TEMPERATURE
    assert max(effects(Mutant(model, monkeypatch).read(belief), expected)) < TOLERANCE
    original = Transformer.embed_canvas
    monkeypatch.setattr(
        Transformer, "embed_canvas",
        lambda self, tokens, soft: original(self, tokens, None if soft is None else soft / self.embedding_scale),
    )  # fmt: skip
    found = effects(Mutant(model, monkeypatch).read(belief), expected)
    assert found[2] > BROKEN and max(found[:2]) < TOLERANCE
