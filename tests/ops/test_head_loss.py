"""Cross-entropy through the vocabulary head: by hand, against float64, and the compiled twin against the reference."""

import pytest
import torch
from torch.nn import functional as F

from presswork.errors import ConfigError, RequestError
from presswork.ops.head_loss import expected_embedding, head_cross_entropy, logit_gradients
from presswork.ops.head_loss.fast import softmax_in_place
from tests.ops.closeness import DTYPES, random

IMPLS = ["reference", "fast"]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("softcap", [3.0, None])
@pytest.mark.parametrize("chunk_elements", [1, 100, 10_000])
def test_loss_and_gradients_equal_float64(chunk_elements: int, softcap: float | None, impl) -> None:
    hidden, weight = random(7, 16) / 2, random(33, 16, seed=1) / 2
    targets = torch.tensor([0, 32, 5, 5, 17, 2, 9])
    a, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss, right = head_cross_entropy(a, w, targets, softcap, chunk_elements=chunk_elements, impl=impl)
    (2 * loss).backward()
    b, u = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logits = b @ u.T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = F.cross_entropy(logits, targets)
    (2 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert int(right) == int((logits.argmax(-1) == targets).sum())
    assert a.grad is not None and b.grad is not None and w.grad is not None and u.grad is not None
    torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(w.grad.double(), u.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "vocab"), [(1, 1), (3, 7), (40, 832), (9, 8192), (0, 5)])
@pytest.mark.parametrize("softcap", [30.0, None])
def test_the_compiled_twin_equals_the_reference(rows: int, vocab: int, softcap: float | None, dtype) -> None:
    products = (12 * random(rows, vocab)).to(dtype)
    targets = torch.randint(0, vocab, (rows,), generator=torch.Generator().manual_seed(2))
    found, expected = products.clone(), products.clone()
    losses, right = logit_gradients(found, targets, softcap, 0.25, impl="fast")
    true_losses, true_right = logit_gradients(expected, targets, softcap, 0.25, impl="reference")
    torch.testing.assert_close(losses, true_losses, rtol=1e-5, atol=2e-5)
    assert torch.equal(right, true_right)
    torch.testing.assert_close(found, expected, rtol=1e-2 if dtype is torch.bfloat16 else 1e-4, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_by_hand(impl) -> None:
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [0.0], [0.0], [0.0]])
    loss, _ = head_cross_entropy(hidden, weight, torch.tensor([2]), 30.0, impl=impl)
    assert float(loss) == pytest.approx(1.3862944)


@pytest.mark.parametrize("impl", IMPLS)
def test_nan_stays_in_its_row(impl) -> None:
    products = random(4, 9)
    products[2, 5] = float("nan")
    losses, _ = logit_gradients(products, torch.tensor([0, 1, 2, 3]), 30.0, 1.0, impl)
    assert losses.isnan().tolist() == [False, False, True, False]
    assert products.isnan().any(1).tolist() == [False, False, True, False]


def test_threads_do_not_change_a_bit(several_threads) -> None:
    results = []
    for threads in (1, 3):
        products = random(300, 4096, dtype=torch.bfloat16)
        with several_threads(threads):
            losses, _ = logit_gradients(products, torch.arange(300), 30.0, 0.5, "fast")
        results.append((losses, products))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_threads_do_not_change_a_bit_of_probabilities(several_threads) -> None:
    results = []
    for threads in (1, 3):
        products = random(300, 4096)
        with several_threads(threads):
            softmax_in_place(products, 30.0)
        results.append(products)
    assert torch.equal(*results)


def test_no_targets_are_a_loss_of_zero() -> None:
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss, right = head_cross_entropy(hidden, weight, torch.zeros(0, dtype=torch.int64), 30.0)
    loss.backward()
    assert weight.grad is not None
    assert loss.item() == 0 and float(right) == 0 and float(weight.grad.abs().sum()) == 0


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("chunk_elements", [1, 10_000])
@pytest.mark.parametrize("softcap", [3.0, None])
def test_an_expected_embedding_and_its_gradient_equal_float64(softcap: float | None, chunk_elements: int, impl) -> None:
    hidden, weight, source = random(7, 16), random(33, 16, seed=1), random(33, 5, seed=2)
    outer = random(7, 5, seed=3)
    leaf = source.clone().requires_grad_()
    found = expected_embedding(hidden, weight, leaf, softcap, chunk_elements=chunk_elements, impl=impl)
    (found * outer).sum().backward()
    truth = source.double().requires_grad_()
    logits = hidden.double() @ weight.double().T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = logits.softmax(-1) @ truth
    (expected * outer.double()).sum().backward()
    torch.testing.assert_close(found.detach().double(), expected.detach(), rtol=1e-5, atol=1e-6)
    assert leaf.grad is not None and truth.grad is not None
    torch.testing.assert_close(leaf.grad.double(), truth.grad, rtol=1e-4, atol=1e-6)


def test_no_gradient_reaches_the_hidden_rows_of_a_belief() -> None:
    hidden, weight = random(3, 8).requires_grad_(), random(9, 8, seed=1).requires_grad_()
    expected_embedding(hidden, weight, weight, 30.0).sum().backward()
    assert hidden.grad is None and weight.grad is not None


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 9]), "targets reach from 0 to 9; ids must be 0 to 8"),
        (torch.tensor([-1, 0]), "targets reach from -1 to 0"),
        (torch.tensor([0, 1], dtype=torch.int32), r"targets must be int64 of shape \[2\], got torch.int32"),
        (torch.tensor([0]), r"targets must be int64 of shape \[2\]"),
    ],
)
def test_targets_that_are_no_ids_are_refused(targets, message: str, impl) -> None:
    with pytest.raises(RequestError, match=message):
        logit_gradients(random(2, 9), targets, 30.0, 1.0, impl)


def test_an_impl_that_cannot_be_had_is_refused() -> None:
    targets = torch.tensor([0, 1])
    with pytest.raises(ConfigError, match="rows lie one after the other"):
        logit_gradients(random(9, 2).T, targets, 30.0, 1.0, "fast")
    with pytest.raises(ConfigError, match="unknown impl 'bogus'"):
        logit_gradients(random(9, 2).T, targets, 30.0, 1.0, "bogus")  # type: ignore[arg-type]


def test_a_loss_alone_is_the_same_without_its_gradient() -> None:
    hidden, weight, targets = random(7, 16), random(33, 16, seed=1), torch.arange(7)
    with torch.no_grad():
        alone = head_cross_entropy(hidden, weight, targets, 30.0)
    assert torch.equal(alone[0], head_cross_entropy(hidden.requires_grad_(), weight, targets, 30.0)[0].detach())


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_stays_as_it_is_gets_no_gradient_and_changes_none(frozen: str) -> None:
    def gradients(*, all_learn: bool) -> dict[str, torch.Tensor | None]:
        given = {"hidden": random(7, 16), "weight": random(33, 16, seed=1)}
        for name, tensor in given.items():
            tensor.requires_grad_(all_learn or name != frozen)
        head_cross_entropy(given["hidden"], given["weight"], torch.arange(7), 30.0)[0].backward()
        return {name: tensor.grad for name, tensor in given.items()}

    both, one = gradients(all_learn=True), gradients(all_learn=False)
    assert one.pop(frozen) is None
    ((name, grad),) = one.items()
    assert grad is not None and torch.equal(grad, both[name])
