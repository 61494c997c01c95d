"""A Hub on this machine: as much of its HTTP interface as fetching a model takes, and its ways to say no."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"

_REFUSALS = {"gated": (403, "GatedRepo"), "private": (401, "RepoNotFound"), "down": (503, "")}


@dataclass
class FakeHub:
    """Models by id, each a mapping of file names to content; the id's owner picks a refusal.

    Args:
        fetched: (model, file) in the order their content was sent.
        broken_files: content of these stops half-way.
    """

    models: dict[str, dict[str, bytes]]
    url: str = ""
    fetched: list[tuple[str, str]] = field(default_factory=list)
    broken_files: set[str] = field(default_factory=set)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a GET."""
        parts = path.strip("/").split("/")
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        owner = repo.split("/")[0]
        if owner in _REFUSALS:
            status, code = _REFUSALS[owner]
            return status, {"X-Error-Code": code}, b"{}"
        if repo not in self.models:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if parts[0] == "api":
            return self._describe(repo, parts[4:])
        name = "/".join(parts[4:])
        content = self.models[repo][name]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        return 200, headers, content

    def _describe(self, repo: str, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
        files = self.models[repo]
        if rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            return 200, {}, json.dumps(tree).encode()
        if rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        about = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files], "tags": []}
        return 200, {}, json.dumps({**about, "private": False, "downloads": 0, "likes": 0}).encode()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_HEAD(self) -> None:
        self._reply(with_body=False)

    def do_GET(self) -> None:
        self._reply(with_body=True)

    def _reply(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        status, headers, body = self.hub.answer(path)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not with_body:
            return
        name = path.rsplit("/", 1)[-1]
        if "/resolve/" in path and status == 200:
            self.hub.fetched.append(("/".join(path.strip("/").split("/")[:2]), name))
        if name in self.hub.broken_files:
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silence: the default writes every request to stderr."""


@contextmanager
def serve(models: dict[str, dict[str, bytes]]) -> Iterator[FakeHub]:
    """Run a Hub with these models on a free port."""
    hub = FakeHub(models=models)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
