"""presswork: an engine for block-diffusion language models of the DiffusionGemma family.

import presswork
engine = presswork.load("sudoku")
print(engine.generate(puzzle).text)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from presswork.engine.aio import AsyncEngine
    from presswork.engine.decide import DecideReply
    from presswork.engine.edit import EditReply
    from presswork.engine.engine import Engine, EngineConfig
    from presswork.engine.events import Commit, Done, Draft, Reply, Stats, TokenLogprob, TokenTrace, Usage
    from presswork.engine.fill import FillReply
    from presswork.engine.gaps import GapsReply
    from presswork.engine.loader import load
    from presswork.engine.params import SamplingParams
    from presswork.errors import PressworkError
    from presswork.grammar.languages import Both, Choices, Either, JsonSchema, Regex, ToolCalls, Without
    from presswork.weights.hub import list_models, pull

__version__ = "0.1.0"

# Deferred, so that `import presswork` does not import torch.
_HOMES = {
    "load": "presswork.engine.loader",
    "Engine": "presswork.engine.engine",
    "EngineConfig": "presswork.engine.engine",
    "AsyncEngine": "presswork.engine.aio",
    "SamplingParams": "presswork.engine.params",
    "Reply": "presswork.engine.events",
    "DecideReply": "presswork.engine.decide",
    "EditReply": "presswork.engine.edit",
    "FillReply": "presswork.engine.fill",
    "GapsReply": "presswork.engine.gaps",
    "Draft": "presswork.engine.events",
    "Commit": "presswork.engine.events",
    "Done": "presswork.engine.events",
    "Usage": "presswork.engine.events",
    "Stats": "presswork.engine.events",
    "TokenLogprob": "presswork.engine.events",
    "TokenTrace": "presswork.engine.events",
    "Both": "presswork.grammar.languages",
    "Choices": "presswork.grammar.languages",
    "Either": "presswork.grammar.languages",
    "JsonSchema": "presswork.grammar.languages",
    "Regex": "presswork.grammar.languages",
    "ToolCalls": "presswork.grammar.languages",
    "Without": "presswork.grammar.languages",
    "PressworkError": "presswork.errors",
    "pull": "presswork.weights.hub",
    "list_models": "presswork.weights.hub",
}

__all__ = [
    "AsyncEngine",
    "Both",
    "Choices",
    "Commit",
    "DecideReply",
    "Done",
    "Draft",
    "EditReply",
    "Either",
    "Engine",
    "EngineConfig",
    "FillReply",
    "GapsReply",
    "JsonSchema",
    "PressworkError",
    "Regex",
    "Reply",
    "SamplingParams",
    "Stats",
    "TokenLogprob",
    "TokenTrace",
    "ToolCalls",
    "Usage",
    "Without",
    "list_models",
    "load",
    "pull",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'presswork' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
