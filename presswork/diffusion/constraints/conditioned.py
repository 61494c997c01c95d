"""One denoise step's distributions, conditioned on the canvas being in a language. L canvas, C classes, S states.

Everything is decided from masses of classes; which token of a class is the vocabulary head's affair.
"""

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
    edges = (automaton.edge_starts, automaton.edge_group, automaton.edge_to)
    groups = (automaton.group_starts, automaton.group_classes)
    group_mass, group_top, group_best = _of_groups(automaton, mass, top)
    reached = np.zeros((length + 1, num_states), bool)
    kernels.reachable(group_mass, *edges, state, reached)
    behind, value = np.empty((length + 1, num_states)), np.empty((length + 1, num_states))
    choice = np.empty((length, num_states), np.int64)
    kernels.backward(group_mass, group_top, *edges, final, reached, behind, value, choice)
    if not behind[0, state] > -np.inf:
        raise GenerationError("no text of the constraint is left: what is banned or pinned rules all of them out")
    weights = np.zeros((length, automaton.num_classes))
    at_state = np.zeros((length + 1, num_states))
    kernels.forward(mass, group_mass, *edges, *groups, state, behind, weights, at_state)
    best = np.empty(length, np.int64)
    kernels.best_path(*edges[1:], group_best, state, choice, best)
    sampled, left = best.copy(), uniform.astype(np.float64)
    if not np.isnan(left).any():
        kernels.sample_path(mass, group_mass, *edges, *groups, state, behind, left, sampled)
    return Conditioned(log_mass=float(behind[0, state]), weights=weights, sampled=sampled, uniform=left, best=best)


def _of_groups(
    automaton: CanvasAutomaton, mass: np.ndarray, top: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(log-mass, largest logit, the class that has it) of each group at each position."""
    shape = (len(mass), len(automaton.group_starts) - 1)
    found = np.empty(shape), np.empty(shape, np.float32), np.empty(shape, np.int32)
    kernels.group_masses(mass, top, automaton.group_starts, automaton.group_classes, *found)
    return found
