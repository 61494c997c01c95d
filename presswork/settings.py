"""What the environment may set. Nothing else touches environment variables.

The command line reads it; `presswork.load` does not.

PRESSWORK_THREADS   CPU threads of tensor work, 1 to 1024; unset is torch's choice
PRESSWORK_LOG       debug, info, warning or error; unset is warning

RANK, LOCAL_RANK, WORLD_SIZE   set by torchrun: which of how many processes this one is
"""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from presswork.errors import ConfigError

PREFIX = "PRESSWORK_"
MAX_THREADS = 1024
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a process.

    Args:
        threads: CPU threads of tensor work; None is torch's choice.
        log: the least severe messages that are shown: debug, info, warning or error.
    """

    threads: int | None = None
    log: str = "warning"

    def __post_init__(self) -> None:
        is_count = isinstance(self.threads, int) and not isinstance(self.threads, bool)
        if self.threads is not None and not (is_count and 1 <= self.threads <= MAX_THREADS):
            raise ConfigError(f"threads must be an integer in 1..{MAX_THREADS}, got {self.threads!r}")
        if self.log not in LOG_LEVELS:
            raise ConfigError(f"log must be one of {', '.join(LOG_LEVELS)}, got {self.log!r}")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """The settings in the environment; an empty value counts as unset.

        Args:
            environ: what to read instead of the process's environment.
        Raises:
            ConfigError: a value is malformed, or a PRESSWORK_ variable is not one of ours.
        """
        source = os.environ if environ is None else environ
        ours = {name: value.strip() for name, value in source.items() if name.startswith(PREFIX)}
        known = {PREFIX + field.name.upper(): field.name for field in fields(cls)}
        for name in sorted(ours):
            if name not in known:
                raise ConfigError(_unknown(name, list(known)))
        given = {known[name]: value for name, value in ours.items() if value}
        threads, log = given.get("threads"), given.get("log")
        if threads is not None and not (re.fullmatch("[0-9]{1,4}", threads) and 1 <= int(threads) <= MAX_THREADS):
            raise ConfigError(f"{PREFIX}THREADS must be an integer in 1..{MAX_THREADS}, got {threads!r}")
        if log is not None and log.lower() not in LOG_LEVELS:
            raise ConfigError(f"{PREFIX}LOG must be one of {', '.join(LOG_LEVELS)}, got {log!r}")
        return cls(threads=None if threads is None else int(threads), log=(log or cls().log).lower())


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """The place of a process among those that torchrun started.

    Args:
        rank: its number among all, from 0.
        local_rank: its number among those on this machine.
        num_ranks: how many there are.
    """

    rank: int
    local_rank: int
    num_ranks: int

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Launch | None":
        """What torchrun says in the environment; None where it did not start this process.

        Args:
            environ: what to read instead of the process's environment.
        Raises:
            ConfigError: a value is missing or malformed.
        """
        source = os.environ if environ is None else environ
        given = {name: source.get(name, "").strip() for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
        if not (given["RANK"] and given["WORLD_SIZE"]):
            return None
        for name, value in given.items():
            if not re.fullmatch("[0-9]{1,6}", value):
                raise ConfigError(f"{name} must be a whole number, got {value!r}; start the processes with torchrun")
        rank, local_rank, num_ranks = (int(value) for value in given.values())
        if rank >= num_ranks:
            raise ConfigError(f"RANK must be below WORLD_SIZE, got {rank} of {num_ranks}; use torchrun")
        return cls(rank=rank, local_rank=local_rank, num_ranks=num_ranks)


def keep_ray_quiet() -> None:
    """Turn off Ray's reports of its use, which it sends unless the environment says otherwise. Mutates os.environ."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown environment variable {name}; {hint}Known: {', '.join(known)}"
