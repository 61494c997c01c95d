"""Replicas behind one address answer as one server does: one that is killed is replaced, more come when they are
needed, and all end what they are at."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from presswork.errors import ConfigError
from presswork.server.replicas import ReplicaConfig

BODY = {"messages": [{"role": "user", "content": "def"}], "max_tokens": 24, "seed": 3}


def replica_pids(started_by: int) -> set[int]:
    """Processes of replicas below a process."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text()
            names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])

    def is_below(pid: int) -> bool:
        while pid in parents:
            if pid == started_by:
                return True
            pid = parents[pid]
        return False

    return {pid for pid, name in names.items() if "ServeReplica" in name and is_below(pid)}


@contextmanager
def replicas(folder: Path, log: Path, *flags: str) -> Iterator[tuple[str, int]]:
    """(address, process) of replicas of one core that answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "presswork", "serve", f"tiny={folder}", "--port", str(port), *flags]
    command += ["--replica-cpus", "1"]
    with log.open("w") as opened:
        process = subprocess.Popen(command, stdout=opened, stderr=opened)
        try:
            for _ in range(300):
                if ask(f"http://127.0.0.1:{port}")[0] == 200:
                    break
                assert process.poll() is None, log.read_text()
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                process.kill()


def ask(url: str) -> tuple[int, object]:
    """(status, or 0 where nothing answered; choices)."""
    try:
        found = httpx.post(f"{url}/v1/chat/completions", json=BODY, timeout=30)
    except httpx.TransportError:
        return 0, None
    return found.status_code, found.json()["choices"] if found.status_code == 200 else None


@contextmanager
def kept_asking(url: str, num: int) -> Iterator[list[tuple[int, object]]]:
    """What so many clients that ask again and again are told, until the end."""
    told: list[tuple[int, object]] = []
    stop = threading.Event()

    def keep_asking():
        while not stop.is_set():
            told.append(ask(url))

    threads = [threading.Thread(target=keep_asking) for _ in range(num)]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow
def test_a_killed_replica_is_replaced_while_the_service_goes_on(folder, tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install 'presswork[ray]'")
    with replicas(folder, tmp_path / "log", "--replicas", "2") as (url, started_by):
        expected, before = ask(url), replica_pids(started_by)
        assert len(before) == 2
        with kept_asking(url, 4) as told:
            time.sleep(1)
            os.kill(min(before), signal.SIGKILL)
            now = before
            for _ in range(120):
                time.sleep(0.5)
                now = replica_pids(started_by)
                if len(now) == 2 and min(before) not in now:
                    break
            time.sleep(2)
        assert len(now) == 2 and min(before) not in now
        good = [one for one in told if one[0] == 200]
        assert len(good) > 20 and len(good) >= 0.9 * len(told) and all(one == expected for one in good)
        assert told[-4:] == [expected] * 4


@pytest.mark.slow
def test_more_replicas_come_when_they_are_needed_and_all_end_what_they_are_at(folder, tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install 'presswork[ray]'")
    with replicas(folder, tmp_path / "log", "--replicas", "1", "--max-replicas", "2") as (url, started_by):
        expected = ask(url)
        assert len(replica_pids(started_by)) == 1
        with kept_asking(url, 16) as told:  # one replica is to have eight at once
            for _ in range(360):
                time.sleep(0.5)
                if len(replica_pids(started_by)) == 2:
                    break
        assert len(replica_pids(started_by)) == 2 and told and all(one == expected for one in told)
        # Some seconds of steps, told to stop after the first text.
        body = BODY | {"max_tokens": 400, "stream": True, "stability_threshold": None, "ignore_eos": True}
        lines = []
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=120) as stream:
            for line in stream.iter_lines():
                if len(lines) == 2:
                    os.kill(started_by, signal.SIGTERM)
                lines += [line] if line else []
        assert len(lines) > 20 and lines[-1] == "data: [DONE]"


def test_numbers_of_replicas_are_checked():
    for arguments, message in (
        ({"num_replicas": 0}, "replicas must be at least 1"),
        ({"num_replicas": 3, "max_replicas": 2}, "max_replicas must be at least replicas"),
        ({"num_replicas": 1, "num_cpus": 0}, "cores of a replica"),
    ):
        with pytest.raises(ConfigError, match=message):
            ReplicaConfig(**arguments)
