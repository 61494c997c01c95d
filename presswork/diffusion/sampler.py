"""One canvas from noise to text, a denoise step at a time; whoever runs the model calls it between passes.

L canvas, D model width, V vocabulary, P pinned positions.

    canvas, belief ──model──▶ Reading ──accept──▶ keep samples or renoise ──▶ next canvas, belief
                                 └──converged?──▶ the arg-max canvas is the result
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from presswork.diffusion.accept import AcceptRule
from presswork.diffusion.noise import Noise
from presswork.diffusion.schedule import TemperatureSchedule
from presswork.diffusion.stopping import StableAndConfidentRule


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReading:
    """What a step needs from the vocabulary head for one canvas, all under the step's temperature.

    Args:
        num_kept: positions to go on with, where a text's end is certain; the others are dropped. None keeps all.
    """

    argmax: Int[Tensor, "L"]
    sample: Int[Tensor, "L"]
    entropy: Float[Tensor, "L"]
    max_logprob: Float[Tensor, "L"]
    soft_embedding: Float[Tensor, "L D"] | None
    num_kept: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionRules:
    """Schedule, accept rule and stop rule of a request; no stop rule means the whole step budget is spent."""

    schedule: TemperatureSchedule
    accept: AcceptRule
    stop: StableAndConfidentRule | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """Positions of a canvas that are held to given tokens.

    Args:
        positions: in the canvas, each at most once.
        tokens: what is held there.
        embeddings: of those tokens, unscaled: what a model that is certain of them believes.
    """

    positions: Int[Tensor, "P"]
    tokens: Int[Tensor, "P"]
    embeddings: Float[Tensor, "P D"]


@dataclass(slots=True, kw_only=True)
class CanvasState:
    """A canvas between two steps.

    Args:
        index: which canvas of the request.
        tokens: what the model reads next; the result is `argmax`, never this.
        belief: soft embedding of the previous step, None before the first.
        step: steps done, those of the schedule that were left out because the canvas started from a text among them.
        argmax: the draft after the latest step.
        entropy: of the latest step, per position, in nats.
        accepted: positions whose sample the latest step kept.
        settled_step: step (1, 2, ...) since which each position's arg-max has not changed.
        history: arg-max canvases of earlier steps, oldest first, as many as the stop rule wants.
        finished: converged, or out of steps.
        pins: positions that hold their tokens throughout.
        given: the text the canvas started from, -1 where it started from noise.
        first_step: steps of the schedule that were left out.
        num_dropped: positions behind a certain end that were dropped; the text then ends within the others.
        num_held: leading positions that hold their arg-max from now on, because it has become text.
    """

    index: int
    tokens: Int[Tensor, "L"]
    belief: Float[Tensor, "L D"] | None = None
    step: int = 0
    argmax: Int[Tensor, "L"]
    entropy: Float[Tensor, "L"]
    accepted: Bool[Tensor, "L"]
    settled_step: Int[Tensor, "L"]
    history: list[Int[Tensor, "L"]] = field(default_factory=list)
    converged: bool = False
    finished: bool = False
    pins: Pins | None = None
    given: Int[Tensor, "L"] | None = None
    first_step: int = 0
    num_dropped: int = 0
    num_held: int = 0

    @property
    def num_steps(self) -> int:
        """Denoise steps taken."""
        return self.step - self.first_step

    def num_settled(self, num_steps: int, entropy: float) -> int:
        """Leading positions of at most this entropy whose arg-max has not changed for so many steps."""
        settled = (self.entropy <= entropy) & (self.num_steps - self.settled_step >= num_steps)
        return int(settled.long().cumprod(0).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A canvas that does not start from noise alone.

    Args:
        given: tokens to start from, -1 for noise.
        is_noised: positions that start from noise although a token is given.
        first_step: steps of the schedule to leave out: a canvas with less noise is further along in it.
    """

    given: Int[Tensor, "L"]
    is_noised: Bool[Tensor, "L"]
    first_step: int


def start_canvas(
    noise: Noise, index: int, length: int, vocab_size: int, device: torch.device | str = "cpu",
    pins: Pins | None = None, start: Start | None = None,
) -> CanvasState:  # fmt: skip
    """A canvas of uniform random tokens, given and pinned ones in their places, with nothing believed yet."""
    tokens = noise.initial_canvas(index, length, vocab_size).to(device)
    if start is not None:
        tokens = torch.where((start.given < 0) | start.is_noised, tokens, start.given)
    tokens = _held(tokens, pins)
    return CanvasState(
        index=index,
        tokens=tokens,
        argmax=tokens,
        entropy=torch.full((length,), float("inf"), device=device),
        accepted=torch.zeros(length, dtype=torch.bool, device=device),
        settled_step=torch.zeros(length, dtype=torch.int64, device=device),
        pins=pins,
        given=None if start is None else start.given,
        first_step=0 if start is None else start.first_step,
        step=0 if start is None else start.first_step,
    )


def advance(state: CanvasState, reading: StepReading, rules: DiffusionRules, noise: Noise, vocab_size: int) -> None:
    """Take one step's reading: accept, renoise, decide whether the canvas is finished. Mutates the state.

    Samples and acceptance only shape the model's next input; an accepted token has to be accepted again. Whatever the
    model reads at a pinned position, it is certain of the pinned token, and the accept rule does not see it. Noise is
    drawn for every position, so what is pinned changes no other position's.
    """
    length = state.tokens.shape[0]
    if state.pins is not None:
        reading = _certain(reading, state.pins)
    accepted = _accepted(rules.accept, reading, state.pins)
    fresh = noise.renoise(state.index, state.step, length, vocab_size).to(state.tokens.device)
    state.step += 1
    changed = reading.argmax != state.argmax if state.num_steps > 1 else torch.ones_like(accepted)
    state.settled_step = torch.where(changed, state.num_steps, state.settled_step)
    if rules.stop is not None:
        # What was dropped is certain, and counts as that.
        entropy = torch.nn.functional.pad(reading.entropy, (0, state.num_dropped))
        state.converged = rules.stop.converged(reading.argmax, state.history, entropy)
        state.history = [*state.history, reading.argmax][-max(1, rules.stop.stability_threshold) :]
    state.finished = state.converged or state.step == rules.schedule.num_steps
    state.tokens = torch.where(accepted, reading.sample, fresh)
    state.argmax, state.entropy, state.accepted = reading.argmax, reading.entropy, accepted
    state.belief = reading.soft_embedding
    if reading.num_kept is not None and reading.num_kept < length:
        _drop(state, reading.num_kept)


def hold(state: CanvasState, num: int, embedding: Float[Tensor, "V D"]) -> None:
    """Hold the arg-max of the first so many positions from now on, beside what is pinned. Mutates the state.

    The next pass reads those tokens already, and is certain of them.
    """
    positions = torch.arange(num, device=state.argmax.device)
    tokens = state.argmax[:num]
    state.tokens = torch.cat([tokens, state.tokens[num:]])
    if state.belief is not None:
        state.belief = torch.cat([embedding[tokens].to(state.belief.dtype), state.belief[num:]])
    if state.pins is not None:
        behind = state.pins.positions >= num
        positions = torch.cat([positions, state.pins.positions[behind]])
        tokens = torch.cat([tokens, state.pins.tokens[behind]])
    state.pins = Pins(positions=positions, tokens=tokens, embeddings=embedding[tokens])
    state.num_held = num


def _drop(state: CanvasState, num_kept: int) -> None:
    """Leave out the positions behind the first so many. Mutates the state."""
    kept = slice(num_kept)
    state.num_dropped += len(state.tokens) - num_kept
    state.tokens, state.argmax, state.entropy = state.tokens[kept], state.argmax[kept], state.entropy[kept]
    state.accepted, state.settled_step = state.accepted[kept], state.settled_step[kept]
    state.history = [old[kept] for old in state.history]
    state.belief = None if state.belief is None else state.belief[kept]
    state.given = None if state.given is None else state.given[kept]
    if state.pins is not None:
        held = state.pins.positions < num_kept
        pins = state.pins
        state.pins = Pins(positions=pins.positions[held], tokens=pins.tokens[held], embeddings=pins.embeddings[held])


def _accepted(rule: AcceptRule, reading: StepReading, pins: Pins | None) -> Bool[Tensor, "L"]:
    """What the rule accepts of the free positions, and all pinned ones."""
    if pins is None:
        return rule.accept(reading.entropy, reading.max_logprob)
    accepted = torch.ones_like(reading.entropy, dtype=torch.bool)
    if pins.positions.numel() < accepted.numel():
        free = accepted.index_fill(0, pins.positions, False).nonzero()[:, 0]
        accepted[free] = rule.accept(reading.entropy[free], reading.max_logprob[free])
    return accepted


def _certain(reading: StepReading, pins: Pins) -> StepReading:
    """The reading of a model that is certain of the pinned tokens; pure."""
    soft = reading.soft_embedding
    return replace(
        reading,
        argmax=_held(reading.argmax, pins),
        sample=_held(reading.sample, pins),
        entropy=reading.entropy.index_fill(0, pins.positions, 0.0),
        max_logprob=reading.max_logprob.index_fill(0, pins.positions, 0.0),
        soft_embedding=None if soft is None else soft.index_copy(0, pins.positions, pins.embeddings.to(soft.dtype)),
    )


def _held(tokens: Int[Tensor, "L"], pins: Pins | None) -> Int[Tensor, "L"]:
    """The tokens with the pinned ones in their places; pure."""
    return tokens if pins is None else tokens.index_copy(0, pins.positions, pins.tokens)
