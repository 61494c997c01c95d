"""The server's border: keys, sizes, queues, deadlines, clients that leave, models that come and go."""

import asyncio
import json
import threading
import time

import httpx
import pytest

from presswork.engine.engine import EngineConfig
from presswork.engine.loader import load
from presswork.server import registry
from presswork.server.app import Server
from presswork.server.config import ServerConfig
from presswork.server.sse import readable
from tests.server.conftest import serving

HELLO = [{"role": "user", "content": "def add"}]
LONG = {"messages": HELLO, "ignore_eos": True, "max_denoising_steps": 48, "stability_threshold": 48}


def metric(url: str, name: str) -> float:
    """The sum of a figure over its labels."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def assert_idle_soon(url: str) -> None:
    """Nothing runs or waits any more, five seconds from now at the latest."""
    for _ in range(100):
        if metric(url, "presswork_running") + metric(url, "presswork_waiting") == 0:
            return
        time.sleep(0.05)
    raise AssertionError("a request still runs")


def test_keys_are_asked_of_everything_but_probes(folder):
    with serving(ServerConfig(models={"tiny": str(folder)}, api_keys=("one", "two"))) as served:
        assert httpx.get(f"{served.url}/health").status_code == 200
        for headers in ({}, {"authorization": "Bearer three"}, {"x-api-key": "on"}, {"authorization": "Bearer"}):
            told = httpx.get(f"{served.url}/v1/models", headers=headers)
            assert told.status_code == 401 and told.json()["error"]["type"] == "authentication_error"
        for headers in ({"authorization": "Bearer two"}, {"x-api-key": "one"}):
            assert httpx.get(f"{served.url}/v1/models", headers=headers).status_code == 200


def test_large_bodies_are_refused_however_they_come(folder):
    with serving(ServerConfig(models={"tiny": str(folder)}, max_body_bytes=1000)) as served:
        body = json.dumps({"messages": [{"role": "user", "content": "x" * 2000}]}).encode()
        url, kind = f"{served.url}/v1/chat/completions", {"content-type": "application/json"}
        told = httpx.post(url, content=body, headers=kind)
        assert told.status_code == 413 and told.headers["x-request-id"].startswith("req_")

        def pieces():
            for start in range(0, len(body), 100):
                yield body[start : start + 100]

        told = httpx.post(url, content=pieces(), headers=kind)
        assert told.status_code == 413 and told.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"", b'"x"', b"null", b'{"messages": "' + b"[" * 5000])
def test_bodies_that_are_no_requests_are_400(served, content):
    told = httpx.post(
        f"{served.url}/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert told.status_code == 400 and told.json()["error"]["type"] == "invalid_request_error"


def test_paths_and_methods_that_are_not_served_are_told_so(served):
    assert httpx.get(f"{served.url}/v1/nothing").status_code == 404
    told = httpx.get(f"{served.url}/v1/chat/completions")
    assert told.status_code == 405 and "error" in told.json()


def test_a_full_queue_is_429_with_a_time_to_come_back(folder):
    engine = EngineConfig(max_running=1, max_waiting=1)
    with serving(ServerConfig(models={"tiny": str(folder)}, engine=engine)) as served:
        told: list[httpx.Response] = []

        def ask():
            told.append(httpx.post(f"{served.url}/v1/chat/completions", json={**LONG, "max_tokens": 150}, timeout=60))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        threads[0].start()
        # Once the first runs, one of the others may wait.
        while 'presswork_running{model="tiny"} 1.0' not in httpx.get(f"{served.url}/metrics").text:
            time.sleep(0.005)
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join()
        codes = sorted(one.status_code for one in told)
        assert codes == [200, 200, 429, 429, 429, 429]
        assert all(one.headers["retry-after"] == "1" for one in told if one.status_code == 429)


def test_a_client_that_leaves_frees_its_place_at_the_next_step(served):
    body = {**LONG, "max_tokens": 400}
    for stream in (True, False):
        with httpx.Client(timeout=0.5) as client, pytest.raises((httpx.ReadTimeout, httpx.TimeoutException)):
            if stream:
                with client.stream("POST", f"{served.url}/v1/chat/completions", json={**body, "stream": True}) as told:
                    for _ in told.iter_lines():
                        raise httpx.ReadTimeout("enough")
            else:
                client.post(f"{served.url}/v1/chat/completions", json=body)
        assert_idle_soon(served.url)


def test_a_client_that_leaves_an_edit_frees_its_place_too(served):
    text = "def add(a, b):\n    return a + b\n" * 4
    body = {"text": text, "num_candidates": 32, "max_denoising_steps": 48, "strength": 1.0}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}/v1/canvas/edit", json=body, timeout=0.3)
    assert_idle_soon(served.url)


def test_a_deadline_ends_a_request_with_an_error(folder):
    with serving(ServerConfig(models={"tiny": str(folder)}, deadline_s=0.3)) as served:
        body = {**LONG, "max_tokens": 400}
        assert httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=20).status_code == 504
        told = httpx.post(f"{served.url}/v1/chat/completions", json={**body, "stream": True}, timeout=20)
        last = json.loads(told.text.strip().splitlines()[-1].removeprefix("data: ")) if told.status_code == 200 else {}
        assert told.status_code == 504 or last["error"]["type"] == "timeout_error"
        assert metric(served.url, "presswork_running") == 0


def test_waiting_streams_are_kept_alive_with_comments(folder):
    with serving(ServerConfig(models={"tiny": str(folder)}, keep_alive_s=0.02)) as served:
        body = {**LONG, "max_tokens": 200, "canvas_length": 200, "stream": True}
        told = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)
        assert ": keep-alive" in told.text and told.text.rstrip().endswith("data: [DONE]")


def test_models_are_loaded_when_asked_for_and_unloaded_when_idle(folder):
    with serving(ServerConfig(models={"tiny": str(folder), "molecules": "molecules"}, idle_s=0.5)) as served:

        def loaded():
            return {one["id"] for one in httpx.get(f"{served.url}/v1/models").json()["data"] if one["loaded"]}

        body = {"model": "molecules", "prompt": "CC", "max_tokens": 4}
        assert httpx.post(f"{served.url}/v1/completions", json=body, timeout=60).status_code == 200
        for _ in range(100):
            if not loaded():
                break
            time.sleep(0.1)
        assert loaded() == set() and httpx.get(f"{served.url}/health").status_code == 200
        assert httpx.post(f"{served.url}/v1/completions", json=body, timeout=60).status_code == 200
        assert "molecules" in loaded()


def test_memory_is_shared_by_unloading_what_is_idle(folder):
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    models = {"one": str(folder), "two": str(folder)}
    with serving(ServerConfig(models=models, memory_bytes=size + size // 2)) as served:
        for name in ("one", "two", "one"):
            body = {"model": name, "messages": HELLO, "max_tokens": 2}
            assert httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).status_code == 200
            found = httpx.get(f"{served.url}/v1/models").json()["data"]
            assert [one["id"] for one in found if one["loaded"]] == [name]


def test_a_model_that_cannot_be_loaded_says_so_and_the_others_serve(folder, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    server = Server(ServerConfig(models={"bad": str(tmp_path), "tiny": str(folder)}))
    asyncio.run(server.load_default())
    assert not server.is_ready and server.has_failed


@pytest.mark.parametrize("config", [None, "{}"])
def test_why_the_default_model_cannot_be_had_is_logged_once(folder, tmp_path, caplog, config):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    name, room = ("one", 1000) if config is None else ("bad", None)
    server = Server(ServerConfig(models={name: str(folder if config is None else tmp_path)}, memory_bytes=room))
    asyncio.run(server.load_default())
    told = [record.getMessage() for record in caplog.records if "cannot be loaded" in record.getMessage()]
    assert server.has_failed and len(told) == 1
    assert ("does not fit the memory" if config is None else "config.json") in told[0]


def test_a_load_goes_on_when_those_that_wait_leave_and_is_done_once(folder, monkeypatch):
    loads = []

    def slowly(source, **options):
        loads.append(source)
        time.sleep(0.5)
        return load(source, **options)

    monkeypatch.setattr(registry, "load", slowly)

    async def run():
        models = registry.ModelRegistry(ServerConfig(models={"tiny": str(folder)}))

        async def ask():
            async with models.use("tiny") as lease:
                return lease.name

        for _ in range(2):
            task = asyncio.ensure_future(ask())
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await ask() == "tiny"
        await models.close()

    asyncio.run(run())
    assert len(loads) == 1


def test_a_server_that_stops_does_not_wait_for_a_load(folder, monkeypatch):
    begun, ended = threading.Event(), threading.Event()

    def endless(source, *, progress, **options):
        begun.set()
        try:
            for done in range(3000):
                time.sleep(0.01)
                progress(done, 3000)
        finally:
            ended.set()

    monkeypatch.setattr(registry, "load", endless)

    async def run():
        models = registry.ModelRegistry(ServerConfig(models={"tiny": str(folder)}))
        waiting = asyncio.ensure_future(models.use("tiny").__aenter__())
        assert await asyncio.to_thread(begun.wait, 60)
        started = time.perf_counter()
        await models.close()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return started

    started = asyncio.run(run())
    assert ended.wait(5) and time.perf_counter() - started < 5


def test_a_model_that_is_not_there_yet_is_listed_without_its_window(folder):
    with serving(ServerConfig(models={"tiny": str(folder), "far": "nobody/nothing"})) as served:
        found = {one["id"]: one for one in httpx.get(f"{served.url}/v1/models").json()["data"]}
        assert "context_length" in found["tiny"] and "context_length" not in found["far"]


def test_a_local_server_answers_to_its_own_names_alone(folder):
    with serving(ServerConfig(models={"tiny": str(folder)}, is_local=True)) as served:
        port = served.url.rpartition(":")[2]
        for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "localhost", "host.docker.internal"):
            assert httpx.get(f"{served.url}/version", headers={"host": host}).status_code == 200
        told = httpx.get(f"{served.url}/version", headers={"host": f"evil.example:{port}"})
        assert told.status_code == 400 and "localhost alone" in told.json()["error"]["message"]


def test_an_allowed_page_can_read_what_the_border_refuses(folder):
    config = ServerConfig(models={"tiny": str(folder)}, api_keys=("one",), cors_origins=("https://page.example",))
    with serving(config) as served:
        headers = {"origin": "https://page.example"}
        told = httpx.get(f"{served.url}/v1/models", headers=headers)
        assert told.status_code == 401 and told.headers["access-control-allow-origin"] == "https://page.example"
        preflight = {**headers, "access-control-request-method": "POST"}
        assert httpx.options(f"{served.url}/v1/models", headers=preflight).status_code == 200
        other = httpx.get(f"{served.url}/v1/models", headers={"origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


def test_tokens_there_and_back(served):
    told = httpx.post(f"{served.url}/tokenize", json={"content": "def add", "with_pieces": True}).json()
    assert "".join(one["piece"] for one in told["tokens"]) == "def add"
    ids = httpx.post(f"{served.url}/tokenize", json={"prompt": "def add"}).json()["tokens"]
    assert httpx.post(f"{served.url}/detokenize", json={"tokens": ids[1:]}).json()["prompt"] == "def add"
    assert httpx.post(f"{served.url}/tokenize", json={}).status_code == 400


def test_probes_of_other_servers_are_answered(served):
    assert "version" in httpx.get(f"{served.url}/version").json()
    for path in ("/props", "/v1/props"):
        assert httpx.get(f"{served.url}{path}").json()["default_generation_settings"]["n_ctx"] > 0


def test_figures_count_what_was_served(served):
    before = metric(served.url, "presswork_tokens_total")
    httpx.post(f"{served.url}/v1/chat/completions", json={"messages": HELLO, "max_tokens": 5}, timeout=60)
    assert metric(served.url, "presswork_tokens_total") > before
    assert metric(served.url, "presswork_requests_total") > 0


def test_readable_pieces_are_the_text():
    for text in ("", "one", "  lead and trail \n", "word " * 40, "x" * 300, "\n\n"):
        assert "".join(readable(text)) == text
        assert all(len(piece) <= 40 or " " not in piece.strip() for piece in readable(text))
