"""Settings from the environment. The only module that reads os.environ."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from presswork.errors import ConfigError

_LEVELS = ("debug", "info", "warning", "error")
_KEYS = ("PRESSWORK_THREADS", "PRESSWORK_LOG")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment may set.

    Args:
        threads: PRESSWORK_THREADS, CPU threads for products; None is torch's own choice.
        log_level: PRESSWORK_LOG, one of debug, info, warning, error.
    """

    threads: int | None = None
    log_level: str = "warning"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read PRESSWORK_* variables. Raises ConfigError with key, value and accepted form."""
        environ = os.environ if environ is None else environ
        for key in environ:
            if key.startswith("PRESSWORK_") and key not in _KEYS:
                near = difflib.get_close_matches(key, _KEYS, 1)
                hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(_KEYS)}"
                raise ConfigError(f"unknown environment variable {key}{hint}")
        threads = environ.get("PRESSWORK_THREADS")
        if threads is not None and (not threads.isascii() or not threads.isdigit() or int(threads) < 1):
            raise ConfigError(f"PRESSWORK_THREADS must be an integer of at least 1, got {threads!r}")
        level = environ.get("PRESSWORK_LOG", "warning").lower()
        if level not in _LEVELS:
            raise ConfigError(f"PRESSWORK_LOG must be one of {', '.join(_LEVELS)}, got {level!r}")
        return cls(threads=None if threads is None else int(threads), log_level=level)
