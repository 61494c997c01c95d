"""A served tiny model with a chat template, reached over a real socket."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
import uvicorn

from presswork.engine.engine import EngineConfig
from presswork.models.adapters import LoraConfig
from presswork.server.app import create_app
from presswork.server.config import ServerConfig
from presswork.tasks.code.tokenizer import EOS_ID, SPECIAL, train_tokenizer
from presswork.tasks.text_files import mark_special, write_text_files
from presswork.testing import fixture_config, fixture_model
from presswork.text.parsers import CALL_CLOSE, CALL_OPEN, CHANNEL_CLOSE, CHANNEL_OPEN, QUOTE
from presswork.weights.config_files import write_generation_config
from presswork.weights.load import load_model
from presswork.weights.lora import new_adapter
from presswork.weights.peft_files import save_adapter
from presswork.weights.save import save_model

SOURCE = 'def add(a, b):\n    return {"name": "value", "count": 12, "items": [true, false, null]}\n'
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content if m.content is string else '' }}\n{% endfor %}"
    "{% if tools %}tools: {{ tools | length }}\n{% endif %}"
    "{% if enable_thinking %}think\n{% endif %}{% if add_generation_prompt %}model: {% endif %}"
)


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    config: ServerConfig


@contextmanager
def serving(config: ServerConfig) -> Iterator[Served]:
    """A server of these settings in a thread of its own, ready."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(config), log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        else:
            raise AssertionError("the server did not become ready")
        yield Served(url, config)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
    assert not thread.is_alive()


@pytest.fixture(scope="package")
def folder(tmp_path_factory) -> Path:
    """A loadable model that knows the marks of channels and calls."""
    place = tmp_path_factory.mktemp("models") / "tiny"
    library = train_tokenizer([SOURCE] * 4, vocab_size=330)
    mark_special(library, [*SPECIAL, CALL_OPEN, CALL_CLOSE, QUOTE, CHANNEL_OPEN, CHANNEL_CLOSE])
    config = fixture_config(vocab_size=library.get_vocab_size(), eos_token_id=EOS_ID, canvas_length=16)
    save_model(fixture_model(config, peak=3.0, width=2.0).to(torch.bfloat16), place)
    write_text_files(library, TEMPLATE, place)
    write_generation_config(place, {"eos_token_id": [EOS_ID], "pad_token_id": 0, "max_denoising_steps": 4})
    return place


@pytest.fixture(scope="package")
def served(folder, tmp_path_factory) -> Iterator[Served]:
    """The usual server."""
    engine = EngineConfig(constraint_folder=tmp_path_factory.mktemp("constraints"))
    with serving(ServerConfig(models={"tiny": str(folder), "molecules": "molecules"}, engine=engine)) as running:
        yield running


def write_adapter(folder, target, seed: int) -> str:
    """An adapter of random weights for a model, in a folder; returns that folder."""
    config = load_model(folder).config
    lora = LoraConfig(rank=2, alpha=16, targets=("*.o_proj",))
    made = new_adapter(config, lora)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    save_adapter(made, target, config, lora, "tiny")
    return str(target)
