"""One denoise step's distributions, conditioned on the canvas being in a language. L canvas, C classes, S states.

Everything is decided from masses of classes; which token of a class is the vocabulary head's affair.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from presswork.diffusion.constraints import _kernels as kernels
from presswork.diffusion.constraints.automaton import CanvasAutomaton
from presswork.errors import GenerationError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conditioned:
    """A step's product distribution given that the canvas is in the language.

    Args:
        log_mass: of the language under the product of the given masses.
        weights: float64 [L, C], probability of each class at each position.
        sampled: int64 [L], classes of an exact sample of the whole canvas.
        uniform: float64 [L], what is left of each position's random number to draw the token within its class.
        best: int64 [L], classes of the canvas with the largest sum of logits.
    """

    log_mass: float
    weights: np.ndarray
    sampled: np.ndarray
    uniform: np.ndarray
    best: np.ndarray


def condition(
    automaton: CanvasAutomaton, state: int, mass: np.ndarray, top: np.ndarray, uniform: np.ndarray, final: np.ndarray
) -> Conditioned:
    """Condition one step; pure.

    Args:
        state: where the canvas starts.
        mass: float64 [L, C], log-mass of each class. top: float32 [L, C], the largest logit of each.
        uniform: float64 [L] in [0, 1); NaN anywhere: the sample is the best canvas.
        final: float64 [S], as CanvasAutomaton.finals.
    Raises:
        GenerationError: no canvas of the language has any probability.
    Source: constraints.md of the specification, steps 2 to 6.
    """
    length, num_states = len(mass), len(final)
    edges = [_unsigned(ids) for ids in (automaton.edge_starts, automaton.edge_group, automaton.edge_to)]
    groups = [_unsigned(ids) for ids in (automaton.group_starts, automaton.group_classes)]
    *classes, shift = _split(mass)
    in_groups, group_top, group_best = _of_groups(groups, classes, top)
    reached = np.zeros((length + 1, num_states), bool)
    kernels.reachable(in_groups[0] > 0, *edges, state, reached)
    # In one piece: smaller ones are given back to the system after each step, and it takes time to get them again.
    x, k, value = np.empty((3, length + 1, num_states))
    behind = x, k
    choice = np.empty((length, num_states), np.uint32)
    x[length], k[length], value[length] = final > -np.inf, final, final
    kernels.backward(*in_groups, group_top, *edges, reached, *behind, value, choice)
    if not x[0, state] > 0:
        raise GenerationError("no text of the constraint is left: what is banned or pinned rules all of them out")
    weights = np.zeros((length, automaton.num_classes))
    kernels.forward(*classes, *in_groups, *edges, *groups, state, *behind, weights)
    best = np.empty(length, np.int64)
    kernels.best_path(*edges[1:], group_best, state, choice, best)
    sampled, left = best.copy(), uniform.astype(np.float64)
    if not np.isnan(left).any():
        kernels.sample_path(*classes, *in_groups, *edges, *groups, state, *behind, left, sampled)
    log_mass = shift + math.log(x[0, state]) + k[0, state] * math.log(2.0)
    return Conditioned(log_mass=log_mass, weights=weights, sampled=sampled, uniform=left, best=best)


def _unsigned(ids: np.ndarray) -> np.ndarray:
    """The same indices, none of them negative, in the same memory."""
    return ids.view(np.uint32 if ids.itemsize == 4 else np.uint64)


def _split(log_mass: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(masses as numbers and powers of two, each row's in units of its largest; the log of all units together)."""
    x, k = np.empty(log_mass.shape), np.empty(log_mass.shape)
    return x, k, kernels.split(log_mass, x, k)


def _of_groups(
    groups: Sequence[np.ndarray], classes: Sequence[np.ndarray], top: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """(masses as numbers and powers, largest logit, the class that has it) of each group at each position."""
    shape = (len(top), len(groups[0]) - 1)
    masses = np.empty(shape), np.empty(shape)
    found = np.empty(shape, np.float32), np.empty(shape, np.int32)
    kernels.of_groups(*classes, top, *groups, *masses, *found)
    return masses, *found
