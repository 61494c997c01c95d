"""Times of denoise steps and of single tokens on this machine, for `doctor` and `bench`."""

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from presswork.cli.sudoku import EXAMPLE, is_sudoku
from presswork.engine.engine import Engine
from presswork.engine.events import Commit, Done, Draft, Reply
from presswork.errors import RequestError

_NO_EARLY_STOP: dict[str, Any] = {"stability_threshold": None}
_QUESTION = "Why is the sky blue?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One request, timed from outside.

    Args:
        step_s: seconds between denoise steps of a canvas (diffusion) or between tokens (ar), without the first.
        reply: None where the time was up before the end.
        num_steps: denoise steps or tokens seen.
    """

    step_s: list[float]
    num_steps: int
    reply: Reply | None


def time_request(engine: Engine, ids: Sequence[int], *, budget_s: float = float("inf"), **params: Any) -> Timing:
    """Run a request and time its steps; it is cancelled when the budget is spent, though not before its second step."""
    gaps: list[float] = []
    num_steps, canvas, last = 0, None, 0.0
    started = time.perf_counter()
    for event in engine.stream(prompt_token_ids=ids, drafts=params.get("mode") != "ar", **params):
        now = time.perf_counter()
        if isinstance(event, Done):
            return Timing(step_s=gaps, num_steps=num_steps, reply=event.reply)
        is_step = isinstance(event, Draft) or (isinstance(event, Commit) and params.get("mode") == "ar")
        if not is_step:
            continue
        num_steps += 1
        # The first step of a canvas shares its pass with the prefill or with the last canvas's keys.
        if num_steps > 1 and (params.get("mode") == "ar" or event.canvas_index == canvas):
            gaps.append(now - last)
        canvas, last = event.canvas_index, now
        if gaps and now - started > budget_s:
            break
    return Timing(step_s=gaps, num_steps=num_steps, reply=None)


def example_prompt(engine: Engine) -> list[int]:
    """A prompt the model was made for, where we know one: how many steps it takes depends on that."""
    if is_sudoku(engine):
        return engine.encode_prompt(EXAMPLE)
    if engine.tokenizer is not None:
        ids = engine.encode_prompt(_QUESTION)
        if ids and max(ids) < engine.model.config.vocab_size:
            return ids
    return random_prompt(engine, 32)


def random_prompt(engine: Engine, num_tokens: int, seed: int = 0) -> list[int]:
    """Random tokens without special ones: prompts for speed, not for sense."""
    special = engine.end_ids | (engine.tokenizer.special_ids if engine.tokenizer is not None else frozenset())
    plain = [token for token in range(engine.model.config.vocab_size) if token not in special]
    return random.Random(seed).choices(plain or range(engine.model.config.vocab_size), k=num_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Which mode is faster here.

    Args:
        canvas_length: of the canvases that were timed.
        ms_per_denoise_step, ms_per_ar_token: medians.
        steps_per_canvas: what one example canvas took; its step budget where it had not settled in the time allowed.
        is_settled: whether it had.
        num_tokens: the text length the comparison is for; diffusion_s and ar_s are its times, without prefill.
        break_even_steps: with fewer steps a canvas diffusion is the faster mode.
    """

    canvas_length: int
    ms_per_denoise_step: float
    ms_per_ar_token: float
    steps_per_canvas: int
    is_settled: bool
    num_tokens: int

    @property
    def num_canvases(self) -> int:
        return -(-self.num_tokens // self.canvas_length)

    @property
    def diffusion_s(self) -> float:
        return self.num_canvases * self.steps_per_canvas * self.ms_per_denoise_step / 1e3

    @property
    def ar_s(self) -> float:
        return self.num_tokens * self.ms_per_ar_token / 1e3

    @property
    def break_even_steps(self) -> float:
        return self.num_tokens * self.ms_per_ar_token / (self.num_canvases * self.ms_per_denoise_step)

    @property
    def faster(self) -> str:
        return "diffusion" if self.diffusion_s < self.ar_s else "ar"

    def to_json(self) -> dict[str, Any]:
        """Plain data, what follows from it included."""
        derived = ("diffusion_s", "ar_s", "break_even_steps", "faster")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


def compare_modes(engine: Engine, num_tokens: int, *, budget_s: float = 20.0) -> Comparison:
    """Time a few denoise steps and a few tokens after an example prompt.

    Args:
        num_tokens: the text length to compare for.
        budget_s: about how long each of the three measurements may take.
    """
    ids = example_prompt(engine)[: engine.max_context // 2]
    room = engine.max_context - len(ids)
    if room < 2:
        raise RequestError(f"a context of {engine.max_context} is too short to measure; --no-measure leaves that out")
    canvas = min(engine.model.config.canvas_length, num_tokens, room)
    whole = {"max_tokens": canvas, "canvas_length": canvas, "ignore_eos": True}
    # First calls compile kernels or fetch them from the cache; they also leave the prompt in the prefix cache.
    time_request(engine, ids, **whole, **_NO_EARLY_STOP, max_denoising_steps=1)
    time_request(engine, ids, mode="ar", max_tokens=2, ignore_eos=True)
    fixed = time_request(engine, ids, budget_s=budget_s, **whole, **_NO_EARLY_STOP, max_denoising_steps=8)
    natural = time_request(engine, ids, budget_s=budget_s, **whole)
    single = time_request(engine, ids, budget_s=budget_s, mode="ar", max_tokens=min(16, room), ignore_eos=True)
    return Comparison(
        canvas_length=canvas,
        ms_per_denoise_step=1e3 * statistics.median(fixed.step_s),
        ms_per_ar_token=1e3 * statistics.median(single.step_s),
        steps_per_canvas=engine.defaults.max_denoising_steps if natural.reply is None else natural.num_steps,
        is_settled=natural.reply is not None,
        num_tokens=num_tokens,
    )
