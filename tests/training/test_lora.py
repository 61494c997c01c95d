"""Training an adapter: right gradients, nothing else moves, and the same again after a stop."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from presswork.errors import ConfigError
from presswork.models.adapters import LoraConfig
from presswork.models.transformer import Transformer
from presswork.testing import tiny_config, tiny_model
from presswork.training.loss import batch_losses
from presswork.training.recipe import FromScratch, Recipe, override
from presswork.training.run import averaged_adapter, averaged_model
from presswork.training.trainer import Trainer
from presswork.weights.lora import new_adapter
from tests.training.recipe_for_tests import CountingPlan
from tests.training.test_trainer import config, counting

LORA = LoraConfig(rank=3, alpha=6, targets=("*_proj", "*.router.proj"))


def adapted_model(lora: LoraConfig = LORA, noise: float = 0.0) -> Transformer:
    model = tiny_model().requires_grad_(False)
    model.adapter = new_adapter(model.config, lora)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.adapter.parameters():
        parameter.data += noise * torch.randn(parameter.shape, generator=generator)
    return model


def lora_trainer(folder: Path, lora: LoraConfig = LORA, **changes: object) -> Trainer:
    return Trainer(adapted_model(lora), counting, config(**changes), folder)


def test_a_fresh_adapter_changes_no_loss() -> None:
    plain, adapted = tiny_model(), adapted_model()
    assert torch.allclose(batch_losses(plain, counting(0)).total, batch_losses(adapted, counting(0)).total, rtol=1e-6)


def test_gradients_are_those_of_the_factors_added_to_the_weights() -> None:
    """dA = scale B^T dW, dB = scale dW A^T, where dW is the gradient of the merged weight; norms stay in float32."""
    model = adapted_model(noise=0.1).double()
    assert model.adapter is not None
    batch_losses(model, counting(0)).total.backward()
    merged = tiny_model().double().requires_grad_(True)
    with torch.no_grad():
        places = _places(model)
        for weight, part in places:
            target = dict(merged.named_parameters())[weight]
            rows = target if part.a.ndim == 3 else target[part.start : part.stop]
            rows += part.scale * (part.b @ part.a)
    batch_losses(merged, counting(0)).total.backward()
    for weight, part in places:
        grad = dict(merged.named_parameters())[weight].grad
        assert grad is not None
        grad = grad if part.a.ndim == 3 else grad[part.start : part.stop]
        torch.testing.assert_close(part.a.grad, part.scale * part.b.transpose(-1, -2) @ grad, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(part.b.grad, part.scale * grad @ part.a.transpose(-1, -2), atol=1e-6, rtol=1e-4)


def _places(model: Transformer):
    from presswork.weights.lora import adapted_weights

    assert model.adapter is not None
    return [(name, part) for _, name, weight in adapted_weights(model.adapter) for part in weight]


def test_only_the_adapter_moves_and_it_learns(tmp_path: Path) -> None:
    before = tiny_model().state_dict()
    trained = lora_trainer(tmp_path, num_steps=60, optimizer=replace(config().optimizer, peak_rate=2e-2))
    reports = list(trained.run())
    assert sum(r.loss for r in reports[-5:]) < 0.9 * sum(r.loss for r in reports[:5])
    state = trained.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert set(trained.optimizer.masters) == {f"adapter.{n}" for n, _ in trained.model.adapter.named_parameters()}  # type: ignore[union-attr]


def test_the_averaged_model_has_the_averaged_adapter_in_its_weights(tmp_path: Path) -> None:
    trained = lora_trainer(tmp_path)
    list(trained.run())
    adapter = averaged_adapter(trained)
    assert adapter is not None
    (part,) = adapter.decoder.layers[1].output  # type: ignore[union-attr]
    assert torch.equal(part.a, trained.averaged_weights()["adapter.decoder.layers.1.output.parts.0.a"])
    base = tiny_model().to(torch.bfloat16).decoder.layers[1].attention.output  # type: ignore[union-attr]
    expected = (base.float() + part.delta()).to(torch.bfloat16)
    assert torch.equal(averaged_model(trained).decoder.layers[1].attention.output, expected)  # type: ignore[union-attr]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path: Path, dropout: float) -> None:
    lora = replace(LORA, dropout=dropout)
    torch.manual_seed(5)
    expected = [r.loss for r in lora_trainer(tmp_path / "whole", lora).run()]
    torch.manual_seed(6)
    found = [r.loss for r in lora_trainer(tmp_path / "parts", lora).run(until=2)]
    found += [r.loss for r in lora_trainer(tmp_path / "parts", lora).run()]
    assert found == expected
    if dropout:
        assert expected != [r.loss for r in lora_trainer(tmp_path / "none").run()]


def test_dropout_leaves_the_process_generator_alone_and_validation_undisturbed(tmp_path: Path) -> None:
    lora = replace(LORA, dropout=0.5)
    trained = Trainer(adapted_model(lora, noise=0.1), counting, config(), tmp_path, validation=[counting(99)])
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = trained.validate()
    list(trained.run(until=1))
    assert torch.equal(torch.rand(4), expected)
    assert trained.model.training
    again = Trainer(adapted_model(LORA, noise=0.1), counting, config(), tmp_path / "other", validation=[counting(99)])
    assert again.validate() == first


def test_layers_computed_again_drop_the_same(tmp_path: Path) -> None:
    lora = replace(LORA, dropout=0.3)
    plain = [r.loss for r in lora_trainer(tmp_path / "plain", lora).run()]
    assert [r.loss for r in lora_trainer(tmp_path / "again", lora, recompute=True).run()] == plain


def test_muon_leaves_factors_to_adamw(tmp_path: Path) -> None:
    trained = lora_trainer(tmp_path, optimizer=replace(config().optimizer, algorithm="muon"))
    assert not trained.optimizer.state()["momenta"]


def test_a_recipe_from_fresh_weights_has_nothing_to_adapt() -> None:
    recipe = Recipe(start=FromScratch(model=tiny_config()), data=CountingPlan(), train=config())
    with pytest.raises(ConfigError, match="start from a checkpoint"):
        override(recipe, ["lora.rank=4"])


def test_a_target_that_matches_nothing_is_told() -> None:
    with pytest.raises(ConfigError, match=r"target 'q_proj' matches none .* model.decoder.layers.0.self_attn.q_proj;"):
        new_adapter(tiny_config(), LoraConfig(targets=("q_proj",)))


@pytest.mark.parametrize("changes", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ()}])
def test_settings_out_of_range_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError):
        LoraConfig(**changes)
