"""The oracle as a fixture, and one thread: at these sizes more threads only wait for each other."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
import torch

from presswork.models.transformer import Transformer

if TYPE_CHECKING:
    from tests.parity.oracle import Oracle


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def build_oracle() -> "Callable[..., Oracle]":
    """(model, attention=, experts=) -> transformers with the model's weights; skips where transformers is missing."""
    pytest.importorskip("transformers", reason="the oracle is transformers, a development dependency")
    from tests.parity.oracle import Oracle

    def build(model: Transformer, *, attention: str = "eager", experts: str = "eager") -> Oracle:
        return Oracle(model, attention=attention, experts=experts)

    return build
