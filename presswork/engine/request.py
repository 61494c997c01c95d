"""One request's life as plain state: what it wrote, what it waits for, what it told its caller."""

import itertools
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import torch
from jaxtyping import Int
from torch import Tensor

from presswork.cache.contiguous import SequenceCache
from presswork.diffusion.noise import CounterNoise
from presswork.diffusion.sampler import CanvasState, DiffusionRules
from presswork.engine.adapters import NO_ADAPTER, LoadedAdapter
from presswork.engine.constraints import ConstraintState
from presswork.engine.events import (
    Commit,
    Done,
    Draft,
    Event,
    FinishReason,
    Reply,
    Stats,
    TokenLogprob,
    TokenTrace,
    Usage,
)
from presswork.engine.output import OutputText
from presswork.engine.params import SamplingParams
from presswork.errors import PressworkError

_ids = itertools.count(1)


class Phase(Enum):
    """Where a request stands between two passes."""

    WAITING = auto()
    RUNNING = auto()
    ENDED = auto()


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """A prompt on its way to a reply.

    Args:
        prompt_ids: at least one token in ar mode.
        max_tokens: resolved bound of generated tokens.
        end_ids: tokens that end the reply.
        wants_drafts: whether Draft events are produced.
        adapter: what it is written with; held until the request ends, also when it is unloaded meanwhile.
        banned: token ids ruled out at single positions of the generated text.
        never: token ids ruled out everywhere, ascending.
        start_ids: tokens the canvases start from, from the first generated one on.
        constraint: the language the reply is kept to, and how far it is into it; None where it is free.
        pending: tokens whose keys and values are not in the cache yet; what the next causal rows are.
        canvas: the canvas being denoised, None while prefilling or in ar mode.
        cached_tokens: prompt tokens that came out of the prefix cache.
    """

    prompt_ids: list[int]
    params: SamplingParams
    max_tokens: int
    output: OutputText
    end_ids: frozenset[int] = frozenset()
    wants_drafts: bool = False
    adapter: LoadedAdapter = NO_ADAPTER
    banned: Mapping[int, Int[Tensor, "B"]] = field(default_factory=dict)
    never: Int[Tensor, "B"] = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    start_ids: Sequence[int] = ()
    constraint: ConstraintState | None = None
    request_id: int = field(default_factory=lambda: next(_ids))
    phase: Phase = Phase.WAITING
    cancelled: bool = False
    events: deque[Event] = field(default_factory=deque)
    error: PressworkError | None = None
    cache: SequenceCache | None = None
    pending: list[int] = field(default_factory=list)
    canvas: CanvasState | None = None
    cached_tokens: int = 0
    num_canvases: int = 0
    num_denoise_steps: int = 0
    num_passes: int = 0
    text_parts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    trace: list[TokenTrace] = field(default_factory=list)
    submitted_at: float = field(default_factory=time.perf_counter)
    first_text_at: float | None = None
    _seen: set[int] = field(default_factory=set)
    _num_seen: int = -1
    noise: CounterNoise = field(init=False)
    rules: DiffusionRules = field(init=False)

    def __post_init__(self) -> None:
        self.noise, self.rules = CounterNoise(self.params.seed), self.params.rules()
        self.pending = list(self.prompt_ids)

    @property
    def is_ar(self) -> bool:
        return self.params.mode == "ar"

    @property
    def is_overdue(self) -> bool:
        """Whether its time is over."""
        limit = self.params.max_time
        return limit is not None and time.perf_counter() - self.submitted_at >= limit

    @property
    def ends_here(self) -> bool:
        """Whether its reply may end anywhere, and its time is over."""
        return self.constraint is None and not self.params.pins and self.is_overdue

    @property
    def ended(self) -> bool:
        return self.phase is Phase.ENDED

    def all_ids(self) -> list[int]:
        """Prompt and committed tokens."""
        return self.prompt_ids + self.output.token_ids

    @property
    def num_before_canvas(self) -> int:
        """Tokens committed before the open canvas; all of them where none is open."""
        return len(self.output.token_ids) - (0 if self.canvas is None else self.canvas.num_held)

    def seen_ids(self) -> set[int]:
        """Distinct tokens of the prompt and of what was committed before the open canvas. Mutates what it remembers."""
        known = self.num_before_canvas
        if self._num_seen < 0:
            self._seen = set(self.prompt_ids)
            self._num_seen = 0
        self._seen.update(self.output.token_ids[self._num_seen : known])
        self._num_seen = known
        return self._seen

    def emit(self, event: Draft | Commit) -> None:
        """Tell the caller something that is not the end. Mutates events."""
        if isinstance(event, Commit):
            self.text_parts.append(event.text)
            if event.text and self.first_text_at is None:
                self.first_text_at = time.perf_counter()
            if event.logprobs:
                self.logprobs += event.logprobs
            if event.trace:
                self.trace += event.trace
        self.events.append(event)

    def finish(self, reason: FinishReason, stop_match: str | int | None = None) -> None:
        """End with a reply. Mutates phase and events; a request ends once."""
        if self.ended:
            return
        now = time.perf_counter()
        count = len(self.output.token_ids)
        reply = Reply(
            text="".join(self.text_parts),
            token_ids=list(self.output.token_ids),
            finish_reason=reason,
            stop_match=stop_match,
            usage=Usage(prompt_tokens=len(self.prompt_ids), cached_tokens=self.cached_tokens, completion_tokens=count),
            stats=Stats(
                num_canvases=self.num_canvases,
                num_denoise_steps=self.num_denoise_steps,
                num_passes=self.num_passes,
                wall_s=now - self.submitted_at,
                first_text_s=None if self.first_text_at is None else self.first_text_at - self.submitted_at,
                completion_tokens=count,
            ),
            logprobs=self.logprobs if self.params.logprobs is not None else None,
            trace=self.trace if self.params.trace else None,
        )
        self.events.append(Done(reply=reply))
        # Last: who sees the end finds the event.
        self.phase = Phase.ENDED

    def fail(self, error: PressworkError) -> None:
        """End with an error, which the caller's next read raises. Mutates phase and error."""
        if not self.ended:
            self.error = error
            # Last: who sees the end finds the error.
            self.phase = Phase.ENDED
