"""Work in a thread that nobody waits for any more: it ends before its next pass."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from presswork.errors import GenerationError

_abandoned: ContextVar[threading.Event | None] = ContextVar("abandoned", default=None)


@contextmanager
def abandonable(abandoned: threading.Event) -> Iterator[None]:
    """What runs inside, in this thread, ends with GenerationError at its next pass once the event is set."""
    token = _abandoned.set(abandoned)
    try:
        yield
    finally:
        _abandoned.reset(token)


def check_wanted() -> None:
    """Raises GenerationError where nobody waits for the work any more."""
    abandoned = _abandoned.get()
    if abandoned is not None and abandoned.is_set():
        raise GenerationError("nobody waits for this any more")
