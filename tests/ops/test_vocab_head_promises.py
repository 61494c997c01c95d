"""What the vocabulary head promises beside its numbers: isolation of rows, bounded memory, threads, clear refusals."""

import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from presswork.errors import ConfigError, RequestError
from presswork.ops.vocab_head import EditGroup, LogitEdits, Reading, read_vocab
from tests.ops.vocab_head_cases import DTYPES, FAST, ask, assert_agrees, rounding, rows_of, scaled, weights


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("impl", ("reference", *FAST))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", (math.nan, math.inf, -math.inf))
def test_a_row_that_is_not_finite_spoils_only_itself(poison: float, dtype: torch.dtype, impl: Any) -> None:
    hidden, embedding = weights(5, 8, 3000, dtype)
    asked = ask(5, 3000, top_k=torch.tensor([0, 3, 0, 3, 0]))
    clean = read_vocab(hidden, embedding, impl=impl, **asked)
    hidden[1] = poison
    hidden[2, 3] = poison
    got = read_vocab(hidden, embedding, impl=impl, **asked)
    assert got.finite.tolist() == [True, False, False, True, True]
    for f in fields(Reading):
        ours, right = getattr(got, f.name), getattr(clean, f.name)
        assert torch.equal(ours[got.finite], right[got.finite]), f.name
        bad = ours[1:3]
        if f.name in ("argmax", "sample", "topk_ids", "soft_embedding", "finite"):
            assert not bad.any(), f.name
        else:
            assert bool(bad.isnan().all()), f.name


@pytest.mark.parametrize("impl", ("reference", *FAST))
def test_a_row_with_every_token_banned_is_marked(impl: Any) -> None:
    edits = LogitEdits(row_group=torch.tensor([0, -1]), groups=(EditGroup(banned_ids=torch.arange(300)),))
    hidden, embedding = weights(2, 8, 300, torch.float32)
    got = read_vocab(hidden, embedding, impl=impl, **ask(2, 300, edits=edits))  # type: ignore[arg-type]
    assert got.finite.tolist() == [False, True]
    assert got.sample[0] == 0 and got.entropy[0].isnan()


@pytest.mark.parametrize("impl", ("reference", *FAST))
def test_soft_embedding_of_chosen_rows_from_an_untied_source(impl: Any) -> None:
    hidden, embedding = weights(6, 8, 4500, torch.float32)
    source = torch.randn(4500, 5, generator=torch.Generator().manual_seed(1))
    wanted = torch.tensor([True, False, True, True, False, True])
    asked = ask(6, 4500, soft_embedding=wanted, soft_source=source, top_k=torch.tensor([0, 0, 5, 300, 5, 0]))
    got = read_vocab(hidden, embedding, impl=impl, **asked)
    p = scaled(hidden, embedding, asked).double().softmax(dim=1)
    torch.testing.assert_close(got.soft_embedding, (p @ source.double()).float() * wanted[:, None], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_alone_reads_as_in_a_crowd(dtype: torch.dtype) -> None:
    hidden, embedding = rounding(300, 40, 9000, dtype)
    asked = ask(300, 9000, top_k=torch.arange(300) % 3 * 7)
    crowd = read_vocab(hidden, embedding, **asked)
    for row in (0, 1, 2, 37, 255, 256, 299):
        alone = read_vocab(hidden[row : row + 1], embedding, **rows_of(asked, slice(row, row + 1)))
        for f in fields(Reading):
            ours, right = getattr(alone, f.name)[0], getattr(crowd, f.name)[row]
            if f.name != "soft_embedding":
                assert torch.equal(ours, right), f.name
            else:
                torch.testing.assert_close(ours, right, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_few_rows_of_a_small_vocabulary_are_the_same_in_a_crowd_belief_and_all(dtype: torch.dtype) -> None:
    hidden, embedding = rounding(259, 64, 300, dtype)
    asked = ask(259, 300)
    crowd = read_vocab(hidden, embedding, impl="tiled", **asked)
    for rows in (slice(0, 1), slice(1, 3), slice(4, 7), slice(9, 14), slice(100, 120), slice(255, 257)):
        alone = read_vocab(hidden[rows], embedding, impl="tiled", **rows_of(asked, rows))
        for f in fields(Reading):
            ours, right = getattr(alone, f.name), getattr(crowd, f.name)
            if f.name == "soft_embedding" and dtype == torch.bfloat16:  # its kernel depends on the machine
                torch.testing.assert_close(ours, right[rows], rtol=1e-2, atol=1e-2)
            else:
                assert (ours is None and right is None) or torch.equal(ours, right[rows]), f.name


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_changes_nothing(dtype: torch.dtype, two_threads: None) -> None:
    hidden, embedding = rounding(90, 200, 32771, dtype)
    hidden[::2] *= 8  # sharp rows, for which most tiles are left out
    asked = ask(90, 32771, top_logprobs=3)
    together = read_vocab(hidden, embedding, impl="tiled", **asked)
    torch.set_num_threads(1)
    single = read_vocab(hidden, embedding, impl="tiled", **asked)
    for f in fields(Reading):
        assert torch.equal(getattr(together, f.name), getattr(single, f.name)), f.name


def test_other_threads_may_write_the_buffers_of_inference_mode(two_threads: None) -> None:
    hidden, embedding = weights(64, 64, 32771, torch.bfloat16)
    expected = read_vocab(hidden, embedding, impl="tiled", **ask(64, 32771))
    with torch.inference_mode():
        got = read_vocab(hidden, embedding, impl="tiled", **ask(64, 32771))
    assert torch.equal(got.entropy, expected.entropy)


def test_threads_born_afterwards_keep_their_share(two_threads: None) -> None:
    hidden, embedding = weights(64, 64, 32771, torch.bfloat16)
    read_vocab(hidden, embedding, impl="tiled", **ask(64, 32771))
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [2] and torch.get_num_threads() == 2


MEASURE = """
import sys
from pathlib import Path
import torch
from presswork.ops.vocab_head import read_vocab
from tests.ops.vocab_head_cases import ask, rows_of, weights

def peak_bytes():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

hidden, embedding = weights(256, 16, 262144, getattr(torch, sys.argv[1]))
wide_nuclei = torch.where(torch.arange(256) % 8 == 0, 0.9, 1.0)
asked = ask(256, 262144, top_k=torch.arange(256) % 2 * 50, top_p=wide_nuclei)
read_vocab(hidden[:2], embedding, impl="tiled", **rows_of(asked, slice(2)))
Path("/proc/self/clear_refs").write_text("5")
before = peak_bytes()
read_vocab(hidden, embedding, impl="tiled", **asked)
after = peak_bytes()
ballast = torch.ones(60_000_000)
print(after - before, peak_bytes() - after)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak resident size can be cleared on Linux")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_matrix_over_the_vocabulary_is_ever_in_memory(dtype: str) -> None:
    """256 rows of float32 logits over 262,144 tokens would take 268 MB, bfloat16 ones 134 MB.

    In a process of its own: what other tests have freed would serve it again unseen.
    """
    run = subprocess.run([sys.executable, "-c", MEASURE, dtype], capture_output=True, text=True)
    taken, control = map(int, run.stdout.split())
    assert taken < 100e6 and control > 120e6


@pytest.mark.parametrize("dtype", (torch.float16, torch.float64))
def test_auto_serves_other_formats_and_layouts(dtype: torch.dtype) -> None:
    hidden, embedding = weights(3, 8, 500, dtype)
    assert_agrees(hidden.float(), embedding.float().repeat_interleave(2, dim=1)[:, ::2], "auto", ask(3, 500))
    got = read_vocab(hidden, embedding, **ask(3, 500))
    expected = read_vocab(hidden, embedding, impl="reference", **ask(3, 500))
    assert torch.equal(got.argmax, expected.argmax) and torch.equal(got.sample, expected.sample)


def test_hidden_rows_take_the_dtype_of_the_weights_and_need_no_gradient() -> None:
    hidden, embedding = weights(3, 8, 500, torch.bfloat16)
    parameter = torch.nn.Parameter(embedding)
    got = read_vocab(hidden.float().requires_grad_(), parameter, **ask(3, 500))
    expected = read_vocab(hidden, embedding, **ask(3, 500))
    assert torch.equal(got.entropy, expected.entropy)
    assert got.soft_embedding is not None and not got.soft_embedding.requires_grad


def test_no_rows_give_empty_readings() -> None:
    hidden, embedding = weights(0, 8, 500, torch.bfloat16)
    got = read_vocab(hidden, embedding, **ask(0, 500))
    assert got.sample.shape == (0,) and got.soft_embedding is not None and got.soft_embedding.shape == (0, 8)


@pytest.mark.parametrize(
    ("changes", "words"),
    (
        ({"temperature": torch.ones(2)}, "temperature"),
        ({"uniform": torch.zeros(4, dtype=torch.float64)}, "uniform"),
        ({"token_ids": torch.tensor([[0], [1], [64]])}, "token_ids"),
        ({"token_ids": torch.zeros(2, 1, dtype=torch.int64)}, "token_ids"),
        ({"top_logprobs": 257}, "top_logprobs"),
        ({"top_k": torch.zeros(1, dtype=torch.int64)}, "top_k"),
        ({"soft_source": torch.zeros(63, 8)}, "soft_source"),
        ({"edits": LogitEdits(row_group=torch.zeros(3), groups=(EditGroup(banned_ids=torch.tensor([-1])),))}, "banned"),
        ({"edits": LogitEdits(row_group=torch.zeros(2), groups=())}, "row_group"),
    ),
)
def test_arguments_that_do_not_fit_are_named(changes: dict[str, Any], words: str) -> None:
    hidden, embedding = weights(3, 8, 64, torch.float32)
    with pytest.raises(RequestError, match=words):
        read_vocab(hidden, embedding, **ask(3, 64, **changes))


def test_an_implementation_that_cannot_serve_is_refused() -> None:
    hidden, embedding = weights(3, 8, 64, torch.float64)
    with pytest.raises(ConfigError, match=r"tiled.*float64"):
        read_vocab(hidden, embedding, impl="tiled", **ask(3, 64))
    with pytest.raises(ConfigError, match="unknown impl"):
        read_vocab(hidden, embedding, impl="fast", **ask(3, 64))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="hidden and embedding"):
        read_vocab(hidden[:, :5], embedding, **ask(3, 64))


def test_the_memory_of_a_head_that_was_sampled_from_can_still_be_resized() -> None:
    hidden, head = torch.randn(3, 16), torch.randn(64, 16)
    uniform = torch.rand(3, dtype=torch.float64)
    read_vocab(hidden, head, softcap=None, temperature=torch.ones(3), uniform=uniform, impl="tiled")
    head.untyped_storage().resize_(0)
