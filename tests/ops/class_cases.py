"""What the tests of classes and class weights share. N rows, V vocab, C classes."""

from typing import Any

import torch
from torch import Tensor

from presswork.ops.vocab_head import ClassReading, TokenClasses, read_classes
from tests.ops.vocab_head_cases import SLACK, scaled


def some_classes(vocab: int, num_classes: int, living: float = 0.8) -> TokenClasses:
    """One wide class, many of one token or a few, empty ones, and dead tokens; all scattered."""
    generator = torch.Generator().manual_seed(vocab + num_classes)
    class_of = torch.randint(0, num_classes, (vocab,), generator=generator)
    chance = torch.rand(vocab, generator=generator)
    class_of = torch.where(chance < 0.5 * living, 0, class_of)
    class_of[class_of == 1] = -1
    class_of[chance > living] = -1
    return TokenClasses(class_of=class_of.int(), num_classes=num_classes)


def assert_classes_agree(
    hidden: Tensor, embedding: Tensor, classes: TokenClasses, impl: Any, asked: dict[str, Any]
) -> ClassReading:
    """Numbers to float tolerance; the best token equal, or a proven near-tie in the definition's own numbers."""
    expected = read_classes(hidden, embedding, classes=classes, impl="reference", **asked)
    got = read_classes(hidden, embedding, classes=classes, impl=impl, **asked)
    assert torch.equal(got.finite, expected.finite)
    for name in ("log_mass", "mean", "top"):
        ours, right = getattr(got, name), getattr(expected, name)
        assert ours.dtype == right.dtype and ours.shape == right.shape
        torch.testing.assert_close(ours, right, rtol=SLACK, atol=SLACK, equal_nan=True, msg=name)
    assert torch.equal(got.best < 0, expected.best < 0)
    z = scaled(hidden, embedding, asked)
    rows, columns = ((got.best >= 0) & got.finite[:, None]).nonzero().unbind(1)
    assert torch.equal(classes.class_of[got.best[rows, columns]].long(), columns)
    ours, right = z[rows, got.best[rows, columns]], z[rows, expected.best[rows, columns]]
    torch.testing.assert_close(ours, right, rtol=0, atol=SLACK)
    return got
