"""Compiled recursions over a canvas, by groups of classes. L canvas, S states, C classes, G groups, E edges.

A mass is a number x in [1, 2) and a power of two k, so sums over a canvas neither leave the range of float64 nor take
a logarithm an edge; no mass is x = 0 and k = -inf. Powers are float64 too: temperatures near 0 make larger ones than
int64 holds, of which x is 1. Only states that can be reached at a position are visited there.

Arrays of indices are unsigned: for signed ones numba looks at every element whether it counts from the end, which takes
almost half of the time.
"""

import math

import numpy as np

from presswork.ops.lanes import kernel

_FAR, _MOST = 1000, 1
_POWERS = np.ldexp(1.0, np.arange(-_FAR, _MOST + 1))  # powers of two, from those that no sum shows
_SURE = 2.0**-900  # sums of at least this lose nothing to terms that are too small for float64
_WHOLE = -(2.0**50)  # powers above this are whole numbers, and so are their sums
_NEGLIGIBLE = 2.0**-66  # probabilities below this are less than a float64 sum shows


@kernel()
def _power(k):
    """2^k; 0 where k is so small that no sum shows it, or NaN. Above 2, which only rounding makes it, that."""
    if not k > -_FAR:
        return 0.0
    return _POWERS[np.uint64(np.int64(k) + _FAR)] if k <= _MOST else _POWERS[-1]


@kernel()
def _normal(total):
    """(number in [1, 2), power of two) of a sum; 0 stays 0."""
    number, power = math.frexp(total)
    return 2.0 * number, power - 1.0


@kernel()
def _product(group_x, group_k, next_x, next_k, unit):
    """Mass of a group and of what may follow it, in units of a power of two."""
    return group_x * next_x * _power(group_k + next_k - unit)


@kernel()
def split(log_mass, x, k):
    """Write exp(log_mass) as numbers and powers of two, element by element of two dimensions.

    Returns the sum of what each row was lessened by, its largest log-mass.
    """
    shift = 0.0
    for i in range(log_mass.shape[0]):
        largest = -np.inf
        for j in range(log_mass.shape[1]):
            largest = max(largest, log_mass[i, j])
        shift += largest
        for j in range(log_mass.shape[1]):
            x[i, j], k[i, j] = 0.0, -np.inf
            if log_mass[i, j] > -np.inf:
                binary = (log_mass[i, j] - largest) / math.log(2.0)
                k[i, j] = np.floor(binary)
                x[i, j] = math.exp((binary - k[i, j]) * math.log(2.0))
    return shift


@kernel()
def of_groups(x, k, top, group_starts, group_classes, group_x, group_k, group_top, group_best):
    """Mass, largest z, and the class that has it, of each group at each position."""
    for i in range(len(x)):
        for g in range(len(group_starts) - 1):
            first, stop = group_starts[g], group_starts[g + 1]
            highest, best, best_top = -np.inf, group_classes[first], -np.inf
            for member in range(first, stop):
                c = group_classes[member]
                highest = max(highest, k[i, c])
                if top[i, c] > best_top:
                    best, best_top = c, top[i, c]
            total = 0.0
            for member in range(first, stop):
                c = group_classes[member]
                total += x[i, c] * _power(k[i, c] - highest)
            group_x[i, g], more = _normal(total)
            group_k[i, g], group_top[i, g], group_best[i, g] = highest + more, best_top, best


@kernel()
def reachable(is_open, edge_starts, edge_group, edge_to, start, reached):
    """Mark the states that open groups lead to at each position. Mutates reached [L + 1, S], False at first."""
    reached[0, start] = True
    for i in range(len(is_open)):
        if i > 0 and np.array_equal(reached[i], reached[i - 1]) and np.array_equal(is_open[i], is_open[i - 1]):
            reached[i + 1] = reached[i]
            continue
        for state in range(reached.shape[1]):
            if reached[i, state]:
                for e in range(edge_starts[state], edge_starts[state + 1]):
                    if is_open[i, edge_group[e]]:
                        reached[i + 1, edge_to[e]] = True


@kernel()
def _scaled(x, k, plain):
    """Write masses in units of the largest one's power, which is returned; too small ones are 0."""
    highest = k[0]
    for j in range(len(k)):
        highest = max(highest, k[j])
    for j in range(len(k)):
        plain[j] = x[j] * _power(k[j] - highest)
    return highest


@kernel()
def _exact_sum(first, stop, edge_group, edge_to, group_x, group_k, next_x, next_k):
    """Mass of what may follow a state, as (x, k), by the largest of its own terms."""
    highest, total = -np.inf, 0.0
    for e in range(first, stop):
        highest = max(highest, group_k[edge_group[e]] + next_k[edge_to[e]])
    for e in range(first, stop):
        g, to = edge_group[e], edge_to[e]
        total += _product(group_x[g], group_k[g], next_x[to], next_k[to], highest)
    found, more = _normal(total)
    return found, highest + more


@kernel()
def backward(group_x, group_k, group_top, edge_starts, edge_group, edge_to, reached, behind_x, behind_k, value, choice):
    """Mass of what may follow each state (behind), the best sum (value) and its edge (choice), from the end on.

    The last rows of behind and value are given. Sums are taken in units of the position's largest terms, and only
    those that are lost in them by their own.
    """
    length, num_states = len(group_x), behind_x.shape[1]
    of_group, of_state = np.empty(group_x.shape[1]), np.empty(num_states)
    for i in range(length - 1, -1, -1):
        unit = _scaled(group_x[i], group_k[i], of_group) + _scaled(behind_x[i + 1], behind_k[i + 1], of_state)
        least = _SURE if unit > _WHOLE else np.inf
        for state in range(num_states):
            behind_x[i, state], behind_k[i, state], value[i, state] = 0.0, -np.inf, -np.inf
            if not reached[i, state]:
                continue
            first, stop = edge_starts[state], edge_starts[state + 1]
            total, best, edge = 0.0, -np.inf, first
            for e in range(first, stop):
                g, to = edge_group[e], edge_to[e]
                total += of_group[g] * of_state[to]
                offered = group_top[i, g] + value[i + 1, to]
                if offered > best:
                    best, edge = offered, e
            value[i, state], choice[i, state] = best, edge
            if total >= least:
                behind_x[i, state], more = _normal(total)
                behind_k[i, state] = unit + more
            elif best > -np.inf:
                behind_x[i, state], behind_k[i, state] = _exact_sum(
                    first, stop, edge_group, edge_to, group_x[i], group_k[i], behind_x[i + 1], behind_k[i + 1]
                )


@kernel()
def forward(
    x, k, group_x, group_k, edge_starts, edge_group, edge_to, group_starts, group_classes, start, behind_x, behind_k,
    weights,
):  # fmt: skip
    """Probability of each class at each position (weights, zero at first), by way of the states'.

    A state's probability times that of an edge given the state never leaves the range of float64.
    """
    length, num_states = len(group_x), behind_x.shape[1]
    here, ahead = np.zeros(num_states), np.zeros(num_states)
    of_group, of_edge = np.empty(group_x.shape[1]), np.empty(len(edge_to))
    here[start] = 1.0
    for i in range(length):
        of_group[:] = 0.0
        ahead[:] = 0.0
        for state in range(num_states):
            if here[state] < _NEGLIGIBLE:
                continue
            unit, total = behind_k[i, state], 0.0
            for e in range(edge_starts[state], edge_starts[state + 1]):
                g, to = edge_group[e], edge_to[e]
                of_edge[e] = _product(group_x[i, g], group_k[i, g], behind_x[i + 1, to], behind_k[i + 1, to], unit)
                total += of_edge[e]
            # That is what follows the state, but for what rounding of large powers makes of it.
            for e in range(edge_starts[state], edge_starts[state + 1]):
                p = here[state] * of_edge[e] / total
                ahead[edge_to[e]] += p
                of_group[edge_group[e]] += p
        here, ahead = ahead, here
        for g in range(len(of_group)):
            if of_group[g] > 0.0:
                for member in range(group_starts[g], group_starts[g + 1]):
                    c = group_classes[member]
                    weights[i, c] += of_group[g] * x[i, c] / group_x[i, g] * _power(k[i, c] - group_k[i, g])


@kernel()
def _within(u, low, high):
    """How far into [low, high) a number lies, in [0, 1); what rounding puts past the end is kept inside."""
    return min(max((u - low) / (high - low), 0.0), 1.0 - 2.0**-53)


@kernel()
def sample_path(
    x, k, group_x, group_k, edge_starts, edge_group, edge_to, group_starts, group_classes, start, behind_x, behind_k,
    uniform, classes,
):  # fmt: skip
    """Draw a path: an edge, then a class of its group, by one number a position.

    What a number says beyond its choices is left in `uniform`, itself uniform, to draw the token with.
    """
    state = start
    for i in range(len(x)):
        edge, passed, before = edge_starts[state], 0.0, 0.0
        for e in range(edge_starts[state], edge_starts[state + 1]):
            g, to = edge_group[e], edge_to[e]
            p = _product(group_x[i, g], group_k[i, g], behind_x[i + 1, to], behind_k[i + 1, to], behind_k[i, state])
            p /= behind_x[i, state]
            if p > 0.0:
                edge, before = e, passed
                passed += p
                if uniform[i] < passed:
                    break
        u = _within(uniform[i], before, passed)
        group, passed, before = edge_group[edge], 0.0, 0.0
        picked = group_classes[group_starts[group]]
        for member in range(group_starts[group], group_starts[group + 1]):
            c = group_classes[member]
            p = x[i, c] / group_x[i, group] * _power(k[i, c] - group_k[i, group])
            if p > 0.0:
                picked, before = c, passed
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
