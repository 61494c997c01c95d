"""One canvas by the definition: a plain loop over full logits, with pins, early commits and an early stop."""

from collections.abc import Mapping, Sequence

import torch

from presswork.engine.engine import Engine
from presswork.engine.params import SamplingParams
from presswork.ops.vocab_head.reference import draw


def plain_canvas(
    engine: Engine, prompt: Sequence[int], before: Sequence[int], index: int, length: int, pins: Mapping[int, int],
    params: SamplingParams,
) -> tuple[list[int], list[int], int]:  # fmt: skip
    """(the canvas, how many of its positions were committed before each step, steps).

    Args: before: what was written before it. pins: by position in the canvas.
    """
    ids = [*prompt, *before]
    noise, schedule = engine.submit(ids, params).noise, params.rules().schedule
    vocab = engine.model.config.vocab_size
    held, num_committed = dict(pins), [0]
    unchanged = [0] * length
    canvas, belief, best = noise.initial_canvas(index, length, vocab).tolist(), None, None
    stop, earlier = params.rules().stop, []
    for position, token in held.items():
        canvas[position] = token
    for step in range(params.max_denoising_steps):
        z = engine.canvas_logits(ids, canvas, belief) / schedule.temperature(step)
        p = z.double().softmax(-1)
        entropy = -(p * p.log()).sum(-1)
        sample, previous, best = draw(p, noise.uniforms(index, step, length)).tolist(), best, z.argmax(-1).tolist()
        for position, token in held.items():
            sample[position] = best[position] = token
        spent, kept = 0.0, set(held)
        for i in sorted((i for i in range(length) if i not in held), key=lambda i: float(entropy[i])):
            if spent <= params.entropy_bound:
                kept.add(i)
            spent += float(entropy[i])
        fresh = noise.renoise(index, step, length, vocab).tolist()
        unchanged = [n + 1 if previous and previous[i] == best[i] else 0 for i, n in enumerate(unchanged)]
        if params.commit_after is not None and step + 1 < params.max_denoising_steps:
            sure = [float(entropy[i]) <= params.entropy_bound or i in held for i in range(length)]
            settled = [sure[i] and unchanged[i] >= params.commit_after for i in range(length)]
            num = settled.index(False) if False in settled else length
            held |= {i: best[i] for i in range(num)}
            num_committed.append(num)
            if num == length:
                break
        if stop is not None and len(earlier) >= stop.stability_threshold:
            is_stable = all(old == best for old in earlier[len(earlier) - stop.stability_threshold :])
            if is_stable and float(entropy.mean()) < stop.confidence_threshold:
                break
        earlier.append(best)
        canvas = [(sample if i in kept else fresh)[i] for i in range(length)]
        belief = z.clone()
        for position, token in held.items():
            canvas[position] = token
            belief[position] = torch.full_like(belief[position], -torch.inf)
            belief[position, token] = 0.0
    assert best is not None
    return best, num_committed, step + 1
