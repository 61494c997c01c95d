"""Fixtures of the op tests."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch


@pytest.fixture
def several_threads() -> Callable[[int], AbstractContextManager[None]]:
    """Context that gives torch, and so the ops, a number of threads."""

    @contextmanager
    def threads(num: int) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(num)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return threads
