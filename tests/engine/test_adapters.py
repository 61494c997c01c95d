"""Adapters side by side: who names one gets what the merged model writes, in any company."""

import copy

import pytest
import torch

from presswork.engine.engine import Engine
from presswork.errors import CheckpointError, RequestError
from presswork.models.adapters import LoraConfig
from presswork.testing import fixture_config
from presswork.weights.lora import merge_adapter, new_adapter
from presswork.weights.peft_files import load_adapter, save_adapter
from tests.engine.conftest import prompt_ids
from tests.engine.test_engine import MIXED, finish, start

LORA = LoraConfig(rank=3, alpha=6, targets=("*_proj", "*.router.proj"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of two adapters that change a lot."""
    found = {}
    for seed, name in enumerate(("first", "second")):
        adapter = new_adapter(fixture_config(), LORA, seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in adapter.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        found[name] = tmp_path_factory.mktemp("adapters") / name
        save_adapter(adapter, found[name], fixture_config(), LORA)
    return found


@pytest.fixture
def adapted(confident_model, folders):
    engine = Engine(confident_model)
    for name, folder in folders.items():
        engine.load_adapter(name, folder)
    return engine


def under(name: str | None) -> list[dict]:
    return [{**case, "adapter": name} for case in MIXED]


def test_logits_are_those_of_the_merged_model(confident_model, adapted, folders):
    merged = copy.deepcopy(confident_model)
    merge_adapter(merged, load_adapter(folders["first"], merged.config))
    arguments = (prompt_ids(9, 1), prompt_ids(8, 2), torch.randn(8, 64, generator=torch.Generator().manual_seed(0)))
    plain = adapted.canvas_logits(*arguments)
    expected = Engine(merged).canvas_logits(*arguments)
    torch.testing.assert_close(adapted.canvas_logits(*arguments, adapter="first"), expected, atol=1e-3, rtol=0)
    assert (plain - expected).abs().max() > 0.5


def test_scores_are_those_of_the_merged_model(confident_model, adapted, folders):
    merged = copy.deepcopy(confident_model)
    merge_adapter(merged, load_adapter(folders["second"], merged.config))
    expected = Engine(merged).score(prompt_ids(5, 1), prompt_ids(6, 2))
    found = adapted.score(prompt_ids(5, 1), prompt_ids(6, 2), adapter="second")
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-3, rtol=0)


@pytest.mark.slow
def test_a_crowd_under_several_adapters_changes_nobody(confident_model, folders):
    cases = [case for name in ("first", None, "second") for case in under(name)]

    def engine() -> Engine:
        made = Engine(confident_model)
        for name, folder in folders.items():
            made.load_adapter(name, folder)
        return made

    alone = [finish(one, start(one, case)) for case in cases for one in (engine(),)]
    crowd = engine()
    requests = [start(crowd, case) for case in cases]
    assert [finish(crowd, request) for request in requests] == alone
    num = len(MIXED)
    assert alone[:num] != alone[num : 2 * num] != alone[2 * num :]


def test_base_requests_do_not_notice_adapters(confident_model, adapted):
    case, other = MIXED[1], {**MIXED[2], "adapter": "first"}
    engine = Engine(confident_model)
    alone = finish(engine, start(engine, case))
    requests = [start(adapted, other), start(adapted, case)]
    assert finish(adapted, requests[1]) == alone


def test_prefixes_are_not_shared_between_adapters(adapted):
    ids = prompt_ids(30, 5)
    texts = {}
    for name in ("first", None, "second", "first"):
        reply = adapted.generate(prompt_token_ids=ids, max_tokens=8, ignore_eos=True, adapter=name)
        if name in texts:
            assert reply.token_ids == texts[name]
            assert reply.usage.cached_tokens == len(ids)
        else:
            assert reply.usage.cached_tokens == 0
        texts[name] = reply.token_ids


def test_a_running_request_keeps_its_adapter_when_it_is_replaced_and_unloaded(adapted, folders):
    case = {**MIXED[2], "adapter": "first"}
    expected = finish(adapted, start(adapted, case))
    request = start(adapted, case)
    adapted.step()
    adapted.load_adapter("first", folders["second"])
    replaced = start(adapted, case)
    adapted.unload_adapter("first")
    assert adapted.adapters == ["second"]
    assert finish(adapted, request) == expected
    assert finish(adapted, replaced) == finish(adapted, start(adapted, {**case, "adapter": "second"})) != expected
    with pytest.raises(RequestError, match="no adapter 'first' is loaded; loaded: second"):
        start(adapted, case)
    with pytest.raises(RequestError, match="no adapter 'first'"):
        adapted.unload_adapter("first")


@pytest.mark.parametrize("name", ["", "a:b", " a"])
def test_a_name_that_could_not_be_asked_for_is_refused(engine, folders, name):
    with pytest.raises(RequestError, match="name must be"):
        engine.load_adapter(name, folders["first"])


def test_an_adapter_that_is_not_there_is_refused(engine, tmp_path):
    with pytest.raises(CheckpointError, match=r"no adapter in .*: it has no adapter_config.json"):
        engine.load_adapter("x", tmp_path)
    assert engine.adapters == []
