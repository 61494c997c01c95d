"""Checked access to the objects inside a config file: a wrong type is an error that names the file and the key."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from presswork.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One JSON object of a config file; null counts as missing.

    Args:
        values: the object.
        where: file, and path inside it, for error messages.
    """

    values: Mapping[str, Any]
    where: str

    def fail(self, problem: str) -> CheckpointError:
        """The error to raise about this object, naming where it stands."""
        return CheckpointError(f"{self.where}: {problem}")

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(f"{name} must be an integer, got {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(f"{name} must be a number, got {value!r}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.fail(f"{name} must be a finite number, got {str(value)[:20]}")
        return number

    def flag(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.fail(f"{name} must be true or false, got {value!r}")
        return value

    def token_id(self, name: str, default: int) -> int:
        """A token id; where the file lists several, the first."""
        value = self.values.get(name)
        first = value[0] if isinstance(value, list) and value else value
        return Section(values={name: first}, where=self.where).integer(name, default)

    def token_ids(self, name: str, default: list[int] | None = None) -> list[int]:
        """Token ids, given as one or as a list."""
        value = self._value(name, default)
        listed = value if isinstance(value, list) else [value]
        ids = [Section(values={name: one}, where=self.where).integer(name) for one in listed]
        if (not ids and default is None) or any(token < 0 for token in ids):
            raise self.fail(f"{name} must be a token id or a list of some, got {value!r}")
        return ids

    def section(self, name: str, default: Mapping[str, Any] | None = None) -> "Section":
        value = self._value(name, default)
        if not isinstance(value, Mapping):
            raise self.fail(f"{name} must be an object, got {value!r}")
        return Section(values=value, where=f"{self.where}, {name}")

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.fail(f"{name} is missing")
        return value
