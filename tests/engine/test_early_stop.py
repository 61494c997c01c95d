"""Early stop through the engine agrees with a plain loop, alone and beside requests with other thresholds."""

import pytest

from presswork.engine.engine import Engine
from presswork.engine.params import SamplingParams
from tests.engine.conftest import prompt_ids
from tests.engine.plain import plain_canvas

PROMPT = prompt_ids(7, 1)
# Cold, so that a model of random weights settles; a bound that accepts much.
OWN = dict(
    max_tokens=20, seed=3, max_denoising_steps=16, entropy_bound=20.0, t_min=0.05, t_max=0.3, ignore_eos=True,
    confidence_threshold=1.0,
)  # fmt: skip


@pytest.mark.parametrize("threshold", [0, 1, 2, 4])
def test_the_engine_agrees_with_a_plain_loop_over_three_canvases(engine, threshold):
    params = SamplingParams(**OWN, stability_threshold=threshold)
    written: list[int] = []
    steps: list[int] = []
    for index, length in enumerate((8, 8, 4)):
        canvas, _, num = plain_canvas(engine, PROMPT, written, index, length, {}, params)
        written += canvas
        steps.append(num)
    assert threshold < min(steps) and min(steps) < OWN["max_denoising_steps"], "the case must stop early"
    reply = engine.generate(prompt_token_ids=PROMPT, stability_threshold=threshold, **OWN)
    assert reply.token_ids == written
    assert reply.stats.num_denoise_steps == sum(steps)


def test_thresholds_of_requests_that_share_passes_stay_apart(confident_model):
    cases = [{**OWN, "seed": seed, "stability_threshold": threshold} for seed in (1, 2) for threshold in (0, 1, 2, 4)]

    def steps_of(engine: Engine) -> list[int]:
        requests = [engine.submit(PROMPT, engine.defaults.changed(**case)) for case in cases]
        return [list(engine.events(request))[-1].reply.stats.num_denoise_steps for request in requests]

    together = steps_of(Engine(confident_model))
    alone = [
        Engine(confident_model).generate(prompt_token_ids=PROMPT, **case).stats.num_denoise_steps for case in cases
    ]
    assert together == alone
    assert together[:4] == sorted(together[:4]) and len(set(together[:4])) > 2
