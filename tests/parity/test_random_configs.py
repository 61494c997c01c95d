"""Random tiny architectures agree with transformers: several sequences a pass in chunks, against one at a time.

Each sequence lives the same story on both sides: prompt, two denoise steps, commit of the canvas, one more step.

The bar is 1e-5, or where a random model amplifies rounding more than that, three times what the oracle itself moves by
when its weights change in their last bit: two correct implementations are not closer to each other.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from presswork.cache.contiguous import SequenceCache
from presswork.config import LayerConfig, LayerKind, ModelConfig, RopeConfig
from presswork.models.transformer import Transformer
from presswork.testing import fixture_model
from tests.models.passes import Piece, canvas, capped_logits, ids, prompt, run_split, stored

if TYPE_CHECKING:
    from tests.parity.oracle import Oracle

TOLERANCE = 1e-5
TEMPERATURE = 0.7
NUM_CONFIGS, NUM_FAST = 20, 8


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _layers(rng: random.Random, num_heads: int) -> tuple[LayerConfig, ...]:
    shapes: dict[LayerKind, tuple[int, int]] = {
        "sliding": (2 * rng.randint(1, 10), rng.choice(_divisors(num_heads))),
        "full": (2 * rng.randint(1, 16), rng.choice(_divisors(num_heads))),
    }
    kinds: list[LayerKind] = [rng.choice(("sliding", "sliding", "full")) for _ in range(rng.randint(0, 4))]
    kinds.append("full")
    return tuple(LayerConfig(kind=k, head_dim=shapes[k][0], num_key_value_heads=shapes[k][1]) for k in kinds)


def random_config(seed: int) -> ModelConfig:
    """Every field drawn; the seed also walks the cases that must not be missed (one expert, all experts, untied)."""
    rng = random.Random(seed)
    num_heads = rng.randint(1, 6)
    num_experts = 1 if seed % 10 == 0 else rng.randint(2, 9)
    top_k = num_experts if seed % 5 == 0 else rng.randint(1, num_experts)
    full_rope = RopeConfig(
        theta=rng.choice((1e3, 1e6)), proportional=True, rotary_fraction=rng.choice((0.25, 0.5, 1.0)),
        factor=rng.choice((1.0, 1.0, 4.0)),
    )  # fmt: skip
    return ModelConfig(
        vocab_size=rng.randint(20, 90), hidden_size=rng.randint(5, 61), intermediate_size=rng.randint(3, 50),
        num_attention_heads=num_heads, layers=_layers(rng, num_heads), num_experts=num_experts, top_k_experts=top_k,
        moe_intermediate_size=rng.randint(1, 30), sliding_window=rng.randint(2, 9), canvas_length=rng.randint(1, 14),
        sliding_rope=RopeConfig(theta=rng.choice((1e2, 1e4)), factor=rng.choice((1.0, 1.0, 2.0))), full_rope=full_rope,
        rms_norm_eps=rng.choice((1e-6, 1e-4)), final_logit_softcapping=rng.choice((5.0, 30.0)),
        tie_word_embeddings=seed % 4 != 3,
    )  # fmt: skip


def describe(config: ModelConfig) -> str:
    """The architecture in a test id; pytest prints it where the test fails."""
    kinds = "".join("F" if layer.is_full else "s" for layer in config.layers)
    heads = "+".join(sorted({f"{a.head_dim}x{a.num_key_value_heads}" for a in config.layers}))
    tied = "tied" if config.tie_word_embeddings else "untied"
    return (
        f"{kinds}-V{config.vocab_size}-D{config.hidden_size}-I{config.intermediate_size}-H{config.num_attention_heads}"
        f"-kv{heads}-E{config.num_experts}k{config.top_k_experts}f{config.moe_intermediate_size}"
        f"-W{config.sliding_window}-L{config.canvas_length}-{tied}"
    )


@dataclass(frozen=True)
class Story:
    """The tokens of one sequence's life."""

    tokens: Tensor
    first: Tensor
    second: Tensor


@dataclass
class Answer:
    """What one implementation says to a story."""

    hidden: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    stored: list[tuple[Tensor, Tensor]] = field(default_factory=list)


def _stories(config: ModelConfig, lengths: Sequence[int], seed: int) -> list[Story]:
    def draw(num: int, offset: int) -> Tensor:
        return ids(num, seed + offset, 0, config.vocab_size)

    length = config.canvas_length
    return [Story(draw(num, i), draw(length, 100 + i), draw(length, 200 + i)) for i, num in enumerate(lengths)]


def _lengths(config: ModelConfig, rng: random.Random) -> list[int]:
    window = config.sliding_window
    around = [max(1, window + d) for d in (-2, -1, 0, 1, 2)]
    lengths = [0, 1, *rng.sample(around, 3), 2 * window + rng.randint(1, 5)]
    rng.shuffle(lengths)
    return lengths


def _consult(oracle: "Oracle", story: Story, beliefs: Sequence[Tensor] = ()) -> Answer:
    """The oracle's answer, prompt and commit each in one call; beliefs default to its own divided logits."""
    cache, answer = oracle.new_cache(), Answer()
    if len(story.tokens):
        answer.hidden.append(oracle.encode(story.tokens, cache))
    answer.logits.append(oracle.denoise(story.first, cache))
    belief = beliefs[0] if beliefs else answer.logits[0] / TEMPERATURE
    answer.logits.append(oracle.denoise(story.second, cache, belief))
    answer.hidden.append(oracle.encode(story.second, cache))
    belief = beliefs[1] if beliefs else answer.logits[1] / TEMPERATURE
    answer.logits.append(oracle.denoise(story.first, cache, belief))
    answer.stored = oracle.stored(cache)
    return answer


@dataclass(frozen=True)
class Step:
    """One move of one sequence: a chunk of prompt, or a canvas with the belief it is given."""

    tokens: Tensor
    is_canvas: bool
    belief: Tensor | None = None


def _chunks(rng: random.Random, tokens: Tensor) -> Iterator[Step]:
    while len(tokens):
        num = rng.randint(1, len(tokens))
        yield Step(tokens[:num], False)
        tokens = tokens[num:]


def _steps(story: Story, beliefs: Sequence[Tensor], rng: random.Random) -> Iterator[Step]:
    yield from _chunks(rng, story.tokens)
    yield Step(story.first, True)
    yield Step(story.second, True, beliefs[0])
    yield from _chunks(rng, story.second)
    yield Step(story.first, True, beliefs[1])


@dataclass
class Live:
    """A story while our model plays it."""

    cache: SequenceCache
    pending: list[Step]
    answer: Answer = field(default_factory=Answer)


def _piece(model: Transformer, live: Live) -> Piece:
    step = live.pending[0]
    if step.is_canvas:
        return canvas(model, live.cache, step.tokens, step.belief)
    return prompt(model, live.cache, step.tokens)


def _play(model: Transformer, lives: list[Live], rng: random.Random) -> None:
    """Advance random subsets of the sequences, one step each per pass, until all are through."""
    while any(live.pending for live in lives):
        ready = [live for live in lives if live.pending]
        chosen = [live for live in ready if rng.random() < 0.7] or [rng.choice(ready)]
        if model.own_encoder is not None:
            chosen = [live for live in chosen if live.pending[0].is_canvas == chosen[0].pending[0].is_canvas]
        for live, hidden in zip(chosen, run_split(model, [_piece(model, live) for live in chosen]), strict=True):
            if live.pending.pop(0).is_canvas:
                live.answer.logits.append(capped_logits(model, hidden))
            else:
                live.answer.hidden.append(hidden)
    for live in lives:
        live.answer.stored = stored(live.cache)


def _difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


def _differences(ours: Answer, theirs: Answer) -> dict[str, float]:
    found = {"hidden": _difference(torch.cat(ours.hidden), torch.cat(theirs.hidden))}
    for i, (mine, other) in enumerate(zip(ours.logits, theirs.logits, strict=True)):
        found[f"logits of step {i}"] = _difference(mine, other)
    for i, (mine, other) in enumerate(zip(ours.stored, theirs.stored, strict=True)):
        for name, a, b in zip("kv", mine, other, strict=True):
            found[f"cached {name} of layer {i}"] = _difference(a, b)
    return found


def _jittered(model: Transformer) -> Transformer:
    """The same model with every weight moved by up to its last bit."""
    other = fixture_model(model.config)
    draws = torch.Generator().manual_seed(0)
    for parameter in other.parameters():
        parameter.mul_(1 + 2.0**-23 * (2 * torch.rand(parameter.shape, generator=draws) - 1))
    return other


def _noise(jittered: "Oracle", stories: list[Story], answers: list[Answer], beliefs: list[list[Tensor]]) -> float:
    """How far last-bit changes of the weights move the oracle itself."""
    others = [_consult(jittered, story, given) for story, given in zip(stories, beliefs, strict=True)]
    return max(max(_differences(a, b).values()) for a, b in zip(others, answers, strict=True))


def _check(config: ModelConfig, build_oracle: Callable, lengths: Sequence[int], seed: int) -> None:
    rng, model = random.Random(seed), fixture_model(config)
    oracle = build_oracle(model)
    stories = _stories(config, lengths, seed)
    answers = [_consult(oracle, story) for story in stories]
    beliefs = [[logits / TEMPERATURE for logits in answer.logits] for answer in answers]
    noise = _noise(build_oracle(_jittered(model)), stories, answers, beliefs)
    lives = [
        Live(SequenceCache(config), list(_steps(story, given, rng)))
        for story, given in zip(stories, beliefs, strict=True)
    ]
    _play(model, lives, rng)
    for live, answer, length in zip(lives, answers, lengths, strict=True):
        found = _differences(live.answer, answer)
        worst = max(found, key=lambda what: found[what])
        message = f"prompt of {length}: {worst} differs by {found[worst]:.1e}, last-bit noise is {noise:.1e}, {config}"
        assert found[worst] < max(TOLERANCE, 3 * noise), message


CASES = [
    pytest.param(seed, id=describe(random_config(seed)), marks=[pytest.mark.slow] if seed >= NUM_FAST else [])
    for seed in range(NUM_CONFIGS)
]


@pytest.mark.slow
@pytest.mark.parametrize("seed", CASES)
def test_many_sequences_in_chunks_equal_the_oracle_one_by_one(seed: int, build_oracle: Callable) -> None:
    config = random_config(seed)
    lengths = _lengths(config, random.Random(500 + seed))
    _check(config, build_oracle, lengths, 1000 * (seed + 1))
