"""How many of torch's threads a pass takes: few where its products are small, and as before afterwards."""

import threading

import pytest
import torch

from presswork.engine.engine import Engine
from presswork.models import transformer
from presswork.ops import threads
from presswork.ops.vocab_head.threads import worker_threads
from presswork.testing import fixture_config, fixture_model


def test_small_products_keep_to_one_thread_and_it_ends_with_them(several_threads) -> None:
    with several_threads(3):
        with threads.few_threads(1000):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        with threads.few_threads(1 << 30):
            assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError), threads.few_threads(1000):
            raise ZeroDivisionError
        assert torch.get_num_threads() == 3


def test_passes_choose_by_their_rows_and_write_the_same(several_threads, monkeypatch) -> None:
    model, seen = fixture_model(fixture_config(canvas_length=16)), []
    forward = transformer.Transformer.forward

    def spy(self, *given):
        seen.append(torch.get_num_threads())
        return forward(self, *given)

    monkeypatch.setattr(transformer.Transformer, "forward", spy)
    ask = {"prompt_token_ids": [2, 5, 9, 4], "max_tokens": 16, "seed": 1}
    replies = []
    for most in (1 << 60, 1):
        monkeypatch.setattr(threads, "_WORTH_TORCH_THREADS", most)
        with several_threads(2):
            replies.append(Engine(model).generate(**ask).token_ids)
        assert set(seen) == {1 if most > 1 else 2}
        seen.clear()
    assert replies[0] == replies[1]


@pytest.mark.parametrize("takes", [False, True])
def test_a_thread_that_begins_meanwhile_has_the_usual_number(takes, several_threads) -> None:
    """By torch's own rule it would keep the one."""
    found = []

    def begin() -> None:
        if takes:
            threads.take_threads()
        found.append(torch.get_num_threads())

    def later() -> None:
        begin()
        ended.wait(10)
        found.append(torch.get_num_threads())

    ended = threading.Event()
    with several_threads(3):
        helper = threading.Thread(target=later)
        with threads.few_threads(1):
            helper.start()
            while not found:
                pass
        ended.set()
        helper.join()
        assert torch.get_num_threads() == 3
    assert found == ([3, 3] if takes else [1, 1])


def test_a_thread_that_begins_during_a_sweep_has_the_usual_number(several_threads) -> None:
    found = []

    def begin() -> None:
        threads.take_threads()
        found.append(torch.get_num_threads())

    with several_threads(3):
        with worker_threads(1, 1):
            assert torch.get_num_threads() == 1
            helper = threading.Thread(target=begin)
            helper.start()
            helper.join()
        assert torch.get_num_threads() == 3
    assert found == [3]


def test_threads_that_compute_already_keep_theirs(several_threads) -> None:
    inside, told, found = threading.Event(), threading.Event(), []

    def other() -> None:
        found.append(torch.get_num_threads())
        inside.set()
        told.wait(10)
        found.append(torch.get_num_threads())

    with several_threads(2):
        helper = threading.Thread(target=other)
        helper.start()
        inside.wait(10)
        with threads.few_threads(1):
            told.set()
            helper.join()
    assert found == [2, 2]
