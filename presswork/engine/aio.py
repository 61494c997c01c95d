"""The engine for asyncio programs: one worker thread steps, events arrive on the caller's loop."""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from presswork.engine.engine import Engine
from presswork.engine.events import Done, Event, Reply
from presswork.engine.params import SamplingParams
from presswork.engine.request import Request
from presswork.errors import EngineClosedError, GenerationError, PressworkError, RequestError
from presswork.ops.threads import take_threads

logger = logging.getLogger(__name__)

_PREPARING = 2  # threads that prepare languages


class _Listener:
    """Carries one request's events from the worker thread to its event loop."""

    def __init__(self, request: Request):
        self.request = request
        self.queue: asyncio.Queue[Event | PressworkError] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def forward(self) -> bool:
        """Hand over what is new; returns whether the request has ended. Called by the worker."""
        ended = self.request.ended
        while self.request.events:
            self._put(self.request.events.popleft())
        if ended and self.request.error is not None:
            self._put(self.request.error)
        return ended

    def _put(self, item: Event | PressworkError) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.queue.put_nowait, item)


class AsyncEngine:
    """An asyncio facade over an Engine. All methods belong on one event loop; passes run in a thread."""

    def __init__(self, engine: Engine):
        self.engine = engine
        # Preparing a language may take seconds; other requests do not wait behind it.
        self._preparing = ThreadPoolExecutor(_PREPARING, thread_name_prefix="presswork-prepare")
        self._listeners: list[_Listener] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._worker = threading.Thread(target=self._work, name="presswork-engine", daemon=True)
        self._worker.start()

    async def stream(
        self, prompt_ids: Sequence[int], params: SamplingParams | None = None, *, drafts: bool = False
    ) -> AsyncGenerator[Event, None]:
        """Events of one request; leaving the loop early, or being cancelled, cancels the request.

        Raises: what Engine.submit raises, and the request's own error.
        """
        if self._stopping:
            raise EngineClosedError("the engine is closed; load the model again")
        loop, threads = asyncio.get_running_loop(), None
        if params is not None and params.constraint is not None:
            # In a thread: to know a large schema again takes a moment too.
            is_prepared = await loop.run_in_executor(None, self.engine.is_prepared, params)
            threads = None if is_prepared else self._preparing
        is_abandoned = threading.Event()

        def submit() -> Request:
            if is_abandoned.is_set():
                raise GenerationError("whoever asked has left")
            return self.engine.submit(prompt_ids, params, wants_drafts=drafts)

        submitting = asyncio.ensure_future(loop.run_in_executor(threads, submit))
        try:
            request = await asyncio.shield(submitting)
        except asyncio.CancelledError:
            # A thread that has begun goes on; what it queues has nobody to read it.
            is_abandoned.set()
            submitting.add_done_callback(self._abandon)
            raise
        listener = _Listener(request)
        with self._changed:
            self._listeners.append(listener)
            self._changed.notify()
            is_stopped = self._stopping
        if is_stopped:
            listener.forward()
        try:
            while True:
                item = await listener.queue.get()
                if isinstance(item, PressworkError):
                    raise item
                yield item
                if isinstance(item, Done):
                    return
        finally:
            # The worker drops cancelled requests itself; waiting for its lock here would hold up the event loop.
            request.cancelled = True
            with self._changed:
                self._changed.notify()

    async def generate(self, prompt: str | None = None, **arguments: Any) -> Reply:
        """One reply. Arguments: as Engine.generate takes for a single prompt, without best_of."""
        raw = arguments.pop("raw", False)
        prompt_token_ids = arguments.pop("prompt_token_ids", None)
        params = self.engine.defaults.changed(**arguments)
        if (prompt is None) == (prompt_token_ids is None):
            raise RequestError("give either a prompt text or prompt_token_ids")
        ids = prompt_token_ids if prompt is None else self.engine.encode_prompt(prompt, raw=raw)
        async for event in self.stream(ids, params):
            if isinstance(event, Done):
                return event.reply
        raise AssertionError("a request ends in a reply or an error")

    def _abandon(self, submitted: "asyncio.Future[Request]") -> None:
        if not submitted.cancelled() and submitted.exception() is None:
            submitted.get_loop().run_in_executor(None, self.engine.cancel, submitted.result())

    async def aclose(self) -> None:
        """Stop the worker and close the engine; requests in flight end with EngineClosedError."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        await asyncio.to_thread(self._worker.join)
        self.engine.close()
        self._preparing.shutdown(wait=False)
        for listener in self._listeners:
            listener.forward()
        self._listeners.clear()

    def _work(self) -> None:
        take_threads()
        while True:
            with self._changed:
                while not self._listeners and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                listeners = list(self._listeners)
            try:
                self.engine.step()
            except Exception as error:
                logger.exception("a step failed")
                for listener in listeners:
                    listener.request.fail(GenerationError(f"the engine failed: {error}"))
            ended = [listener for listener in listeners if listener.forward()]
            with self._changed:
                self._listeners = [listener for listener in self._listeners if listener not in ended]
