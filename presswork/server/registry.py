"""The models of a server by name: loaded when asked for, within a memory bound, unloaded when idle."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from presswork.engine.abandon import abandonable
from presswork.engine.aio import AsyncEngine
from presswork.engine.engine import Engine
from presswork.engine.loader import as_dtype, load
from presswork.errors import EngineClosedError, ModelNotFoundError, PressworkError, QueueFullError
from presswork.ops.threads import take_threads
from presswork.server.config import ServerConfig
from presswork.server.errors import HttpError
from presswork.weights.config_files import read_config
from presswork.weights.hub import resolve
from presswork.weights.load import loaded_bytes

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_READERS = 4  # threads that read bodies: short work, which must not wait for long work
_RETRY_S = 10.0  # after a load that failed, before it is tried again


@dataclass(slots=True, kw_only=True, eq=False)
class ServedModel:
    """One model a server offers.

    Args:
        num_bytes: of its weights in memory.
        progress: share of its weights read, while it loads.
        num_users: requests that hold it.
        loading: the load on its way, which belongs to no request.
        failed_at: when the last load failed; None where it did not.
        context_length: positions of a sequence, once known.
    """

    name: str
    source: str
    adapters: dict[str, str]
    engine: AsyncEngine | None = None
    num_bytes: int = 0
    progress: float = 0.0
    num_users: int = 0
    last_used: float = field(default_factory=time.monotonic)
    loading: "asyncio.Task[None] | None" = None
    failed_at: float | None = None
    context_length: int | None = None


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
    readers: ThreadPoolExecutor
    workers: "Workers"

    @property
    def model(self) -> Engine:
        """The engine itself; its methods are for threads."""
        return self.engine.engine

    async def read(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Call something short that would hold up the loop, such as cutting a text into tokens, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, lambda: function(*arguments))

    async def run(self, function: Callable[..., _T], *arguments: Any, **named: Any) -> _T:
        """Call something that takes passes of its own in a thread; if the caller is cancelled it ends at its next.

        Raises: QueueFullError where too many wait for a thread, and what the function raises.
        """
        abandoned = threading.Event()

        def call() -> _T:
            with abandonable(abandoned):
                return function(*arguments, **named)

        try:
            return await self.workers.run(call)
        except asyncio.CancelledError:
            abandoned.set()
            raise


class Workers:
    """Threads for work that takes passes of its own, and a bounded queue before them.

    Args: num_waiting: calls that no thread has taken yet.
    """

    def __init__(self, num: int, most_waiting: int):
        self._threads = ThreadPoolExecutor(num, "presswork-work", initializer=take_threads)
        self._num, self._most_waiting = num, most_waiting
        self._num_calls = 0

    @property
    def num_waiting(self) -> int:
        return max(0, self._num_calls - self._num)

    async def run(self, call: Callable[[], _T]) -> _T:
        """Raises QueueFullError, and what the call raises."""
        if self.num_waiting >= self._most_waiting:
            raise QueueFullError(self.num_waiting, self._most_waiting)
        running = asyncio.get_running_loop().run_in_executor(self._threads, call)
        self._num_calls += 1
        # A caller that is gone leaves its thread running to the next pass.
        running.add_done_callback(self._ended)
        return await asyncio.shield(running)

    def shutdown(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self, future: "asyncio.Future[Any]") -> None:
        self._num_calls -= 1
        if not future.cancelled():
            future.exception()


class ModelRegistry:
    """Only names that the server was started with reach a model; they are never taken for paths."""

    def __init__(self, config: ServerConfig):
        self._config = config
        self._models = {
            name: ServedModel(name=name, source=source, adapters=dict(config.adapters.get(name, {})))
            for name, source in config.models.items()
        }
        self._is_closing = False  # seen by the thread that reads weights, which cannot be cancelled
        self._room = asyncio.Lock()  # one model at a time makes room and reads its weights
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="presswork-read")
        self.workers = Workers(config.engine.max_running, config.engine.max_waiting)

    @property
    def models(self) -> list[ServedModel]:
        return list(self._models.values())

    @property
    def default(self) -> ServedModel:
        return self._models[self._config.default_model]

    def find(self, name: str | None) -> tuple[ServedModel, str | None]:
        """(the model, the adapter) of MODEL or MODEL:ADAPTER; no name is the default. Raises ModelNotFoundError."""
        if not name or name == "default":
            return self.default, None
        if name in self._models:
            return self._models[name], None
        base, _, adapter = name.rpartition(":")
        if base in self._models and adapter in self._models[base].adapters:
            return self._models[base], adapter
        raise ModelNotFoundError(f"no model {name[:100]!r} is served here; GET /v1/models lists them")

    def context_length(self, model: ServedModel) -> int | None:
        """Positions a sequence may have; None where the model is not on this machine yet."""
        if model.context_length is None:
            try:
                known = read_config(resolve(model.source, may_pull=False)).max_position_embeddings
            except PressworkError as error:
                logger.info("the context of %s is not known yet: %s", model.name, error)
                return None
            model.context_length = min(known, self._config.engine.max_context or known)
        return model.context_length

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[Lease]:
        """Hold a model, loading it if it is not there. Raises ModelNotFoundError, HttpError."""
        model, adapter = self.find(name)
        model.num_users += 1
        try:
            while model.engine is None:
                await self._loaded(model)
            yield Lease(model.name, model.engine, adapter, self._readers, self.workers)
        finally:
            model.num_users -= 1
            model.last_used = time.monotonic()

    async def unload_idle(self) -> None:
        """Unload models that nobody has asked for in a while. Mutates self."""
        if self._config.idle_s is None:
            return
        for model in self._models.values():
            if not model.num_users and time.monotonic() - model.last_used > self._config.idle_s:
                async with self._room:
                    if not model.num_users:
                        await self._unload(model)

    async def close(self) -> None:
        """Unload everything, and stop what is being loaded; requests in flight end with an error. Mutates self."""
        self._is_closing = True
        for model in self._models.values():
            if model.loading is not None:
                model.loading.cancel()
            await self._unload(model)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self.workers.shutdown()

    async def _loaded(self, model: ServedModel) -> None:
        """Wait for a load, which goes on where the one that asked for it is gone: the next one needs it too."""
        if model.loading is None:
            if model.failed_at is not None and time.monotonic() - model.failed_at < _RETRY_S:
                raise HttpError(503, f"model {model.name!r} could not be loaded just now", retry_after_s=int(_RETRY_S))
            model.loading = asyncio.ensure_future(self._load(model))
            model.loading.add_done_callback(lambda task: _finished(model, task))
        try:
            await asyncio.shield(model.loading)
        except HttpError:
            raise
        except Exception as error:
            raise HttpError(503, f"model {model.name!r} cannot be loaded; the server's log says why") from error

    async def _load(self, model: ServedModel) -> None:
        folder = await asyncio.to_thread(resolve, model.source)
        async with self._room:
            model.num_bytes = await asyncio.to_thread(loaded_bytes, folder, as_dtype(self._config.dtype))
            await self._make_room(model)
            started = time.perf_counter()

            def report(done: int, total: int) -> None:
                if self._is_closing:
                    raise EngineClosedError("the server stopped while the model was loaded")
                model.progress = done / max(1, total)

            def loaded() -> Engine:
                engine = load(
                    model.source, device=self._config.device, dtype=self._config.dtype, config=self._config.engine,
                    progress=report, name=model.name,
                )  # fmt: skip
                for name, place in model.adapters.items():
                    engine.load_adapter(name, place)
                _warm(engine)
                return engine

            # Torch's helper threads end with the thread they help, and then slow nobody down.
            own = ThreadPoolExecutor(1, "presswork-load", initializer=take_threads)
            try:
                model.engine = AsyncEngine(await asyncio.get_running_loop().run_in_executor(own, loaded))
            finally:
                own.shutdown(wait=False)
            model.context_length = model.engine.engine.max_context
            logger.info("loaded %s in %.1f s", model.name, time.perf_counter() - started)

    async def _make_room(self, model: ServedModel) -> None:
        limit = self._config.memory_bytes
        if limit is None:
            return
        if model.num_bytes > limit:
            raise HttpError(503, f"model {model.name!r} does not fit the memory this server may use", param="model")
        loaded = [one for one in self._models.values() if one.engine is not None]
        idle = sorted((one for one in loaded if not one.num_users), key=lambda one: one.last_used)
        needed = model.num_bytes + sum(one.num_bytes for one in loaded) - limit
        if needed > sum(one.num_bytes for one in idle):
            raise HttpError(
                503, f"model {model.name!r} has no room beside the models in use; try again later", param="model",
                retry_after_s=5,
            )  # fmt: skip
        for one in idle:
            if needed <= 0:
                break
            needed -= one.num_bytes
            await self._unload(one)

    async def _unload(self, model: ServedModel) -> None:
        engine, model.engine, model.progress = model.engine, None, 0.0
        if engine is not None:
            await engine.aclose()
            logger.info("unloaded %s", model.name)


def _finished(model: ServedModel, task: "asyncio.Task[None]") -> None:
    """Remember how a load ended. Mutates the model."""
    model.loading = None
    error = None if task.cancelled() else task.exception()
    model.failed_at = None if error is None or isinstance(error, HttpError) else time.monotonic()
    if error is not None and not isinstance(error, HttpError):
        trace = None if isinstance(error, PressworkError) else error
        logger.error("model %s cannot be loaded: %s", model.name, error, exc_info=trace)
