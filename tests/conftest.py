"""One thread, and GPU tests that say why they are skipped."""

import pytest
import torch

# Tiny tensors: a second thread costs more than it brings, tenfold when the machine is busy.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
