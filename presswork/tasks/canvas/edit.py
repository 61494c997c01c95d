"""How often a model repairs what was damaged in a text, and whether it leaves the rest alone."""

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from presswork.engine.engine import Engine
from presswork.tasks.canvas.texts import CutText


def damaged(task: CutText, seed: int, *, share: float) -> str:
    """The middle with a share of its characters, at least one, replaced by others of the same text; pure."""
    draw = random.Random(f"{seed} damage {task.middle}")
    letters = sorted(set(task.before + task.middle + task.after) - {"\n"})
    places = draw.sample(range(len(task.middle)), max(1, round(share * len(task.middle))))
    written = list(task.middle)
    for place in places:
        others = [letter for letter in letters if letter != written[place]]
        written[place] = draw.choice(others) if others else written[place]
    return "".join(written)


def evaluate_edit(
    engine: Engine, tasks: Sequence[CutText], seed: int, *, share: float, strength: float,
    on_progress: Callable[[int], None] | None = None, **params: Any,
) -> dict[str, Any]:  # fmt: skip
    """Damage the middle of each text and edit that part.

    Args:
        share: of the middle's characters that are replaced.
        strength: of the edit. on_progress: called with the number done.
        params: of Engine.edit.
    Returns: num, share, strength; restored (share of texts that are again what they were), changed (share in which the
        edit changed anything), outside (share in which all around the part is as it was), mean_steps, wall_s.
    """
    num_restored = num_changed = num_outside = num_steps = 0
    started = time.perf_counter()
    for done, task in enumerate(tasks, start=1):
        given = damaged(task, seed, share=share)
        text = task.before + given + task.after
        span = (len(task.before), len(task.before) + len(given))
        reply = engine.edit(text, spans=[span], strength=strength, seed=seed, **params)
        new = reply.spans[0].new
        num_restored += reply.text == task.before + task.middle + task.after
        num_changed += reply.text != text
        num_outside += reply.text == task.before + new + task.after
        num_steps += reply.num_denoise_steps
        if on_progress is not None:
            on_progress(done)
    num = max(1, len(tasks))
    return {
        "num": len(tasks),
        "share": share,
        "strength": strength,
        "restored": num_restored / num,
        "changed": num_changed / num,
        "outside": num_outside / num,
        "mean_steps": num_steps / num,
        "wall_s": time.perf_counter() - started,
    }
