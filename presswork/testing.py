"""Helpers for tests: a tiny real model, and the parity fixture whose values follow from tensor names."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn import functional as F

from presswork.cache.contiguous import SequenceCache
from presswork.config import LayerConfig, ModelConfig
from presswork.diffusion.sampler import CanvasState, DiffusionRules, StepReading, advance, start_canvas
from presswork.models.attention import CachedAttention, Segment
from presswork.models.transformer import PassRows, Transformer
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


def tiny_model(**changes: object) -> Transformer:
    """The tiny model with the fixture's way of drawing weights."""
    return fixture_model(tiny_config(**changes))


def run_segment(
    model: Transformer, x: Float[Tensor, "N D"], cache: SequenceCache, *, is_canvas: bool
) -> Float[Tensor, "N D"]:
    """Final hidden rows of one sequence's pass: embedded prompt rows or a canvas, over its cache."""
    num, first = x.shape[0], cache.length
    rows = PassRows(positions=torch.arange(first, first + num), is_canvas=torch.full((num,), is_canvas))
    segment = Segment(start=0, stop=num, is_canvas=is_canvas, cache=cache)
    return model(x, rows, CachedAttention(model.config, [segment]))


def full_logits(model: Transformer, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
    """Softcapped float32 logits, for small vocabularies."""
    cap = model.config.final_logit_softcapping
    return cap * torch.tanh(F.linear(hidden, model.head).float() / cap)


@dataclass(slots=True)
class ReplayedNoise:
    """Noise that hands out one row of numbers drawn elsewhere; set before each use."""

    tokens: Int[Tensor, "L"]

    def initial_canvas(self, canvas: int, length: int, vocab_size: int) -> Int[Tensor, "L"]:
        return self.tokens

    def uniforms(self, canvas: int, step: int, length: int) -> Float64[Tensor, "L"]:
        raise AssertionError("a replayed stream brings its samples with it")

    def renoise(self, canvas: int, step: int, length: int, vocab_size: int) -> Int[Tensor, "L"]:
        return self.tokens


def replay_canvas(
    model: Transformer, caches: Sequence[SequenceCache], rules: DiffusionRules, generator: torch.Generator
) -> list[CanvasState]:
    """One canvas for every row in lockstep, consuming a torch generator as transformers' generate does.

    Order: one randint [B, L]; per step one multinomial over [B * L, V], then one randint [B, L]; rows that have
    finished consume too and are otherwise left alone.
    """
    num, length, vocab = len(caches), model.config.canvas_length, model.config.vocab_size
    first = torch.randint(0, vocab, (num, length), generator=generator)
    noises = [ReplayedNoise(row) for row in first]
    states = [start_canvas(noise, 0, length, vocab) for noise in noises]
    while not all(state.finished for state in states):
        step = max(state.step for state in states)
        readings = [
            None if s.finished else _plain_reading(model, c, s, rules) for s, c in zip(states, caches, strict=True)
        ]
        flat = torch.full((length, vocab), 1.0 / vocab)
        weights = torch.cat([flat if r is None else r[1] for r in readings])
        samples = torch.multinomial(weights, 1, generator=generator).view(num, length)
        fresh = torch.randint(0, vocab, (num, length), generator=generator)
        for row, reading in enumerate(readings):
            if reading is not None:
                noises[row].tokens = fresh[row]
                advance(states[row], replace(reading[0], sample=samples[row]), rules, noises[row], vocab)
                assert states[row].step == step + 1
    return states


def _plain_reading(
    model: Transformer, cache: SequenceCache, state: CanvasState, rules: DiffusionRules
) -> tuple[StepReading, Float[Tensor, "L V"]]:
    """A step's reading over full logits, and the distribution to sample from."""
    hidden = run_segment(model, model.embed_canvas(state.tokens, state.belief), cache, is_canvas=True)
    log_p = torch.log_softmax(full_logits(model, hidden) / rules.schedule.temperature(state.step), dim=-1)
    p = log_p.exp()
    reading = StepReading(
        argmax=log_p.argmax(-1),
        sample=state.tokens,
        entropy=-(p * log_p).sum(-1),
        max_logprob=log_p.amax(-1),
        soft_embedding=p.to(model.dtype) @ model.decoder.embedding,
    )
    return reading, p


def replay_generate(
    model: Transformer,
    prompts: Int[Tensor, "B P"],
    rules: DiffusionRules,
    *,
    max_tokens: int,
    seed: int,
    eos_ids: Sequence[int] = (),
    pad_id: int | None = None,
) -> tuple[Int[Tensor, "B T"], list[int]]:
    """(new tokens of every row, denoise steps of each canvas) with transformers' random stream and padding rules.

    Whole canvases, as the reference gives them: nothing is cut at max_tokens; after a row's first end token only pads.
    """
    generator = torch.Generator().manual_seed(seed)
    caches = [SequenceCache(model.config) for _ in prompts]
    chunk, done, steps, canvases = prompts, torch.zeros(len(caches), dtype=torch.bool), [], []
    for _ in range(-(-max_tokens // model.config.canvas_length)):
        for row, cache in zip(chunk, caches, strict=True):
            run_segment(model, model.embed_prompt(row), cache, is_canvas=False)
        states = replay_canvas(model, caches, rules, generator)
        steps.append(max(state.step for state in states))
        chunk = torch.stack([state.argmax for state in states])
        is_end = torch.isin(chunk, torch.tensor(list(eos_ids), dtype=torch.int64))
        hit, before = is_end.any(1), done
        done = done | hit
        if pad_id is not None and done.any():
            after_end = is_end.long().cumsum(1) - is_end.long() > 0
            chunk = torch.where(after_end | before[:, None], pad_id, chunk)
        canvases.append(chunk)
        if done.all():
            break
    return torch.cat(canvases, 1), steps
