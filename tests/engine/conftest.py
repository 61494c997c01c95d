import pytest
import torch

from presswork.engine.engine import Engine
from presswork.testing import fixture_model


@pytest.fixture(scope="session")
def confident_model():
    """Peaked logits, so that canvases converge at different steps."""
    return fixture_model(peak=6.0, width=2.0)


@pytest.fixture
def engine(confident_model):
    return Engine(confident_model)


def prompt_ids(length: int, seed: int) -> list[int]:
    return torch.randint(3, 60, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
