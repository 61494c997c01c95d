"""`presswork serve` as a process: it says where it is, drains on SIGTERM, and refuses what cannot be."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from presswork.cli import app as cli
from presswork.cli.verbs.serve import _keys, named_adapters, named_models
from presswork.errors import ConfigError


def start(*arguments: object) -> tuple[subprocess.Popen[str], str]:
    """A server process and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "presswork", "serve", "--port", "0", *map(str, arguments)],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PRESSWORK_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("serving "), line + process.stderr.read()
    return process, line.split()[-1]


def wait_until_ready(url: str) -> None:
    for _ in range(600):
        try:
            told = httpx.get(f"{url}/health")
            if told.status_code == 200:
                return
            assert told.status_code == 503 and told.json()["status"] == "loading"
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("not ready")


@pytest.mark.slow
def test_a_stopping_server_lets_running_requests_finish(folder):
    process, url = start(f"tiny={folder}")
    try:
        wait_until_ready(url)
        told: list[httpx.Response] = []
        body = {
            "messages": [{"role": "user", "content": "def"}], "max_tokens": 400, "ignore_eos": True,
            "max_denoising_steps": 48, "stability_threshold": 48,
        }  # fmt: skip
        thread = threading.Thread(
            target=lambda: told.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60))
        )
        thread.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        thread.join(60)
        assert told and told[0].status_code == 200 and told[0].json()["usage"]["completion_tokens"] == 400
        assert process.wait(30) in (0, -signal.SIGTERM, 143)
    finally:
        process.kill()
        process.communicate()


def test_a_taken_port_is_told_before_a_model_is_loaded(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = subprocess.run(
            [sys.executable, "-m", "presswork", "serve", str(folder), "--port", str(port)],
            capture_output=True,
            text=True,
        )
    assert found.returncode == 2 and f"cannot listen on 127.0.0.1:{port}" in found.stderr


@pytest.mark.parametrize("flags, code, message", [
    (["nothere"], 3, "nothere"), (["sudoku", "--adapter", "x=/nope"], 4, "no adapter in /nope"),
    (["sudoku", "--memory-gib", "inf"], 2, "--memory-gib must be above 0 and finite, got inf"),
])  # fmt: skip
def test_what_could_never_be_served_is_told_before_the_address(capsys, flags, code, message):
    with pytest.raises(SystemExit) as stop:
        cli(["serve", "--port", "0", *flags])
    told = capsys.readouterr().err
    assert stop.value.code == code and message in told and told.count("\n") == 1


def test_models_adapters_and_keys_are_read_from_flags(tmp_path):
    assert next(iter(named_models(None))) == "code"
    assert named_models(["a=sudoku", str(tmp_path)]) == {"a": "sudoku", tmp_path.name: str(tmp_path)}
    for given, message in ((["a=x", "a=y"], "two models are named"), (["=x"], "NAME=MODEL")):
        with pytest.raises(ConfigError, match=message):
            named_models(given)
    assert named_adapters(["x=one", "b:y=two"], "a") == {"a": {"x": "one"}, "b": {"y": "two"}}
    with pytest.raises(ConfigError, match="--adapter takes"):
        named_adapters(["x"], "a")
    (tmp_path / "keys").write_text("one\n\n two \n")
    assert _keys(["zero"], tmp_path / "keys") == ("zero", "one", "two")
    (tmp_path / "keys").write_text("\n")
    with pytest.raises(ConfigError, match="holds no key"):
        _keys([], tmp_path / "keys")
