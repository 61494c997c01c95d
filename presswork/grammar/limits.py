"""How large a language may become, and the count of work that stops a hostile one early."""

from dataclasses import dataclass

from presswork.errors import ConstraintError, ConstraintTooLargeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one compilation; the defaults end the worst input in under a second.

    Args:
        max_nfa_size: States and edges of the nondeterministic automaton, known before any of it is built.
        max_dfa_states: States of any deterministic automaton on the way; a table row of the last one is about 1 KB.
        max_steps: States and edges looked at while automata are made deterministic, intersected and made small.
    """

    max_nfa_size: int = 150_000
    max_dfa_states: int = 20_000
    max_steps: int = 600_000

    def __post_init__(self) -> None:
        for name in ("max_nfa_size", "max_dfa_states", "max_steps"):
            value = getattr(self, name)
            if value < 1:
                raise ConstraintError(f"{name} is {value}; it must be at least 1")


class Budget:
    """What one compilation may still spend."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self._steps_left = limits.max_steps

    def spend(self, steps: int) -> None:
        """Count work. Raises: ConstraintTooLargeError when it is used up."""
        self._steps_left -= steps
        if self._steps_left < 0:
            raise too_large(f"takes more than {self.limits.max_steps:,} steps to compile")

    def check_states(self, num_states: int) -> None:
        """Raises: ConstraintTooLargeError when a deterministic automaton has too many states."""
        if num_states > self.limits.max_dfa_states:
            raise too_large(f"needs more than {self.limits.max_dfa_states:,} states")

    def check_size(self, size: int) -> None:
        """Raises: ConstraintTooLargeError when an automaton would be too large to build."""
        if size > self.limits.max_nfa_size:
            raise too_large(f"unrolls to more than {self.limits.max_nfa_size:,} states and edges")


def too_large(what: str) -> ConstraintTooLargeError:
    """The error that says what was too much, and what would help."""
    return ConstraintTooLargeError(
        f"the constraint {what}; lower its repeat counts, lengths (maxLength, maxItems) or number of alternatives"
    )
