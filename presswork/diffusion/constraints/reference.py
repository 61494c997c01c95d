"""The recursions over a canvas as constraints.md of the specification writes them down, edge by edge in float64.

S states, C classes, L canvas. An edge is (state, class, next state); log-masses m [L, C].

    backward  B_L(s) = final(s);  B_i(s) = logsumexp over (s, c, s') of m_i[c] + B_{i+1}(s')
    forward   F_0 = start;        F_{i+1}(s') = logsumexp over (s, c, s') of F_i(s) + m_i[c]
    classes   Q_i(c) = sum over (s, c, s') of exp(F_i(s) + m_i[c] + B_{i+1}(s') - B_0(start))
    best      the recursion backward with max for logsumexp and the largest z of a class for its mass
"""

from collections.abc import Sequence

import numpy as np

Edge = tuple[int, int, int]


def backward(mass: np.ndarray, edges: Sequence[Edge], final: np.ndarray) -> np.ndarray:
    """float64 [L + 1, S]: log-mass of what may follow from each state at each position."""
    length = len(mass)
    behind = np.full((length + 1, len(final)), -np.inf)
    behind[length] = final
    for i in reversed(range(length)):
        for state, c, target in edges:
            behind[i, state] = np.logaddexp(behind[i, state], mass[i, c] + behind[i + 1, target])
    return behind


def forward(mass: np.ndarray, edges: Sequence[Edge], start: int, num_states: int) -> np.ndarray:
    """float64 [L + 1, S]: log-mass of what may lead to each state at each position."""
    before = np.full((len(mass) + 1, num_states), -np.inf)
    before[0, start] = 0.0
    for i in range(len(mass)):
        for state, c, target in edges:
            before[i + 1, target] = np.logaddexp(before[i + 1, target], before[i, state] + mass[i, c])
    return before


def class_weights(mass: np.ndarray, edges: Sequence[Edge], start: int, final: np.ndarray) -> np.ndarray:
    """float64 [L, C]: probability of each class at each position, given that the canvas is in the language."""
    behind, before = backward(mass, edges, final), forward(mass, edges, start, len(final))
    weights = np.zeros_like(mass)
    for i in range(len(mass)):
        for state, c, target in edges:
            weights[i, c] += np.exp(before[i, state] + mass[i, c] + behind[i + 1, target] - behind[0, start])
    return weights


def best_path(top: np.ndarray, edges: Sequence[Edge], start: int, final: np.ndarray) -> tuple[float, list[int]]:
    """(largest sum of tops, the classes that give it)."""
    length = len(top)
    value = np.full((length + 1, len(final)), -np.inf)
    value[length] = final
    choice: list[dict[int, tuple[int, int]]] = [{} for _ in range(length)]
    for i in reversed(range(length)):
        for state, c, target in edges:
            offered = top[i, c] + value[i + 1, target]
            if offered > value[i, state]:
                value[i, state], choice[i][state] = offered, (c, target)
    path, state = [], start
    for i in range(length):
        c, state = choice[i][state]
        path.append(c)
    return float(value[0, start]), path
