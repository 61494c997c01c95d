"""The outermost layer: request ids, keys, size of bodies, counts, and errors of any kind as answers."""

import hmac
import json
import logging
import time
import uuid
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from presswork.server.config import ServerConfig
from presswork.server.errors import HttpError, as_http, body_for
from presswork.server.metrics import Metrics

logger = logging.getLogger(__name__)

_OPEN_PATHS = ("/health", "/", "/favicon.ico")  # probes, and the page, which asks for the key itself


class Border:
    """Wraps the application: whatever goes in gets an id, and comes out as one answer."""

    def __init__(self, app: ASGIApp, config: ServerConfig, metrics: Metrics):
        self._app, self._config, self._metrics = app, config, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{uuid.uuid4().hex[:24]}"
        scope.setdefault("state", {})["request_id"] = request_id
        path, started, status = scope["path"], time.perf_counter(), 0
        body = _Body(self._config.max_body_bytes, receive)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                # What the application makes of a body that stops short is not the reason.
                body.check()
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        self._metrics.in_flight.inc()
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self._check_key(path, scope["method"], headers)
            body.check_length(headers.get("content-length", ""))
            await self._app(scope, body.receive, sending)
        except Exception as error:
            if status:
                raise
            await _answer(as_http(error), path, request_id, sending, error)
        finally:
            self._metrics.in_flight.dec()
            known = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(known, str(status or 499)).inc()
            self._metrics.seconds.labels(known).observe(time.perf_counter() - started)
            logger.info("%s %s %s %s in %.3f s", request_id, scope["method"], path, status or "client gone",
                        time.perf_counter() - started)  # fmt: skip

    def _check_key(self, path: str, method: str, headers: Mapping[str, str]) -> None:
        keys = self._config.api_keys
        is_open = path in _OPEN_PATHS or path.startswith("/static/") or method == "OPTIONS"
        if not keys or is_open:
            return
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ").strip()
        # Every key is compared, so that time does not tell which one was close.
        if not any([hmac.compare_digest(given.encode(), key.encode()) for key in keys]):
            raise HttpError(401, "no valid API key; send one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'")


class _Body:
    """A request's body, up to a most."""

    def __init__(self, most: int, receive: Receive):
        self._most, self._receive, self._taken = most, receive, 0

    async def receive(self) -> Message:
        """The next message. Raises HttpError past the most."""
        message = await self._receive()
        self._taken += len(message.get("body", b""))
        self.check()
        return message

    def check(self) -> None:
        """Raises HttpError where too much has come."""
        if self._taken > self._most:
            raise HttpError(413, f"the request is larger than {self._most} bytes; send less")

    def check_length(self, announced: str) -> None:
        """Raises HttpError where too much is announced."""
        if announced.isdigit():
            self._taken = int(announced)
            self.check()
            self._taken = 0


async def _answer(error: HttpError, path: str, request_id: str, send: Send, cause: BaseException) -> None:
    if error.status >= 500 and error is not cause:
        logger.error("%s failed: %s", request_id, cause, exc_info=cause)
    body = json.dumps(body_for(path, error, request_id)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(error.retry_after_s).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
