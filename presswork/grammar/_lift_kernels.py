"""Compiled loops that carry a byte automaton over to tokens. S states, N trie nodes, P pieces, K classes.

One file, because numba's cache notices edits of a kernel's own file only.
"""

import numpy as np

from presswork.ops.lanes import kernel

_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_NO_STATE = -1


@kernel()
def build_trie(data, starts, node_byte, node_depth, node_end, node_piece):
    """Nodes of sorted, distinct byte strings in preorder; the root has none. Returns how many were written.

    data, starts: the strings end to end. node_end: first node behind the subtree. node_piece: the string that ends
    at a node, or -1.
    """
    open_nodes = np.empty(np.max(np.diff(starts)) + 1 if len(starts) > 1 else 1, np.int64)
    num, depth = 0, 0
    for piece in range(len(starts) - 1):
        first, length = starts[piece], starts[piece + 1] - starts[piece]
        shared = 0
        if piece > 0:
            before = starts[piece - 1]
            most = min(length, first - before)
            while shared < most and data[first + shared] == data[before + shared]:
                shared += 1
        while depth > shared:
            depth -= 1
            node_end[open_nodes[depth]] = num
        while depth < length:
            node_byte[num], node_depth[num], node_piece[num] = data[first + depth], depth, -1
            open_nodes[depth] = num
            depth += 1
            num += 1
        node_piece[num - 1] = piece
    while depth > 0:
        depth -= 1
        node_end[open_nodes[depth]] = num
    return num


@kernel()
def _mixed(value):
    """A 64-bit number whose bits all depend on all bits of the value (splitmix64)."""
    value = (value ^ (value >> np.uint64(30))) * _MIX_A
    value = (value ^ (value >> np.uint64(27))) * _MIX_B
    return value ^ (value >> np.uint64(31))


@kernel()
def sign_pieces(following, states, node_byte, node_depth, node_end, node_piece, signature):
    """Add to each piece's signature where it leads from these states; returns how many nodes were visited.

    Two pieces that lead to the same state from every state get the same sum; others differ in one of its two words but
    for chance (2^-128 a pair).
    """
    stack = np.empty(np.max(node_depth) + 2, np.int64)
    steps = 0
    for state in states:
        stack[0] = state
        node = 0
        while node < len(node_byte):
            depth = node_depth[node]
            steps += 1
            reached = following[stack[depth], node_byte[node]]
            if reached < 0:
                node = node_end[node]
                continue
            stack[depth + 1] = reached
            piece = node_piece[node]
            if piece >= 0:
                pair = np.uint64(state) * np.uint64(following.shape[0]) + np.uint64(reached) + np.uint64(1)
                signature[piece, 0] += _mixed(pair * _STEP)
                signature[piece, 1] += _mixed(pair * _MIX_A + _STEP)
            node += 1
    return steps


@kernel()
def sign_states(following, states, depth, max_steps, signs):
    """Sign states so that equal ones tell the same pieces apart, if pieces have at most so many bytes.

    Two such states have the same automaton around them up to that distance, but for the names of its states: searched
    breadth first by symbol, both number what they meet in the same way. A sign is a hash of all edges in these numbers
    (two 64-bit words). States that are not reached within max_steps edges get signs of their own.

    following: int [S, K]. signs: uint64 [N, 2], of the N states.
    """
    number, distance = np.full(len(following), -1, np.int64), np.empty(len(following), np.int64)
    queue = np.empty(len(following), np.int64)
    steps = 0
    for place in range(len(states)):
        one, other = np.uint64(0), np.uint64(1)
        queue[0], number[states[place]], distance[0], met, head = states[place], 0, 0, 1, 0
        while head < met and distance[head] < depth and steps <= max_steps:
            for symbol in range(following.shape[1]):
                reached = following[queue[head], symbol]
                if reached >= 0 and number[reached] < 0:
                    queue[met], number[reached], distance[met] = reached, met, distance[head] + 1
                    met += 1
                seen = np.uint64(number[reached] + 2 if reached >= 0 else 1)
                one, other = _mixed(one + seen * _STEP), _mixed(other + seen * _MIX_A)
            steps += following.shape[1]
            head += 1
        if steps > max_steps:
            one, other = np.uint64(states[place]), np.uint64(0)
        signs[place, 0], signs[place, 1] = one, other
        for i in range(met):
            number[queue[i]] = -1


@kernel()
def list_edges(following, node_byte, node_depth, node_end, node_piece, counts, edge_piece, edge_to):
    """The pieces that lead anywhere from each state, and where to, state after state; returns how many there are.

    Writes how many each state has to counts, and no more edges than edge_piece holds: called with none, it counts.
    """
    stack = np.empty(np.max(node_depth) + 2, np.int64)
    edge = 0
    for state in range(len(following)):
        stack[0] = state
        node, first = 0, edge
        while node < len(node_byte):
            depth = node_depth[node]
            reached = following[stack[depth], node_byte[node]]
            if reached < 0:
                node = node_end[node]
                continue
            stack[depth + 1] = reached
            if node_piece[node] >= 0:
                if edge < len(edge_piece):
                    edge_piece[edge], edge_to[edge] = node_piece[node], reached
                edge += 1
            node += 1
        counts[state] = edge - first
    return edge


@kernel()
def _reversed(edge_starts, edge_to):
    """(where each state's incoming edges start, the states they come from)."""
    num = len(edge_starts) - 1
    incoming = np.zeros(num + 1, np.int64)
    for target in edge_to:
        incoming[target + 1] += 1
    incoming = np.cumsum(incoming)
    sources, place = np.empty(len(edge_to), np.int64), incoming.copy()
    for state in range(num):
        for edge in range(edge_starts[state], edge_starts[state + 1]):
            sources[place[edge_to[edge]]] = state
            place[edge_to[edge]] += 1
    return incoming, sources


@kernel()
def fewest_steps(edge_starts, edge_to, accepts):
    """Fewest edges from each state to an accepting one; -1 where there is no way."""
    num = len(accepts)
    incoming, sources = _reversed(edge_starts, edge_to)
    steps, queue, filled = np.full(num, _NO_STATE, np.int64), np.empty(num, np.int64), 0
    for state in range(num):
        if accepts[state]:
            steps[state], queue[filled] = 0, state
            filled += 1
    head = 0
    while head < filled:
        state = queue[head]
        head += 1
        for k in range(incoming[state], incoming[state + 1]):
            if steps[sources[k]] < 0:
                steps[sources[k]], queue[filled] = steps[state] + 1, sources[k]
                filled += 1
    return steps


@kernel()
def most_steps(edge_starts, edge_to):
    """Most edges one can follow from each state; -1 where there is no limit."""
    num = len(edge_starts) - 1
    incoming, sources = _reversed(edge_starts, edge_to)
    open_edges, queue, filled, head = np.diff(edge_starts), np.empty(num, np.int64), 0, 0
    most = np.zeros(num, np.int64)
    for state in range(num):
        if open_edges[state] == 0:
            queue[filled] = state
            filled += 1
    while head < filled:
        state = queue[head]
        head += 1
        for k in range(incoming[state], incoming[state + 1]):
            source = sources[k]
            most[source] = max(most[source], most[state] + 1)
            open_edges[source] -= 1
            if open_edges[source] == 0:
                queue[filled] = source
                filled += 1
    for state in range(num):
        if open_edges[state] > 0:
            most[state] = _NO_STATE
    return most
