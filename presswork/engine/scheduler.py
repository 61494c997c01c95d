"""Which request does what in the next pass. Plain state; no tensors."""

from collections import deque
from dataclasses import dataclass

from presswork.cache.contiguous import SequenceCache
from presswork.config import ModelConfig
from presswork.engine.prefix import PrefixCache
from presswork.engine.request import Phase, Request
from presswork.errors import QueueFullError


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem:
    """One request's part of a pass: causal tokens to append, then possibly its canvas, which may already see them.

    Args:
        num_causal: how many of the request's pending tokens are appended.
        canvas_length: rows of its canvas, 0 for none.
        wants_next: the last causal row's distribution decides the next token (ar mode).
    """

    request: Request
    num_causal: int
    canvas_length: int
    wants_next: bool

    @property
    def num_rows(self) -> int:
        return self.num_causal + self.canvas_length


class Scheduler:
    """Admits requests in order of arrival and gives every running one its share of each pass.

    There is no lockstep: a request is in any phase, at any context length, at its own step. Prefill goes in chunks,
    so that a long prompt does not hold the canvases of others up for longer than a chunk.
    """

    def __init__(
        self, config: ModelConfig, prefix: PrefixCache, *, max_running: int, max_waiting: int, prefill_chunk: int,
        max_rows: int, max_context: int,
    ):  # fmt: skip
        self._config, self._prefix = config, prefix
        self._max_running, self._max_waiting = max_running, max_waiting
        self._prefill_chunk, self._max_rows, self._max_context = prefill_chunk, max_rows, max_context
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue a request. Raises QueueFullError past the bound."""
        if len(self.waiting) >= self._max_waiting:
            raise QueueFullError(len(self.waiting), self._max_waiting)
        self.waiting.append(request)

    def plan(self) -> list[WorkItem]:
        """The next pass. Drops cancelled requests, admits waiting ones, rotates when rows run out. Mutates self."""
        self.drop_cancelled()
        while self.waiting and len(self.running) < self._max_running:
            self._admit(self.waiting[0])
            self.waiting.popleft()
        items: list[WorkItem] = []
        num_rows = 0
        for request in self.running:
            item = self._next_item(request)
            if items and num_rows + item.num_rows > self._max_rows:
                break
            items.append(item)
            num_rows += item.num_rows
        if len(items) < len(self.running):
            self.running = self.running[len(items) :] + self.running[: len(items)]
        return items

    def retire(self, request: Request) -> None:
        """Free what an ended request holds. Mutates self."""
        if request in self.running:
            self.running.remove(request)
        if request.cache is not None:
            request.cache.release()
            request.cache = None
        request.canvas = None

    def drop_cancelled(self) -> None:
        """End and free requests whose callers gave up, and free those that ended elsewhere. Mutates self."""
        for request in [r for r in (*self.waiting, *self.running) if r.cancelled or r.ended]:
            if request in self.waiting:
                self.waiting.remove(request)
            request.finish("cancelled")
            self.retire(request)

    def _admit(self, request: Request) -> None:
        """Start a request from the longest prefix that is already computed."""
        # In ar mode the last prompt token must be computed: its distribution decides the first new one.
        reusable = len(request.prompt_ids) - (1 if request.is_ar else 0)
        cache = self._prefix.longest(request.prompt_ids, reusable, request.adapter.number)
        request.cache = cache or SequenceCache(self._config)
        request.cached_tokens = request.cache.length
        request.pending = request.prompt_ids[request.cached_tokens :]
        request.phase = Phase.RUNNING
        self.running.append(request)

    def _next_item(self, request: Request) -> WorkItem:
        num_causal = min(len(request.pending), self._prefill_room(request))
        is_last = num_causal == len(request.pending)
        canvas_length = 0
        if is_last and not request.is_ar:
            canvas_length = self._canvas_length(request)
        return WorkItem(
            request=request,
            num_causal=num_causal,
            canvas_length=canvas_length,
            wants_next=is_last and request.is_ar,
        )

    def _prefill_room(self, request: Request) -> int:
        """All that fits a chunk; longer prompts go up to the next multiple, so borders do not depend on the start."""
        assert request.cache is not None
        if len(request.pending) <= self._prefill_chunk:
            return self._prefill_chunk
        return self._prefill_chunk - request.cache.length % self._prefill_chunk

    def _canvas_length(self, request: Request) -> int:
        if request.canvas is not None:
            return request.canvas.tokens.shape[0]
        explicit = request.params.canvas_length
        if request.constraint is not None:
            # Kept to a text that ends within max_tokens, so the canvas may not go past it; behind the longest text
            # and its end token there could only be tail.
            length, most = min(explicit or self._config.canvas_length, request.output.num_left), request.constraint.most
            return length if most is None else min(length, most + 1)
        if explicit is None:
            return min(self._config.canvas_length, request.output.num_left)
        return min(explicit, self._max_context - len(request.prompt_ids) - len(request.output.token_ids))
