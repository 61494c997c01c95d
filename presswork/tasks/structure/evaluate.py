"""Whether replies kept to random schemas and regexes are what an independent library accepts."""

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from presswork.engine.engine import Engine
from presswork.engine.params import Mode
from presswork.errors import ConfigError, RequestError
from presswork.grammar.languages import JsonSchema, Language, Regex
from presswork.tasks.journal import NO_JOURNAL, Found, Journal
from presswork.tasks.structure.generate import random_regex, random_schema

STEPS = (1, 2, 4, 8, 16)
MAX_TOKENS = 256
_BATCH = 16
_PROMPT = "Data:\n"


@dataclass(frozen=True, slots=True)
class StructureTask:
    """A language, and whether a text is in it by somebody else's judgement."""

    kind: str
    source: str
    language: Language
    accepts: Callable[[str], bool]


def schema_tasks(num: int, seed: int) -> list[StructureTask]:
    """Random JSON schemas, judged by jsonschema with its format checks.

    Raises:
        ConfigError: jsonschema is not installed.
    """
    try:
        import jsonschema
    except ImportError as error:
        raise ConfigError("judging JSON needs jsonschema; in the checkout, pip install -e '.[structure]'") from error
    made = []
    for i in range(num):
        schema = random_schema(random.Random(f"{seed} schema {i}"))
        kind = jsonschema.Draft202012Validator
        checker = kind(schema, format_checker=kind.FORMAT_CHECKER)
        made.append(
            StructureTask("schema", json.dumps(schema), JsonSchema(schema), lambda text, c=checker: _is_valid(c, text))
        )
    return made


def regex_tasks(num: int, seed: int) -> list[StructureTask]:
    """Random regexes, judged by Python's own matcher."""
    made = []
    for i in range(num):
        pattern = random_regex(random.Random(f"{seed} regex {i}"))
        matches = re.compile(pattern).fullmatch
        made.append(StructureTask("regex", pattern, Regex(pattern), lambda text, m=matches: m(text) is not None))
    return made


def evaluate(
    engine: Engine,
    tasks: Sequence[StructureTask],
    seed: int,
    *,
    mode: Mode = "diffusion",
    budgets: Sequence[int] = STEPS,
    is_free: bool = False,
    on_progress: Callable[[int], None] | None = None,
    journal: Journal = NO_JOURNAL,
) -> dict[str, Any]:
    """Write one reply for each task and judge it.

    Args:
        budgets: of denoise steps, taken in turn.
        is_free: nothing is kept to; what the model makes of the prompt alone.
        on_progress: called with the number done.
        journal: has the replies that are written.
    Returns: num, seed, mode; for each kind num, valid and ended (an end token was written); valid_by_steps; invalid:
        what failed, with source and text; mean_steps; wall_s.
    """
    counts: dict[str, Counter[str]] = {task.kind: Counter() for task in tasks}
    by_steps: dict[int, Counter[str]] = {steps: Counter() for steps in budgets}
    invalid: list[dict[str, str]] = []
    num_steps, wall_s = 0, 0.0
    way = "free" if is_free else mode
    for start in range(0, len(tasks), _BATCH):
        some = range(start, min(len(tasks), start + _BATCH))
        work = partial(_replies, engine, tasks, some, seed, mode, budgets, is_free, on_progress)
        found = journal.once(f"{way} {start}", work)
        for i, text, has_ended in zip(some, found["texts"], found["ended"], strict=True):
            task, is_valid = tasks[i], tasks[i].accepts(text)
            counts[task.kind].update(num=1, valid=int(is_valid), ended=int(has_ended))
            by_steps[budgets[i % len(budgets)]].update(num=1, valid=int(is_valid))
            if not is_valid:
                invalid.append({"kind": task.kind, "source": task.source, "text": text})
        num_steps, wall_s = num_steps + found["steps"], wall_s + found["wall_s"]
        if on_progress is not None:
            on_progress(some.stop)
    return {
        "num": len(tasks),
        "seed": seed,
        "mode": mode,
        **{kind: dict(found) for kind, found in counts.items()},
        "valid_by_steps": {steps: found["valid"] / max(1, found["num"]) for steps, found in by_steps.items()},
        "invalid": invalid,
        "mean_steps": num_steps / max(1, len(tasks)),
        "wall_s": wall_s,
    }


def _replies(
    engine: Engine, tasks: Sequence[StructureTask], some: range, seed: int, mode: Mode, budgets: Sequence[int],
    is_free: bool, on_progress: Callable[[int], None] | None,
) -> Found:  # fmt: skip
    """Replies to tasks by number, in shared passes: texts, whether each ended, denoise steps, seconds."""
    prompt = engine.encode_prompt(_PROMPT)
    started = time.perf_counter()
    requests = []
    try:
        for i in some:
            params = engine.defaults.changed(
                mode=mode,
                constraint=None if is_free else tasks[i].language,
                max_tokens=min(MAX_TOKENS, engine.max_context - len(prompt)),
                max_denoising_steps=budgets[i % len(budgets)],
                seed=seed + i,
            )
            try:
                requests.append(engine.submit(prompt, params))
            except RequestError as error:
                raise type(error)(f"{tasks[i].kind} {tasks[i].source}: {error}") from error
        replies = []
        for i, request in zip(some, requests, strict=True):
            replies.append(engine.reply(request))
            if on_progress is not None and i + 1 < some.stop:
                on_progress(i + 1)
    finally:
        for request in requests:
            engine.cancel(request)
    return {
        "texts": [reply.text for reply in replies],
        "ended": [reply.finish_reason == "stop" for reply in replies],
        "steps": sum(reply.stats.num_denoise_steps for reply in replies),
        "wall_s": time.perf_counter() - started,
    }


def _is_valid(checker: Any, text: str) -> bool:
    try:
        return checker.is_valid(json.loads(text))
    except ValueError:
        return False
