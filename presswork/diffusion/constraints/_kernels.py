"""Compiled recursions over a canvas, by groups of classes. L canvas, S states, C classes, G groups, E edges.

Sums are taken in log space around their largest term. Terms below it by more than NEGLIGIBLE are left out: they are
less than a float64 sum shows. Only states that can be reached at a position are visited there.
"""

import math

import numpy as np

from presswork.ops.lanes import kernel

NEGLIGIBLE = 45.0


@kernel()
def group_masses(mass, top, group_starts, group_classes, group_mass, group_top, group_best):
    """Log-mass, largest z, and the class that has it, of each group at each position."""
    for i in range(len(mass)):
        for g in range(len(group_starts) - 1):
            first, stop = group_starts[g], group_starts[g + 1]
            largest, best, best_top = -np.inf, group_classes[first], -np.inf
            for k in range(first, stop):
                c = group_classes[k]
                largest = max(largest, mass[i, c])
                if top[i, c] > best_top:
                    best, best_top = c, top[i, c]
            total = 0.0
            if largest > -np.inf:
                for k in range(first, stop):
                    drop = mass[i, group_classes[k]] - largest
                    if drop > -NEGLIGIBLE:
                        total += math.exp(drop)
                total = largest + math.log(total)
            else:
                total = -np.inf
            group_mass[i, g], group_top[i, g], group_best[i, g] = total, best_top, best


@kernel()
def reachable(group_mass, edge_starts, edge_group, edge_to, start, reached):
    """Mark the states that some tokens lead to at each position. Mutates reached [L + 1, S], False at first."""
    reached[0, start] = True
    for i in range(len(group_mass)):
        for state in range(reached.shape[1]):
            if reached[i, state]:
                for e in range(edge_starts[state], edge_starts[state + 1]):
                    if group_mass[i, edge_group[e]] > -np.inf:
                        reached[i + 1, edge_to[e]] = True


@kernel()
def backward(group_mass, group_top, edge_starts, edge_group, edge_to, final, reached, behind, value, choice):
    """Log-mass of what may follow each state (behind), the best sum (value) and its edge (choice), from the end on."""
    length, num_states = len(group_mass), len(final)
    behind[length, :], value[length, :] = final, final
    for i in range(length - 1, -1, -1):
        for state in range(num_states):
            behind[i, state], value[i, state], choice[i, state] = -np.inf, -np.inf, -1
            if not reached[i, state]:
                continue
            largest, best, edge = -np.inf, -np.inf, -1
            for e in range(edge_starts[state], edge_starts[state + 1]):
                largest = max(largest, group_mass[i, edge_group[e]] + behind[i + 1, edge_to[e]])
                offered = group_top[i, edge_group[e]] + value[i + 1, edge_to[e]]
                if offered > best:
                    best, edge = offered, e
            value[i, state], choice[i, state] = best, edge
            if largest == -np.inf:
                continue
            total = 0.0
            for e in range(edge_starts[state], edge_starts[state + 1]):
                drop = group_mass[i, edge_group[e]] + behind[i + 1, edge_to[e]] - largest
                if drop > -NEGLIGIBLE:
                    total += math.exp(drop)
            behind[i, state] = largest + math.log(total)


@kernel()
def forward(
    mass, group_mass, edge_starts, edge_group, edge_to, group_starts, group_classes, start, behind, weights, at_state
):
    """Probability of each class at each position (weights, zero at first), by way of the states' (at_state).

    A state's probability times that of an edge given the state never leaves the range of float64.
    """
    length, num_states = len(group_mass), behind.shape[1]
    at_state[0, start] = 1.0
    of_group = np.empty(group_mass.shape[1])
    for i in range(length):
        of_group[:] = 0.0
        for state in range(num_states):
            p = at_state[i, state]
            if p == 0.0:
                continue
            for e in range(edge_starts[state], edge_starts[state + 1]):
                drop = group_mass[i, edge_group[e]] + behind[i + 1, edge_to[e]] - behind[i, state]
                if drop > -NEGLIGIBLE:
                    share = p * math.exp(drop)
                    at_state[i + 1, edge_to[e]] += share
                    of_group[edge_group[e]] += share
        for g in range(len(of_group)):
            if of_group[g] > 0.0:
                for k in range(group_starts[g], group_starts[g + 1]):
                    drop = mass[i, group_classes[k]] - group_mass[i, g]
                    if drop > -NEGLIGIBLE:
                        weights[i, group_classes[k]] += of_group[g] * math.exp(drop)


@kernel()
def _within(u, low, high):
    """How far into [low, high) a number lies, in [0, 1); what rounding puts past the end is kept inside."""
    return min(max((u - low) / (high - low), 0.0), 1.0 - 2.0**-53)


@kernel()
def sample_path(
    mass, group_mass, edge_starts, edge_group, edge_to, group_starts, group_classes, start, behind, uniform, classes
):
    """Draw a path: an edge, then a class of its group, by one number a position.

    What a number says beyond its choices is left in `uniform`, itself uniform, to draw the token with.
    """
    state = start
    for i in range(len(mass)):
        edge, passed, before = -1, 0.0, 0.0
        for e in range(edge_starts[state], edge_starts[state + 1]):
            p = math.exp(group_mass[i, edge_group[e]] + behind[i + 1, edge_to[e]] - behind[i, state])
            if p > 0.0:
                edge, before = e, passed
                passed += p
                if uniform[i] < passed:
                    break
        u = _within(uniform[i], before, passed)
        group, picked, passed, before = edge_group[edge], -1, 0.0, 0.0
        for k in range(group_starts[group], group_starts[group + 1]):
            p = math.exp(mass[i, group_classes[k]] - group_mass[i, group])
            if p > 0.0:
                picked, before = group_classes[k], passed
                passed += p
                if u < passed:
                    break
        classes[i], uniform[i] = picked, _within(u, before, passed)
        state = edge_to[edge]


@kernel()
def best_path(edge_group, edge_to, group_best, start, choice, classes):
    """Follow the best edges."""
    state = start
    for i in range(len(choice)):
        edge = choice[i, state]
        classes[i] = group_best[i, edge_group[edge]]
        state = edge_to[edge]
