"""The step loop: plan, pass, read, let every request take its step. One call of `step` is one model pass.

L canvas, D model width.
"""

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from presswork.diffusion.sampler import CanvasState, StepReading, advance, hold, start_canvas
from presswork.engine.events import Commit, Draft, TokenLogprob, TokenTrace
from presswork.engine.pins import canvas_pins
from presswork.engine.prefix import PrefixCache
from presswork.engine.readings import token_logprobs
from presswork.engine.request import Request
from presswork.engine.runner import Runner
from presswork.engine.scheduler import Scheduler, WorkItem
from presswork.engine.starts import start_of
from presswork.errors import GenerationError, NonFiniteError, OutOfMemoryError, PressworkError
from presswork.ops.vocab_head import Reading

logger = logging.getLogger(__name__)


class EngineLoop:
    """Moves every running request one pass further at a time. Not thread-safe: one caller at a time."""

    def __init__(self, runner: Runner, scheduler: Scheduler, prefix: PrefixCache):
        self._runner, self._scheduler, self._prefix = runner, scheduler, prefix
        self._vocab_size = runner.config.vocab_size

    def step(self) -> bool:
        """One pass. Returns whether there is more to do. Failures end the requests they concern.

        Raises: only what is not an Exception, such as KeyboardInterrupt; the pass's requests have then failed, because
        some layers may have written keys and others not.
        """
        items = self._scheduler.plan()
        if not items:
            return self._scheduler.has_work
        try:
            for item in items:
                self._open_canvas(item)
            self._after(items, self._runner.run(items))
        except Exception as error:
            logger.exception("a pass failed")
            self._fail_all(items, error)
        except BaseException as error:
            self._fail_all(items, error)
            raise
        finally:
            for item in items:
                if item.request.ended:
                    self._scheduler.retire(item.request)
        return self._scheduler.has_work

    def _fail_all(self, items: Sequence[WorkItem], error: BaseException) -> None:
        """A pass that broke takes its requests with it and nothing else."""
        for item in items:
            memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)
            reason = str(error) or type(error).__name__
            if isinstance(error, Exception):  # Ctrl-C is no failure
                logger.error("request %d failed in its pass: %s", item.request.request_id, reason)
            text = f"request {item.request.request_id} failed: {reason}"
            if memory:
                text += "; fewer requests at once, or a shorter prompt or max_tokens, need less memory"
            kind = OutOfMemoryError if memory else GenerationError
            item.request.fail(error if isinstance(error, PressworkError) else kind(text))

    def _open_canvas(self, item: WorkItem) -> None:
        request = item.request
        if item.canvas_length and request.canvas is None:
            length, first = item.canvas_length, len(request.output.token_ids)
            pins = canvas_pins(request.params.pins, first, length, self._runner.model.decoder.embedding)
            request.canvas = start_canvas(
                request.noise, request.num_canvases, length, self._vocab_size, self._runner.device, pins,
                start_of(request, length, self._runner.device),
            )  # fmt: skip
            request.num_canvases += 1

    def _after(self, items: Sequence[WorkItem], hidden: Sequence[Tensor]) -> None:
        for item in items:
            self._strike_off(item)
        canvases = [(item.request, rows) for item, rows in zip(items, hidden, strict=True) if item.canvas_length]
        if canvases:
            requests, rows = [r for r, _ in canvases], [h for _, h in canvases]
            for request, h, reading in zip(
                requests, rows, self._runner.reader.read_canvases(requests, rows), strict=True
            ):
                self._denoised(request, h, reading)
        nexts = [(item.request, rows) for item, rows in zip(items, hidden, strict=True) if item.wants_next]
        if nexts:
            requests, rows = [r for r, _ in nexts], [h for _, h in nexts]
            for request, h, reading in zip(requests, rows, self._runner.reader.read_next(requests, rows), strict=True):
                self._next_token(request, h, reading)

    def _strike_off(self, item: WorkItem) -> None:
        """The pass wrote these tokens' keys and values; remember the prefix where a chunk or canvas ended."""
        request = item.request
        request.num_passes += 1
        if not item.num_causal:
            return
        request.pending = request.pending[item.num_causal :]
        assert request.cache is not None
        is_prompt = request.cache.length <= len(request.prompt_ids)
        if is_prompt or not request.is_ar:
            self._prefix.put(request.all_ids()[: request.cache.length], request.cache, request.adapter.number)

    def _denoised(self, request: Request, hidden: Float[Tensor, "L D"], reading: StepReading | None) -> None:
        """One denoise step of one request: advance its canvas, and commit it when it is finished."""
        canvas = request.canvas
        assert canvas is not None
        if reading is None:
            request.fail(_non_finite(request, f"step {canvas.num_steps + 1} of canvas {canvas.index + 1}"))
            return
        advance(canvas, reading, request.rules, request.noise, self._vocab_size)
        request.num_denoise_steps += 1
        canvas.finished = canvas.finished or request.is_overdue
        if not canvas.finished and request.params.commit_after is not None:
            num = canvas.num_settled(request.params.commit_after, request.params.entropy_bound)
            if num > canvas.num_held:
                self._commit(request, hidden, num)
                hold(canvas, num, self._runner.model.decoder.embedding)
                # Of a canvas that is all text another step would change nothing.
                canvas.finished = num == len(canvas.argmax)
        if request.wants_drafts and not request.ended:
            request.emit(_draft(canvas, request.rules.schedule.num_steps))
        if canvas.finished:
            self._commit(request, hidden, len(canvas.argmax))
            self._close_canvas(request)

    def _commit(self, request: Request, hidden: Float[Tensor, "L D"], stop: int) -> None:
        """The arg-max canvas becomes text from the last commit up to a position; the reply may end in it."""
        canvas = request.canvas
        assert canvas is not None
        first = canvas.num_held
        if first == stop:
            return
        is_last = stop == len(canvas.argmax) and request.ends_here
        taken = request.output.take(canvas.argmax[first:stop].tolist(), is_last=is_last)
        rows = slice(first, first + taken.num_tokens)
        logprobs = None
        if request.params.logprobs is not None:
            steps, entropy = canvas.settled_step[rows].tolist(), canvas.entropy[rows].tolist()
            logprobs = self._logprobs(request, hidden[rows], canvas.argmax[rows], entropy, steps, canvas.num_steps)
        request.emit(
            Commit(
                canvas_index=canvas.index,
                token_ids=canvas.argmax[rows].tolist(),
                text=taken.text,
                num_steps=canvas.num_steps,
                logprobs=logprobs,
                trace=_trace(request, canvas, rows) if request.params.trace else None,
            )
        )
        if taken.finish_reason is not None:
            request.finish(taken.finish_reason, taken.stop_match)

    def _close_canvas(self, request: Request) -> None:
        """A whole canvas is text; unless it was the last, its keys and values are written in the next pass."""
        canvas, request.canvas = request.canvas, None
        assert canvas is not None
        if not request.ended:
            request.pending = canvas.argmax.tolist()
            if request.constraint is not None:
                request.constraint.take(request.pending, request.end_ids)

    def _logprobs(
        self, request: Request, hidden: Tensor, ids: Tensor, entropy: list[float], settled: list[int], num_steps: int
    ) -> list[TokenLogprob]:
        reading = self._runner.reader.read_logprobs(hidden, ids, request.params.logprobs or 0)
        return token_logprobs(reading, ids, entropy, settled, num_steps)

    def _next_token(self, request: Request, hidden: Float[Tensor, "1 D"], reading: Reading) -> None:
        """One token of one ar request."""
        position = len(request.output.token_ids)
        if not bool(reading.finite.all()):
            request.fail(_non_finite(request, f"token {position + 1}"))
            return
        token = int(reading.sample)
        taken = request.output.take([token], is_last=request.ends_here)
        if request.constraint is not None:
            request.constraint.take([token], request.end_ids)
        logprobs = None
        if request.params.logprobs is not None:
            logprobs = self._logprobs(request, hidden, reading.sample, reading.entropy.tolist(), [1], 1)
        request.emit(Commit(canvas_index=position, token_ids=[token], text=taken.text, num_steps=1, logprobs=logprobs))
        if taken.finish_reason is None:
            request.pending = [token]
            return
        if request.cache is not None:
            self._prefix.put(request.all_ids()[: request.cache.length], request.cache, request.adapter.number)
        request.finish(taken.finish_reason, taken.stop_match)


def _draft(canvas: CanvasState, num_steps: int) -> Draft:
    return Draft(
        canvas_index=canvas.index,
        step=canvas.num_steps,
        max_steps=num_steps - canvas.first_step,
        token_ids=canvas.argmax.tolist(),
        entropy=canvas.entropy.tolist(),
        accepted=canvas.accepted.tolist(),
        num_committed=canvas.num_held,
    )


def _trace(request: Request, canvas: CanvasState, rows: slice) -> list[TokenTrace]:
    """How tokens of a canvas came about that were committed just now."""
    first = len(request.output.token_ids) - rows.stop
    pinned = {position - first for position, _ in request.params.pins}
    given = torch.full_like(canvas.argmax, -1) if canvas.given is None else canvas.given
    columns = (canvas.argmax, canvas.settled_step, canvas.entropy, given)
    return [
        TokenTrace(
            token_id=token,
            settled_step=settled,
            num_steps=canvas.num_steps,
            entropy=entropy,
            is_pinned=position in pinned,
            start_id=None if start < 0 else start,
        )
        for position, token, settled, entropy, start in zip(
            range(rows.start, rows.stop), *(column[rows].tolist() for column in columns), strict=True
        )
    ]


def _non_finite(request: Request, where: str) -> NonFiniteError:
    return NonFiniteError(
        f"request {request.request_id} failed at {where}: the model produced NaN or infinite logits; check the "
        "checkpoint's weights, or run in float32"
    )
