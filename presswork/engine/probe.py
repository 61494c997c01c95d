"""Looks at the model outside of any request: likelihoods and logits.

L canvas, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from presswork.cache.contiguous import SequenceCache
from presswork.engine.abandon import check_wanted
from presswork.engine.adapters import LoadedAdapter
from presswork.engine.events import TokenLogprob
from presswork.engine.readings import token_logprobs
from presswork.engine.runner import Runner
from presswork.models.adapters import Adapter

if TYPE_CHECKING:
    from presswork.engine.engine import Engine


def causal_logprobs(
    runner: Runner, lock: AbstractContextManager, ids: Sequence[int], num_prompt: int, chunk: int,
    adapter: Adapter | None, cache: SequenceCache | None = None, num_top: int = 0,
) -> list[TokenLogprob]:  # fmt: skip
    """Log-probability of each id after the first num_prompt given all before it, in nats.

    Args:
        num_top: most likely tokens that are told beside each.
        cache: what is computed already, fewer tokens than the prompt has; taken over and released.
        lock: held during each chunk's pass and free between two, so that requests get theirs.
    """
    cache = cache or SequenceCache(runner.config)
    scores: list[TokenLogprob] = []
    try:
        while cache.length < len(ids) - 1:
            # Chunks end where a request's own prefill would end them.
            start, stop = cache.length, min((cache.length // chunk + 1) * chunk, len(ids) - 1)
            skip = max(0, num_prompt - 1 - start)
            check_wanted()
            with lock:
                hidden = runner.causal_hidden(cache, ids[start:stop], adapter)
                if skip < stop - start:
                    targets = torch.tensor(ids[start + 1 + skip : stop + 1], device=hidden.device)
                    reading = runner.reader.read_logprobs(hidden[skip:], targets, num_top)
                    scores += token_logprobs(reading, targets, reading.entropy.tolist(), [1] * len(targets), 1)
    finally:
        cache.release()
    return scores


@torch.no_grad()
def canvas_logits(
    runner: Runner, lock: AbstractContextManager, prompt: Sequence[int], canvas: Sequence[int],
    previous: Float[Tensor, "L V"] | None, chunk: int, adapter: Adapter | None,
) -> Float[Tensor, "L V"]:  # fmt: skip
    """Float32 logits of one canvas after a prompt, softcapped; the only place that forms a [L, V] tensor.

    Args:
        previous: the previous step's temperature-divided logits; None is a first step.
    """
    model, belief = runner.model, None
    if previous is not None:
        weights = torch.softmax(previous.to(model.head.device, torch.float32), -1)
        belief = weights.to(model.dtype) @ model.decoder.embedding
    cache = SequenceCache(model.config)
    with lock:
        try:
            for start in range(0, len(prompt), chunk):
                runner.causal_hidden(cache, prompt[start : start + chunk], adapter)
            hidden = runner.canvas_hidden(cache, torch.tensor(canvas), belief, adapter)
        finally:
            cache.release()
        cap = model.config.final_logit_softcapping
        return cap * torch.tanh(F.linear(hidden, model.head).float() / cap)


@contextmanager
def prefilled(
    engine: "Engine", prompt: list[int], under: LoadedAdapter
) -> Iterator[tuple[SequenceCache, Float[Tensor, "1 D"]]]:
    """A prompt's keys and values, which later requests find in the prefix cache, and its last hidden row."""
    chunk = engine.config.prefill_chunk
    with engine._lock:
        cache = engine.prefix.longest(prompt, len(prompt) - 1, under.number) or SequenceCache(engine.model.config)
    hidden = torch.empty(0)
    try:
        while cache.length < len(prompt):
            # Where a request's own prefill would be cut.
            stop = min(len(prompt), (cache.length // chunk + 1) * chunk)
            check_wanted()
            with engine._lock:
                hidden = engine._runner.causal_hidden(cache, prompt[cache.length : stop], under.adapter)
                engine.prefix.put(prompt[:stop], cache, under.number)
        yield cache, hidden[-1:]
    finally:
        cache.release()
