"""Reading a request's events, one at a time."""

from collections.abc import Iterator
from typing import Protocol

from presswork.engine.abandon import check_wanted
from presswork.engine.events import Event
from presswork.engine.request import Request


class _Driver(Protocol):
    """The engine, as a stream needs it."""

    def wait(self, request: Request) -> None: ...

    def cancel(self, request: Request) -> None: ...


class EventStream(Iterator[Event]):
    """Events of one request as they happen; whoever reads drives the passes. Closing or dropping it cancels."""

    def __init__(self, engine: _Driver, request: Request):
        self._engine, self._request = engine, request

    def __next__(self) -> Event:
        """Raises: the request's own error."""
        request = self._request
        try:
            while True:
                # Read before the events: an end that comes in between is found in the next round.
                ended = request.ended
                if request.events:
                    return request.events.popleft()
                if ended:
                    break
                check_wanted()
                self._engine.wait(request)
        except BaseException:
            self.close()
            raise
        if request.error is not None:
            raise request.error
        raise StopIteration

    def close(self) -> None:
        """Cancel the request if it has not ended."""
        self._engine.cancel(self._request)

    def __del__(self) -> None:
        self.close()
