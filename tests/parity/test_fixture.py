"""The printed fingerprints of the parity fixture, by our model alone; then every value, against the oracle."""

from collections.abc import Callable

import pytest
from torch import Tensor

from presswork.cache.contiguous import SequenceCache
from presswork.testing import fixture_model
from tests.models.passes import canvas, capped_logits, ids, prefill, prompt, run

TEMPERATURE = 0.7
# Against a float64 run of the same model, transformers' own float32 logits are off by up to this much. The plain ops
# round where transformers rounds and so come closer to it; fused ones add up in another order.
ROUNDING = 5e-5

# Sum, sum of magnitudes and first four values, as printed by transformers 5.23.0 with torch 2.13.0 on a CPU.
Print = tuple[float, float, tuple[float, float, float, float]]
ENCODER: dict[int, Print] = {
    4: (30.82167, 153.04795, (-0.39566, -0.42247, 2.42073, -0.66371)),
    5: (28.31947, 193.42650, (-0.39566, -0.42247, 2.42073, -0.66371)),
    6: (19.84197, 229.15695, (-0.39566, -0.42247, 2.42073, -0.66371)),
    13: (35.92504, 500.27918, (-0.39566, -0.42247, 2.42073, -0.66371)),
}
LOGITS: dict[int, Print] = {
    4: (-15.04848, 835.37591, (1.47728, -1.59493, -3.05635, -3.47445)),
    5: (26.33838, 941.96506, (0.89426, 0.20645, -4.81011, -3.56188)),
    6: (34.10265, 895.75486, (0.39139, 0.62165, -3.36089, -1.80795)),
    13: (57.90673, 843.94437, (2.50193, -2.48979, 1.95, 1.4524)),
}
SELF_CONDITIONED: dict[int, Print] = {
    4: (63.00846, 851.95309, (1.46937, 2.24182, -0.60463, 1.57936)),
    5: (69.03132, 798.78312, (1.44216, 3.09981, -1.03199, 0.00366)),
    6: (116.44674, 873.23186, (3.50035, -1.14795, 0.14845, -1.27713)),
    13: (98.82066, 912.76908, (4.03066, -0.24758, 3.24256, 1.92233)),
}
LENGTHS = (4, 5, 6, 13)  # below, at and beyond the window of 6
FIRST, SECOND = ids(8, 2, 0, 64), ids(8, 3, 0, 64)


def assert_prints(tensor: Tensor, expected: Print) -> None:
    """The fingerprint within float32 noise; exact instead of tanh gelu already moves single values by 1e-3."""
    flat = tensor.double().flatten()
    assert flat[:4].tolist() == pytest.approx(expected[2], abs=ROUNDING)
    assert flat.sum().item() == pytest.approx(expected[0], abs=1e-3)
    assert flat.abs().sum().item() == pytest.approx(expected[1], abs=1e-3)


@pytest.mark.parametrize("length", LENGTHS)
def test_encoder_and_denoise_steps_print_what_the_reference_printed(length: int) -> None:
    model = fixture_model()
    cache, hidden = prefill(model, ids(length, 1))
    assert_prints(hidden, ENCODER[length])
    logits = capped_logits(model, run(model, [canvas(model, cache, FIRST)]))
    assert_prints(logits, LOGITS[length])
    again = run(model, [canvas(model, cache, SECOND, logits / TEMPERATURE)])
    assert_prints(capped_logits(model, again), SELF_CONDITIONED[length])


def test_two_chunks_print_what_one_call_printed() -> None:
    model = fixture_model()
    cache, hidden = prefill(model, ids(13, 1), num_first=5)
    assert_prints(hidden, ENCODER[13])
    assert_prints(capped_logits(model, run(model, [canvas(model, cache, FIRST)])), LOGITS[13])


def test_two_prompts_in_one_pass_print_what_a_left_padded_batch_printed() -> None:
    model = fixture_model()
    prompts, canvases = ids(18, 4).view(2, 9), ids(16, 5, 0, 64).view(2, 8)
    tokens = [prompts[0, 5:], prompts[1]]  # five pads there, nothing here: only relative positions matter
    caches = [SequenceCache(model.config) for _ in tokens]
    run(model, [prompt(model, cache, one) for cache, one in zip(caches, tokens, strict=True)])
    hidden = run(model, [canvas(model, cache, one) for cache, one in zip(caches, canvases, strict=True)])
    expected = (-2.65079, 1662.97536, (0.20805, -0.72175, 2.02959, -1.82374))
    assert_prints(capped_logits(model, hidden), expected)


def largest_difference(build_oracle: Callable, length: int) -> float:
    """Over the encoder's states and the logits of both steps, every value."""
    model = fixture_model()
    oracle, cache = build_oracle(model), SequenceCache(model.config)
    theirs = oracle.new_cache()
    hidden = run(model, [prompt(model, cache, ids(length, 1))])
    pairs = [(hidden, oracle.encode(ids(length, 1), theirs))]
    expected = oracle.denoise(FIRST, theirs)
    belief = expected / TEMPERATURE
    pairs += [(capped_logits(model, run(model, [canvas(model, cache, FIRST)])), expected)]
    again = run(model, [canvas(model, cache, SECOND, belief)])
    pairs += [(capped_logits(model, again), oracle.denoise(SECOND, theirs, belief))]
    return max((mine - other).abs().max().item() for mine, other in pairs)


@pytest.mark.parametrize("length", LENGTHS)
def test_plain_ops_are_within_1e_5_of_the_oracle(
    length: int, build_oracle: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("presswork.ops.choice.FAST_DTYPES", frozenset())
    assert largest_difference(build_oracle, length) < 1e-5


@pytest.mark.parametrize("length", LENGTHS)
def test_the_ops_chosen_by_default_are_within_rounding_of_the_oracle(length: int, build_oracle: Callable) -> None:
    assert largest_difference(build_oracle, length) < ROUNDING
