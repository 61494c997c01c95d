"""New models: ones where the architecture starts at one, normal weights elsewhere, the same for the same seed."""

import pytest
import torch

from presswork.testing import tiny_config
from presswork.weights.initialise import empty_model, fill_normal, random_model
from tests.weights.folders import assert_same_weights

CONFIG = tiny_config(vocab_size=2001, hidden_size=63, initializer_range=0.05, tie_word_embeddings=False)


def test_norms_and_scales_are_one_and_all_else_is_normal() -> None:
    ones, normal = set(), set()
    for name, tensor in random_model(CONFIG).state_dict().items():
        if tensor.eq(1).all():
            ones.add(name.rsplit(".", 1)[-1])
        else:
            normal.add(name.rsplit(".", 1)[-1])
            error = 5 / tensor.numel() ** 0.5
            assert tensor.mean().item() == pytest.approx(0, abs=0.05 * error), name
            assert tensor.std().item() == pytest.approx(0.05, rel=error), name
    assert normal == {"embedding", "own_head", "qkv", "output", "gate_up", "down", "router"}
    assert ones == {
        "norm", "q_norm", "k_norm", "attention_norm", "attention_output_norm", "mlp_norm", "mlp_output_norm",
        "experts_norm", "experts_output_norm", "output_norm", "router_scale", "per_expert_scale", "encoder_scalars",
        "decoder_scalars",
    }  # fmt: skip


def test_the_seed_decides_every_weight() -> None:
    assert_same_weights(random_model(CONFIG, seed=3), random_model(CONFIG, seed=3))
    first, second = random_model(CONFIG, seed=3).state_dict(), random_model(CONFIG, seed=4).state_dict()
    changed = {name for name in first if not first[name].equal(second[name])}
    assert changed == {name for name in first if not first[name].eq(1).all()}


def test_no_two_parameters_share_values() -> None:
    drawn = [tensor.flatten()[:8] for tensor in random_model(CONFIG).state_dict().values() if not tensor.eq(1).all()]
    assert len({tuple(values.tolist()) for values in drawn}) == len(drawn)


def test_a_narrow_dtype_holds_the_rounded_float32_weights() -> None:
    assert_same_weights(random_model(CONFIG, dtype=torch.bfloat16), random_model(CONFIG).bfloat16())


def test_values_do_not_repeat_past_the_drawing_buffer() -> None:
    tensor = torch.empty(3_000_000)
    fill_normal(tensor, 1.0, "x")
    parts = tensor.split(1 << 20)
    assert not parts[0].equal(parts[1])
    assert tensor.std().item() == pytest.approx(1, rel=0.01)


def test_new_models_are_frozen_and_in_eval_mode() -> None:
    for model in (random_model(CONFIG), empty_model(CONFIG, dtype=torch.float16, device="cpu")):
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.dtype == model.encoder_scalars.dtype == torch.float16
