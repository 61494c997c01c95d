"""The models of a server by name: loaded when asked for, within a memory bound, unloaded when idle."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from presswork.engine.aio import AsyncEngine
from presswork.engine.engine import Engine
from presswork.engine.loader import load
from presswork.errors import ModelNotFoundError
from presswork.server.config import ServerConfig
from presswork.server.errors import HttpError
from presswork.weights.config_files import read_config
from presswork.weights.hub import resolve

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class ServedModel:
    """One model a server offers.

    Args:
        num_bytes: of its weight files, which is what it counts for in memory.
        progress: share of its weights read, while it loads.
        num_users: requests that hold it.
    """

    name: str
    source: str
    adapters: dict[str, str]
    engine: AsyncEngine | None = None
    num_bytes: int = 0
    progress: float = 0.0
    num_users: int = 0
    last_used: float = field(default_factory=time.monotonic)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


def _warm(engine: Engine) -> None:
    """Compile what a first request would wait for: two steps of a canvas, or two tokens."""
    engine.generate(
        prompt_token_ids=[engine.model.config.bos_token_id], max_denoising_steps=2, stability_threshold=None,
        max_tokens=min(engine.model.config.canvas_length, engine.max_context - 1),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lease:
    """A loaded model for as long as a request needs it, and the adapter it asked for."""

    name: str
    engine: AsyncEngine
    adapter: str | None

    @property
    def model(self) -> Engine:
        """The engine itself; its methods are for threads."""
        return self.engine.engine


class ModelRegistry:
    """Only names that the server was started with reach a model; they are never taken for paths."""

    def __init__(self, config: ServerConfig):
        self._config = config
        self._models = {
            name: ServedModel(name=name, source=source, adapters=dict(config.adapters.get(name, {})))
            for name, source in config.models.items()
        }
        self._room = asyncio.Lock()  # one model at a time makes room and loads

    @property
    def models(self) -> list[ServedModel]:
        return list(self._models.values())

    @property
    def default(self) -> ServedModel:
        return self._models[self._config.default_model]

    def find(self, name: str | None) -> tuple[ServedModel, str | None]:
        """(the model, the adapter) of MODEL or MODEL:ADAPTER; None is the default. Raises ModelNotFoundError."""
        if name is None or name == "default":
            return self.default, None
        if name in self._models:
            return self._models[name], None
        base, _, adapter = name.rpartition(":")
        if base in self._models and adapter in self._models[base].adapters:
            return self._models[base], adapter
        raise ModelNotFoundError(f"no model {name[:100]!r} is served here; GET /v1/models lists them")

    def context_length(self, model: ServedModel) -> int:
        """Positions a sequence may have: of the engine if it is loaded, else what it will have."""
        if model.engine is not None:
            return model.engine.engine.max_context
        known = read_config(resolve(model.source, may_pull=False)).max_position_embeddings
        return min(known, self._config.engine.max_context or known)

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[Lease]:
        """Hold a model, loading it if it is not there. Raises ModelNotFoundError, CheckpointError, HttpError."""
        model, adapter = self.find(name)
        model.num_users += 1
        try:
            async with model.lock:
                if model.engine is None:
                    await self._load(model)
            assert model.engine is not None
            yield Lease(model.name, model.engine, adapter)
        finally:
            model.num_users -= 1
            model.last_used = time.monotonic()

    async def unload_idle(self) -> None:
        """Unload models that nobody has asked for in a while. Mutates self."""
        if self._config.idle_s is None:
            return
        for model in self._models.values():
            if not model.num_users and time.monotonic() - model.last_used > self._config.idle_s:
                await self._unload(model)

    async def close(self) -> None:
        """Unload everything; requests in flight end with an error. Mutates self."""
        for model in self._models.values():
            await self._unload(model)

    async def _load(self, model: ServedModel) -> None:
        async with self._room:
            folder = await asyncio.to_thread(resolve, model.source)
            model.num_bytes = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
            await self._make_room(model)
            started = time.perf_counter()

            def report(done: int, total: int) -> None:
                model.progress = done / max(1, total)

            def loaded() -> Engine:
                engine = load(
                    model.source, device=self._config.device, dtype=self._config.dtype, config=self._config.engine,
                    progress=report,
                )  # fmt: skip
                for name, place in model.adapters.items():
                    engine.load_adapter(name, place)
                _warm(engine)
                return engine

            model.engine = AsyncEngine(await asyncio.to_thread(loaded))
            logger.info("loaded %s in %.1f s", model.name, time.perf_counter() - started)

    async def _make_room(self, model: ServedModel) -> None:
        limit = self._config.memory_bytes
        if limit is None:
            return
        if model.num_bytes > limit:
            raise HttpError(503, f"model {model.name!r} does not fit the memory this server may use", param="model")
        while model.num_bytes + sum(one.num_bytes for one in self._models.values() if one.engine is not None) > limit:
            idle = [one for one in self._models.values() if one.engine is not None and not one.num_users]
            if not idle:
                raise HttpError(
                    503, f"model {model.name!r} has no room beside the models in use; try again later", param="model",
                    retry_after_s=5,
                )  # fmt: skip
            await self._unload(min(idle, key=lambda one: one.last_used))

    async def _unload(self, model: ServedModel) -> None:
        engine, model.engine, model.progress = model.engine, None, 0.0
        if engine is not None:
            await engine.aclose()
            logger.info("unloaded %s", model.name)
