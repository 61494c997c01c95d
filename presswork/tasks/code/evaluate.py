"""How well a model writes Python: missing lines of HumanEval, functions that parse, loss on held-out documents.

The same weights do each by denoising and one token at a time. Left to right, a missing line is written from what stands
before it alone.
"""

import ast
import re
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from presswork.engine.engine import Engine
from presswork.engine.params import Mode
from presswork.errors import GenerationError
from presswork.tasks.code.headers import function_headers
from presswork.tasks.code.human_eval import InfillTask
from presswork.tasks.completion import complete
from presswork.tasks.journal import NO_JOURNAL, Found, Journal
from presswork.training.loss import batch_losses
from presswork.training.packing import PackConfig, PackedBatches, load_documents

Progress = Callable[[int], None]
Way = Literal["diffusion", "gaps", "ar"]
_Written = tuple[str | None, str, list[int]]
"""The line, None if no candidate is text; the whole text, empty without a line; steps, of one canvas or of all."""

LINE_TOKENS = 24
"""Most free tokens of a missing line; every length up to it is tried."""

_FUNCTION_TOKENS = 192
_BATCH = 32
_ROWS = 8
NUM_BATCHES = 8


def choose_tasks(tasks: Sequence[InfillTask], num: int | None, seed: int) -> list[InfillTask]:
    """So many tasks, drawn by the seed, in their own order; None takes all."""
    if num is None or num >= len(tasks):
        return list(tasks)
    chosen = np.random.default_rng(seed).permutation(len(tasks))[:num]
    return [tasks[i] for i in sorted(chosen)]


def evaluate_infill(
    engine: Engine, tasks: Sequence[InfillTask], seed: int, *, way: Way = "diffusion",
    on_progress: Progress | None = None, journal: Journal = NO_JOURNAL, **params: Any,
) -> dict[str, Any]:  # fmt: skip
    """Write the missing line of each task and run its tests.

    Args:
        seed: of every request.
        way: "diffusion" fills the gap from both sides, each length in a canvas of its own (`Engine.fill`), "gaps" at a
            few lengths, as `presswork fill` does (`Engine.fill_gaps`); "ar" goes on from the prefix to the line's end,
            the likeliest token each time.
        on_progress: called with the number done.
        journal: has the tasks that are done.
        params: of the requests, fields of SamplingParams.
    Returns: num; exact (share of lines that are the reference's), passed (share whose tests pass), preserved (share
        that came back with prefix and suffix as they were; without a reply, a task does not count), mean_steps (denoise
        steps of a canvas; for gaps, of all candidates; for ar, tokens of a line), wall_s (of writing, without the
        tests).
    """
    lines = []
    for done, task in enumerate(tasks, start=1):
        part = f"infill {way} {task.name}"
        lines.append(journal.once(part, partial(_judged_line, engine, task, seed, way, params)))
        if on_progress is not None:
            on_progress(done)
    steps = [taken for line in lines for taken in line["steps"]]
    shares = {name: sum(line[name] for line in lines) / max(1, len(lines)) for name in ("exact", "passed", "preserved")}
    return {
        "num": len(lines),
        **shares,
        "mean_steps": sum(steps) / max(1, len(steps)),
        "wall_s": sum(line["wall_s"] for line in lines),
    }


def evaluate_functions(
    engine: Engine, num: int, seed: int, *, mode: Mode = "diffusion", best_of: int = 1,
    on_progress: Progress | None = None, journal: Journal = NO_JOURNAL, **params: Any,
) -> dict[str, Any]:  # fmt: skip
    """Write bodies for given function headers, in turn, and see whether they are Python.

    Args:
        num: functions to write.
        seed: the first one's; the others count on from it.
        mode: "ar" samples at the middle of the checkpoint's temperature schedule.
        best_of: replies to write for each, as `Engine.generate` takes it.
        on_progress, journal, params: as in `evaluate_infill`.
    Returns: num; parses (share that Python parses and that have a statement beside the docstring), ended (share that
        ended before the most tokens there may be), mean_steps (denoise steps of a canvas; for ar, tokens), wall_s, and
        three samples. A function ends before the first line that is not indented.
    """
    if mode == "ar":
        params = {"temperature": (engine.defaults.t_min + engine.defaults.t_max) / 2, **params}
    batches = []
    for start in range(0, num, _BATCH):
        numbers = range(start, min(num, start + _BATCH))
        work = partial(_written_functions, engine, numbers, seed, mode, best_of, params)
        batches.append(journal.once(f"functions {mode} {start}", work))
        if on_progress is not None:
            on_progress(numbers.stop)
    functions = [source for batch in batches for source in batch["functions"]]
    total = {name: sum(batch[name] for batch in batches) for name in ("ended", "steps", "units", "wall_s")}
    return {
        "num": num,
        "parses": sum(map(is_function, functions)) / max(1, num),
        "ended": total["ended"] / max(1, num),
        "mean_steps": total["steps"] / max(1, total["units"]),
        "wall_s": total["wall_s"],
        "samples": functions[:3],
    }


def _written_functions(
    engine: Engine, numbers: range, seed: int, mode: Mode, best_of: int, params: dict[str, Any]
) -> Found:
    """Functions for headers by number: their sources, how many ended, steps (tokens), canvases (functions), seconds."""
    headers = function_headers()
    prefixes = [headers[i % len(headers)] for i in numbers]
    seeds = [seed + i for i in numbers]
    started = time.perf_counter()
    found = complete(engine, prefixes, seeds, mode=mode, best_of=best_of, max_tokens=_function_tokens(engine), **params)
    wall_s = time.perf_counter() - started
    bodies = [indented_part(text) for text, _ in found]
    replies = [reply for _, reply in found]
    is_ar = mode == "ar"
    return {
        "functions": [prefix + body for prefix, body in zip(prefixes, bodies, strict=True)],
        "ended": sum(
            reply.finish_reason == "stop" or body != text for (text, reply), body in zip(found, bodies, strict=True)
        ),
        "steps": sum(len(reply.token_ids) if is_ar else reply.stats.num_denoise_steps for reply in replies),
        "units": sum(1 if is_ar else reply.stats.num_canvases for reply in replies),
        "wall_s": wall_s,
    }


@torch.no_grad()
def evaluate_documents(engine: Engine, path: Path, seed: int, *, on_progress: Progress | None = None) -> dict[str, Any]:
    """Mean losses over held-out documents, by the training loss itself.

    Args:
        path: a file of `presswork.training.packing.save_documents`.
        seed: of the noise, and of which documents.
        on_progress: called with the number of batches done, of `NUM_BATCHES`.
    Returns: canvas (nats a token of canvases under uniform corruption at all noise levels, clean positions included,
        without self-conditioning), causal (nats a token, each given those before it; it says something of models that
        were trained causally too), num_canvases, num_tokens, wall_s.
    Raises: DataError.
    """
    started = time.perf_counter()
    config = engine.model.config
    row_length = min(max(384, 2 * config.canvas_length), engine.max_context)
    pack = PackConfig(num_rows=_ROWS, row_length=row_length, self_conditioned_share=0.0, seed=seed)
    batches = PackedBatches(load_documents(path), pack, config)
    canvas = causal = num_canvases = num_tokens = 0.0
    for number in range(NUM_BATCHES):
        batch = batches(number)
        losses = batch_losses(engine.model, batch)
        counted = int((batch.targets >= 0).sum())
        canvas, num_canvases = canvas + float(losses.diffusion) * len(batch.x0), num_canvases + len(batch.x0)
        causal, num_tokens = causal + float(losses.encoder) * counted, num_tokens + counted
        if on_progress is not None:
            on_progress(number + 1)
    return {
        "canvas": canvas / num_canvases,
        "causal": causal / num_tokens,
        "num_canvases": int(num_canvases),
        "num_tokens": int(num_tokens),
        "wall_s": time.perf_counter() - started,
    }


def indented_part(text: str) -> str:
    """A body up to the first line that is not blank and not indented."""
    end = re.search(r"^\S", text, re.MULTILINE)
    return text if end is None else text[: end.start()]


def is_function(source: str) -> bool:
    """Whether a source is one function with a statement beside its docstring."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return len(found) == 1 and isinstance(found[0], ast.FunctionDef) and len(found[0].body) > 1


def _judged_line(engine: Engine, task: InfillTask, seed: int, way: Way, params: dict[str, Any]) -> Found:
    """One missing line: whether it is exact, passed and preserved, the steps, and the seconds it was written in."""
    write = {"diffusion": _filled_line, "gaps": _gap_line, "ar": _continued_line}[way]
    started = time.perf_counter()
    line, completed, steps = write(engine, task, seed, params)
    wall_s = time.perf_counter() - started
    return {
        "exact": line in (task.middle, f"{task.middle}\n"),
        "passed": line is not None and task.check(line).passed,
        "preserved": completed.startswith(task.prefix) and completed.endswith(task.suffix),
        "steps": steps,
        "wall_s": wall_s,
    }


def _filled_line(engine: Engine, task: InfillTask, seed: int, params: dict[str, Any]) -> _Written:
    """The best candidate's line, and the steps of each candidate's canvas."""
    try:
        reply = engine.fill(task.prefix, task.suffix, lengths=range(1, LINE_TOKENS + 1), seed=seed, **params)
    except GenerationError:
        return None, "", []
    return reply.text, reply.completed, [candidate.num_denoise_steps for candidate in reply.candidates]


def _gap_line(engine: Engine, task: InfillTask, seed: int, params: dict[str, Any]) -> _Written:
    """The best candidate's line, and the denoise steps of all candidates."""
    try:
        reply = engine.fill_gaps([task.prefix, task.suffix], max_tokens=LINE_TOKENS, seed=seed, **params)
    except GenerationError:
        return None, "", []
    return reply.texts[0], reply.completed, [sum(one.num_denoise_steps for one in reply.candidates)]


def _continued_line(engine: Engine, task: InfillTask, seed: int, params: dict[str, Any]) -> _Written:
    """The line from its beginning to its end, and its tokens; the suffix stands behind it unread."""
    # The token at the border may hold the line break before the line; that is no end.
    ask = {"temperature": 0.0, "stop": "\n", "min_tokens": 1, "max_tokens": LINE_TOKENS + 2, **params}
    text, reply = complete(engine, [task.prefix], [seed], mode="ar", **ask)[0]
    line = text.partition("\n")[0] + "\n"
    return line, task.prefix + line + task.suffix, [len(reply.token_ids)]


def _function_tokens(engine: Engine) -> int:
    """Room for a function, and for its header before it."""
    return min(_FUNCTION_TOKENS, engine.max_context // 2)
