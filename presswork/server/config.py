"""What a server is told before it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from presswork.config import require
from presswork.engine.engine import EngineConfig

DRAIN_S = 30
"""Seconds that running requests get when a server is told to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings of a server.

    Args:
        models: what requests may name, and where each comes from: an embedded name, a folder, or a Hub id. The first
            is the one that requests without a name get, and is loaded at the start; the others when they are asked for.
        adapters: of a model, by name: folders. Requests ask for them as MODEL:ADAPTER.
        device: where models run. dtype: of their weights; None is the checkpoint's.
        engine: limits of each model's engine.
        memory_bytes: for the weights of all loaded models together; None is no bound.
        idle_s: seconds without a request after which a model is unloaded; None never.
        is_local: only this machine is listened to; then only its own names are answered to, unless there are keys.
        api_keys: requests must carry one of them; empty lets everybody in.
        max_body_bytes: of a request.
        deadline_s: a request may take, queue included; None is no bound.
        keep_alive_s: seconds without an event after which a stream is sent a comment.
        cors_origins: origins whose pages may call; "*" is any.
    """

    models: Mapping[str, str]
    adapters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    device: str = "cpu"
    dtype: str | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    memory_bytes: int | None = None
    idle_s: float | None = None
    is_local: bool = False
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 16 << 20
    deadline_s: float | None = None
    keep_alive_s: float = 10.0
    cors_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(bool(self.models), "a server needs at least one model")
        unknown = sorted(set(self.adapters) - set(self.models))
        require(not unknown, f"adapters are given for {unknown[:1]}, which is no served model")
        require(all(self.api_keys), "an API key must not be empty")
        for name in ("memory_bytes", "idle_s", "deadline_s"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be above 0 or none, got {value}")
        for name in ("max_body_bytes", "keep_alive_s"):
            require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")

    @property
    def default_model(self) -> str:
        """The model of requests that name none."""
        return next(iter(self.models))
