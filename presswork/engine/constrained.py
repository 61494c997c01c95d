"""Denoise steps and next tokens of requests that are kept to a language.

One sweep gives the mass of every class of tokens at every position, the recursions decide by classes
(`presswork/diffusion/constraints`), and a second sweep reads the positions where more than one token is left, each
under the weights of its classes.

L canvas, N rows, C classes, D model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from presswork.diffusion.constraints.conditioned import Conditioned, condition
from presswork.engine.constraints import ConstraintState
from presswork.engine.request import Request
from presswork.ops.vocab_head import ClassReading, ClassWeights

CERTAIN = 1e-9  # what other classes may hold of a position that counts as one class's
CERTAIN_END = 1e-6  # what longer texts may hold where a text counts as ended
SHOWN_ENDS = 4  # positions left behind a certain end: canvases have ends there in training


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecidedCanvas:
    """A canvas whose classes are decided, and its tokens where a class has but one.

    Args:
        argmax: the best canvas of the language.
        sample: right where the sampled class has one token; elsewhere the open rows' second reading says.
        surest: the most likely token's class's best token, which rows that are not open consist of.
        is_open: positions where more than one token is left.
        log_weight: what turns a position's own distribution into the conditioned one.
        sampled_class, uniform: the class each position's token is drawn from, and the number to draw it with.
        num_kept: positions to go on with where an end is certain early in the canvas; None is all.
    """

    argmax: Int[Tensor, "L"]
    sample: Int[Tensor, "L"]
    surest: Int[Tensor, "L"]
    entropy: Float[Tensor, "L"]
    max_logprob: Float[Tensor, "L"]
    is_open: Bool[Tensor, "L"]
    log_weight: Float64[Tensor, "L C"]
    sampled_class: Int[Tensor, "L"]
    uniform: Float64[Tensor, "L"]
    num_kept: int | None


def decide(request: Request, reading: ClassReading) -> DecidedCanvas:
    """Decide the classes of one canvas's step; pure.

    Raises: GenerationError where no text of the language is left.
    """
    canvas, state = request.canvas, request.constraint
    assert canvas is not None and state is not None
    automaton, length = state.constraint.automaton, canvas.tokens.shape[0]
    mass, top = reading.log_mass.clone(), reading.top.clone()
    if canvas.pins is not None:
        positions = canvas.pins.positions.cpu()
        classes = torch.from_numpy(automaton.class_of)[canvas.pins.tokens.cpu()].long()
        mass[positions], top[positions] = -torch.inf, -torch.inf
        mass[positions, classes], top[positions, classes] = 0.0, 0.0
    uniform = request.noise.uniforms(canvas.index, canvas.step, length)
    if not request.params.temperature:
        uniform = torch.full_like(uniform, torch.nan)
    left = request.max_tokens - request.num_before_canvas
    if canvas.num_dropped:
        final = state.finals(canvas.index, 0, {})
    else:
        final = state.finals(canvas.index, left - length, _later_pins(request, length))
    step = condition(automaton, state.state, mass.numpy(), top.numpy(), uniform.numpy(), final)
    return _decided(step, reading, mass, state, canvas.pins.positions.cpu() if canvas.pins is not None else None)


def _later_pins(request: Request, length: int) -> dict[int, int]:
    """Pins behind the request's canvas, counted from its end."""
    end = request.num_before_canvas + length
    return {position - end: token for position, token in request.params.pins if position >= end}


def _decided(
    step: Conditioned, reading: ClassReading, mass: Float64[Tensor, "L C"], state: ConstraintState,
    pinned: Int[Tensor, "P"] | None,
) -> DecidedCanvas:  # fmt: skip
    weights = torch.from_numpy(step.weights)
    log_p = weights.log()
    inner = torch.where(weights > 0, reading.log_mass - reading.mean - log_p, 0.0)
    share, surest = weights.max(dim=1)
    is_open = (share < 1 - CERTAIN) | ~state.constraint.is_single[surest]
    if pinned is not None:
        is_open[pinned] = False
    best, sampled = torch.from_numpy(step.best), torch.from_numpy(step.sampled)
    return DecidedCanvas(
        argmax=_token(reading, best),
        sample=_token(reading, sampled),
        surest=_token(reading, surest),
        entropy=(weights * inner).sum(dim=1).clamp(min=0.0).float(),
        max_logprob=torch.where(weights > 0, log_p + reading.top - reading.log_mass, -torch.inf).amax(dim=1).float(),
        is_open=is_open,
        log_weight=torch.where(weights > 0, log_p - mass, -torch.inf),
        sampled_class=sampled,
        uniform=torch.from_numpy(step.uniform),
        num_kept=_num_kept(step, state.constraint.automaton.end_class),
    )


def _num_kept(step: Conditioned, end_class: int | None) -> int | None:
    """Positions up to a certain end and a few behind it; None where those are more than half of the canvas.

    Models are trained on whole canvases and take more steps in part of one, so little must be left to be worth it.
    """
    if end_class is None:
        return None
    ended = (step.weights[:, end_class] >= 1 - CERTAIN_END) & (step.best >= end_class)
    kept = int(ended.argmax()) + 1 + SHOWN_ENDS
    return kept if ended.any() and 2 * kept <= len(ended) else None


def _token(reading: ClassReading, classes: Int[Tensor, "L"]) -> Int[Tensor, "L"]:
    """The best token of one class a row."""
    return reading.best.gather(1, classes[:, None])[:, 0]


def next_weights(requests: Sequence[Request]) -> ClassWeights | None:
    """Which classes may come next in ar requests of one language: those behind which a text still fits; pure."""
    first = requests[0].constraint
    if first is None:
        return None
    automaton = first.constraint.automaton
    weights = torch.full((len(requests), automaton.num_classes), -torch.inf, dtype=torch.float64)
    for row, request in enumerate(requests):
        state = request.constraint
        assert state is not None
        left = request.output.num_left - 1
        for edge in range(automaton.edge_starts[state.state], automaton.edge_starts[state.state + 1]):
            if automaton.fewest[automaton.edge_to[edge]] <= left:
                group = automaton.edge_group[edge]
                first_class, stop = automaton.group_starts[group], automaton.group_starts[group + 1]
                weights[row, torch.from_numpy(automaton.group_classes[first_class:stop]).long()] = 0.0
    anything = torch.full((len(requests),), -1)
    return ClassWeights(classes=first.constraint.classes, log_weight=weights, sample_class=anything)
