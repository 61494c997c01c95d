"""The outermost layer: request ids, keys, hosts, size of bodies, counts, and errors of any kind as answers."""

import hmac
import json
import logging
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from presswork.server.config import ServerConfig
from presswork.server.errors import HttpError, as_http, body_for, headers_of, logged
from presswork.server.metrics import Metrics

logger = logging.getLogger(__name__)

_OPEN_PATHS = ("/health", "/", "/favicon.ico")  # probes, and the page, which asks for the key itself
_OWN_HOSTS = ("localhost", "127.0.0.1", "[::1]", "host.docker.internal")


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

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(name, request_id.encode()) for name in (b"x-request-id", b"request-id")]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                # What the application makes of a body that stops short is not the reason.
                body.check()
            await named(message)

        self._metrics.in_flight.inc()
        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            self._check_host(headers)
            self._check_key(path, scope["method"], headers)
            body.check_length(headers.get(b"content-length", b""))
            await self._app(scope, body.receive, sending)
        except Exception as error:
            if status:
                raise
            # Whatever became of a body that stops short, its size is the reason.
            found = body.too_large() if body.is_too_large else logged(as_http(error), error, request_id)
            await _answer(found, path, request_id, named)
        finally:
            took_s = time.perf_counter() - started
            self._metrics.in_flight.dec()
            known = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(known, str(status or 499)).inc()
            self._metrics.seconds.labels(known).observe(took_s)
            shown = status or "client gone"
            logger.info("%s %s %.200r %s in %.3f s", request_id, scope["method"], path, shown, took_s)

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        """A page elsewhere whose name is made to point here must not pass for one of ours."""
        if self._config.api_keys or not self._config.is_local:
            return
        host = headers.get(b"host", b"localhost").decode("latin-1")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name.lower() not in _OWN_HOSTS:
            raise HttpError(400, f"this server answers to localhost alone, not to {name[:60]!r}; start it with --host")

    def _check_key(self, path: str, method: str, headers: dict[bytes, bytes]) -> None:
        keys = self._config.api_keys
        is_open = path in _OPEN_PATHS or path.startswith("/static/") or method == "OPTIONS"
        if not keys or is_open:
            return
        kind, _, token = headers.get(b"authorization", b"").strip().partition(b" ")
        given = [headers.get(b"x-api-key", b""), token.strip() if kind.lower() == b"bearer" else b""]
        # Every pair is compared, so that time does not tell which one was close.
        matches = [hmac.compare_digest(one, key.encode()) for one in given for key in keys]
        if not any(matches):
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

    @property
    def is_too_large(self) -> bool:
        return self._taken > self._most

    def check(self) -> None:
        """Raises HttpError where too much has come."""
        if self.is_too_large:
            raise self.too_large()

    def check_length(self, announced: bytes) -> None:
        """Raises HttpError where too much is announced."""
        if announced.isdigit() and int(announced) > self._most:
            raise self.too_large()

    def too_large(self) -> HttpError:
        """What a client is told of a body past the most."""
        return HttpError(413, f"the request is larger than {self._most} bytes; send less")


async def _answer(error: HttpError, path: str, request_id: str, send: Send) -> None:
    body = json.dumps(body_for(path, error, request_id)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in headers_of(error).items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
