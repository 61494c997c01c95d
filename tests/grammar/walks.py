"""Random texts of an automaton's language."""

import random
from collections.abc import Sequence

import numpy as np

from presswork.grammar.byte_automaton import NUM_BYTES, ByteAutomaton


def random_symbols(automaton: ByteAutomaton, random_: random.Random, patience: int = 20) -> list[int]:
    """A random sequence of symbols that the automaton accepts; after `patience` steps it takes a shortest way out."""
    distance = distances(automaton)
    state, symbols = 0, []
    while True:
        if automaton.accepts[state] and (len(symbols) >= patience or random_.random() < 0.3):
            return symbols
        choices = _symbols_by_target(automaton, state)
        if not choices:
            return symbols
        if len(symbols) >= patience:
            nearest = min(distance[target] for target in choices)
            choices = {target: found for target, found in choices.items() if distance[target] == nearest}
        # By target first: else the many bytes of a string would hide the one that ends it.
        target = random_.choice(list(choices))
        symbols.append(random_.choice(choices[target]))
        state = target


def random_text(automaton: ByteAutomaton, random_: random.Random, patience: int = 20) -> str:
    """A random text that the automaton, which must know no marks, accepts."""
    return bytes(random_symbols(automaton, random_, patience)).decode()


def distances(automaton: ByteAutomaton) -> list[int]:
    """For each state, the number of symbols of the shortest way to an accepting one."""
    before: list[set[int]] = [set() for _ in automaton.accepts]
    for state, row in enumerate(automaton.next):
        for target in np.unique(row[row >= 0]):
            before[target].add(state)
    found = [0 if is_accepting else -1 for is_accepting in automaton.accepts]
    queue = [state for state, distance in enumerate(found) if distance == 0]
    for state in queue:
        for source in before[state]:
            if found[source] < 0:
                found[source] = found[state] + 1
                queue.append(source)
    return found


def spelled(symbols: Sequence[int], automaton: ByteAutomaton) -> str:
    """The text of a sequence of symbols, marks by their names."""
    names = [name.encode() for name in automaton.marks]
    return b"".join(bytes([s]) if s < NUM_BYTES else names[s - NUM_BYTES] for s in symbols).decode()


def _symbols_by_target(automaton: ByteAutomaton, state: int) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for symbol in np.flatnonzero(automaton.next[state] >= 0):
        found.setdefault(int(automaton.next[state, symbol]), []).append(int(symbol))
    return found
