"""The application: routes, what they share, and its start and end."""

import asyncio
import logging
import reprlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from presswork import __version__
from presswork.errors import PressworkError
from presswork.server.border import Border
from presswork.server.config import ServerConfig
from presswork.server.errors import HttpError, as_http, body_for, headers_of, logged
from presswork.server.metrics import Metrics
from presswork.server.registry import ModelRegistry
from presswork.server.routes import (
    anthropic,
    canvas,
    chat,
    code,
    completions,
    decisions,
    models,
    operations,
    page,
    responses,
)

logger = logging.getLogger(__name__)

_IDLE_LOOK_S = 1.0


class Server:
    """What every route needs: the models, the settings, the figures."""

    def __init__(self, config: ServerConfig):
        self.config, self.metrics = config, Metrics()
        self.registry = ModelRegistry(config)
        self.has_failed = False
        self._was_loaded = False

    @property
    def is_ready(self) -> bool:
        """Whether the default model has been loaded once. Mutates what is remembered."""
        self._was_loaded = self._was_loaded or self.registry.default.engine is not None
        return self._was_loaded

    async def load_default(self) -> None:
        """Load the first model; until then the server says that it is not ready. Mutates self."""
        try:
            async with self.registry.use(None):
                self._was_loaded = True
        except HttpError as error:
            self.has_failed = True
            if self.registry.default.failed_at is None:  # else the registry has told why
                logger.error("model %s cannot be loaded: %s", self.config.default_model, error)
        except Exception:
            self.has_failed = True
            logger.exception("the model %s cannot be loaded", self.config.default_model)

    async def watch_idle(self) -> None:
        """Unload idle models, for ever."""
        while True:
            await asyncio.sleep(_IDLE_LOOK_S)
            try:
                await self.registry.unload_idle()
            except Exception:
                logger.exception("an idle model could not be unloaded")


def create_app(config: ServerConfig) -> FastAPI:
    """The server's application, for uvicorn or another ASGI server; one process, one event loop."""
    server = Server(config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(server.load_default()), asyncio.ensure_future(server.watch_idle())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await server.registry.close()

    app = FastAPI(
        title="presswork", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Block-diffusion language models behind the protocols people already use.",
    )  # fmt: skip
    app.state.server = server
    for routes in (
        operations, models, chat, completions, responses, anthropic, code, canvas, decisions, page,
    ):  # fmt: skip
        app.include_router(routes.router)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _unrouted)
    for kind in (HttpError, PressworkError, TimeoutError):
        app.add_exception_handler(kind, _failed)
    app.add_middleware(Border, config=config, metrics=server.metrics)
    if config.cors_origins:
        # Outermost, so that what the border refuses can be read by an allowed page too.
        app.add_middleware(
            CORSMiddleware, allow_origins=list(config.cors_origins), allow_methods=["*"], allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )  # fmt: skip
    return app


async def _failed(request: Request, error: Exception) -> Response:
    request_id = request.scope["state"]["request_id"]
    found = logged(as_http(error), error, request_id)
    return JSONResponse(body_for(request.url.path, found, request_id), found.status, headers_of(found))


async def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _failed(request, _first_fault(error.errors()))


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path} is not served here" if error.status_code == 404 else str(error.detail)
    return await _failed(request, HttpError(error.status_code, said))


def _first_fault(faults: Any) -> HttpError:
    """One of a malformed body's faults, as a line that names the field."""
    fault = faults[0]
    path = [str(part) for part in fault["loc"] if part != "body"]
    field = ".".join(path) or "the body"
    if fault["type"] == "json_invalid":
        return HttpError(400, "the body is not JSON; send a JSON object")
    if fault["type"] == "extra_forbidden":
        return HttpError(400, f"{field}: this field is not known here; leave it out", param=field)
    if fault["type"] == "missing":
        return HttpError(400, f"{field} is missing; give it", param=field)
    return HttpError(400, f"{field}: {fault['msg']}, got {reprlib.repr(fault.get('input'))}", param=field)
