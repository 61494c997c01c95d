"""Adapters against the peft library on transformers' model: it loads ours, we load its, and both compute the same."""

import copy
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from presswork.engine.engine import Engine
from presswork.errors import ConfigError
from presswork.models.adapters import LoraConfig
from presswork.models.transformer import Transformer
from presswork.testing import fixture_config, fixture_model
from presswork.weights.lora import merge_adapter, new_adapter
from presswork.weights.peft_files import load_adapter, save_adapter

PROMPT, CANVAS = torch.arange(11) % 64, torch.arange(0, 24, 3) % 64
BELIEF = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
PRODUCTS = r"model\.(encoder\.language_model|decoder)\..*(self_attn|mlp|self_conditioning)\..*_proj"
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]

# peft calls a name that this version of transformers has renamed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.slow,
]


def shake(parameters: Any, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


def theirs(oracle: Any) -> tuple[Tensor, Tensor]:
    """(causal hidden rows, canvas logits)."""
    with torch.no_grad():
        cache = oracle.new_cache()
        return oracle.encode(PROMPT, cache), oracle.denoise(CANVAS, cache, BELIEF)


def ours(model: Transformer, folder: Path) -> tuple[Tensor, Tensor]:
    engine = Engine(model)
    engine.load_adapter("it", folder)
    under = engine._adapters.find("it")
    hidden = engine._runner.causal_hidden(_cache(model), PROMPT.tolist(), under.adapter)
    return hidden, engine.canvas_logits(PROMPT.tolist(), CANVAS.tolist(), BELIEF, adapter="it")


def _cache(model: Transformer) -> Any:
    from presswork.cache.contiguous import SequenceCache

    return SequenceCache(model.config)


def assert_equal(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    "targets",
    [("*_proj", "*.router.proj"), ("*.q_proj", "*self_conditioning*"), ("*gate_up_proj",), ("*.1.*down_proj",)],
)
def test_peft_computes_the_same_with_an_adapter_of_ours(targets, tmp_path, build_oracle):
    model = fixture_model()
    lora = LoraConfig(rank=4, alpha=8, targets=targets)
    adapter = new_adapter(model.config, lora)
    shake(adapter.parameters())
    save_adapter(adapter, tmp_path, model.config, lora, "base")
    oracle = build_oracle(model)
    plain = theirs(oracle)
    peft.PeftModel.from_pretrained(oracle.model, str(tmp_path))
    with_adapter = theirs(oracle)
    assert all((one - other).abs().max() > 0.05 for one, other in zip(plain[1:], with_adapter[1:], strict=True))
    assert_equal(ours(model, tmp_path), with_adapter)
    merge_adapter(model, load_adapter(tmp_path, model.config))
    assert_equal((with_adapter[0], Engine(model).canvas_logits(PROMPT.tolist(), CANVAS.tolist(), BELIEF)), with_adapter)


def from_peft(oracle: Any, folder: Path, **changes: Any) -> Any:
    settings = {"r": 4, "lora_alpha": 8, "target_modules": PRODUCTS, "target_parameters": EXPERTS, **changes}
    wrapped = peft.get_peft_model(oracle.model, peft.LoraConfig(**settings))
    shake([p for name, p in wrapped.named_parameters() if "lora_" in name])
    wrapped.save_pretrained(str(folder))
    return wrapped


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 3, r"layers\.1\.mlp\.up_proj": 5}, "rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"down_proj": 64}},
        {"target_modules": r"model\.decoder\..*down_proj", "target_parameters": ["decoder.layers.0.experts.down_proj"]},
        {"target_modules": r"model\.encoder\.language_model\..*_proj", "target_parameters": None},
    ],
)
def test_we_compute_the_same_with_an_adapter_of_pefts(changes, tmp_path, build_oracle):
    """Its two modes are two modules with factors of their own, which differ here, or one has none."""
    model = fixture_model()
    oracle = build_oracle(model)
    from_peft(oracle, tmp_path, **changes)
    assert_equal(ours(model, tmp_path), theirs(oracle))
    adapter = load_adapter(tmp_path, model.config)
    assert not adapter.is_shared
    with pytest.raises(ConfigError, match="cannot be merged"):
        merge_adapter(model, adapter)


def test_an_untied_model_takes_factors_for_each_of_its_stacks(tmp_path, build_oracle):
    model = fixture_model(fixture_config(tie_word_embeddings=False))
    oracle = build_oracle(model)
    from_peft(oracle, tmp_path)
    expected = theirs(oracle)
    assert_equal(ours(model, tmp_path), expected)
    merged = copy.deepcopy(model)
    merge_adapter(merged, load_adapter(tmp_path, model.config))
    logits = Engine(merged).canvas_logits(PROMPT.tolist(), CANVAS.tolist(), BELIEF)
    assert_equal((expected[0], logits), expected)


def test_merged_weights_are_rounded_once(tmp_path):
    model = fixture_model().to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora = LoraConfig(rank=2, alpha=2, targets=("*.o_proj",))
    adapter = new_adapter(model.config, lora)
    shake(adapter.parameters())
    merge_adapter(model, adapter)
    for name, tensor in model.state_dict().items():
        found = re.fullmatch(r"decoder\.layers\.(\d)\.attention\.output", name)
        if found is None:
            assert torch.equal(tensor, before[name])
            continue
        (part,) = adapter.decoder.layers[int(found[1])].output  # type: ignore[union-attr]
        assert torch.equal(tensor, (before[name].float() + part.b @ part.a).to(torch.bfloat16))
