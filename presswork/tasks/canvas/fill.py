"""How often a model finds what was taken out of a text."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from presswork.engine.engine import Engine
from presswork.engine.params import Mode
from presswork.tasks.canvas.texts import CutText
from presswork.tasks.completion import complete


def evaluate_fill(
    engine: Engine, tasks: Sequence[CutText], seed: int, *, max_tokens: int, mode: Mode = "diffusion",
    on_progress: Callable[[int], None] | None = None, **params: Any,
) -> dict[str, Any]:  # fmt: skip
    """Write the middle of each text.

    Args:
        max_tokens: a gap may take; "ar" is told how many the middle has.
        mode: "diffusion" fills the gap from both sides; "ar" goes on from what stands before it, the likeliest token
            each time.
        on_progress: called with the number done. params: of the requests, fields of SamplingParams.
    Returns: num; exact (share of middles found as they were), preserved (share of texts that came back byte for byte
        around the gap), mean_steps (denoise steps of all candidates together; for ar, tokens), wall_s.
    """
    num_exact = num_preserved = num_steps = 0
    started = time.perf_counter()
    for done, task in enumerate(tasks, start=1):
        if mode == "diffusion":
            reply = engine.fill_gaps([task.before, task.after], max_tokens=max_tokens, seed=seed, **params)
            written = reply.texts[0]
            is_kept = reply.completed.startswith(task.before) and reply.completed.endswith(task.after)
            num_steps += sum(one.num_denoise_steps for one in reply.candidates)
        else:
            written, taken = _continued(engine, task, seed, params)
            is_kept, num_steps = True, num_steps + taken
        num_exact += written == task.middle
        num_preserved += is_kept
        if on_progress is not None:
            on_progress(done)
    num = max(1, len(tasks))
    return {
        "num": len(tasks),
        "exact": num_exact / num,
        "preserved": num_preserved / num,
        "mean_steps": num_steps / num,
        "wall_s": time.perf_counter() - started,
    }


def _continued(engine: Engine, task: CutText, seed: int, params: dict[str, Any]) -> tuple[str, int]:
    """(as many characters behind the text before the gap as it held, or fewer; tokens written)."""
    assert engine.tokenizer is not None
    most = len(engine.tokenizer.encode_plain(task.middle)) + 2  # the border's token is written again
    ask = {"temperature": 0.0, "min_tokens": 1, "max_tokens": most, **params}
    text, reply = complete(engine, [task.before], [seed], mode="ar", **ask)[0]
    return text[: len(task.middle)], len(reply.token_ids)
