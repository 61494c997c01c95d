"""Runs generated Python in a process of its own, with little time, little memory and nothing to write to.

Limits keep mistakes from doing harm: endless loops, huge lists, files written by accident. They are no wall against
code that means harm; run that in a container or a virtual machine.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Without new privileges these do what they can: a new user and network namespace is refused on some systems.
_LAUNCHER = """
import ctypes, resource, sys
memory, seconds = int(sys.argv[1]), int(sys.argv[2])
ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)
for kind, limit in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, 1 << 20),
                    (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, 64)):
    resource.setrlimit(kind, (limit, limit))
source = sys.stdin.read()
del ctypes, resource
exec(compile(source, "generated", "exec"), {"__name__": "generated"})
"""
_MAX_REASON = 300


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended: `passed` if it ran through; otherwise `reason` is timeout, or the last line of its error."""

    passed: bool
    reason: str = ""


def run_isolated(source: str, *, timeout_s: float = 5.0, memory_bytes: int = 1 << 29) -> Outcome:
    """Run a program to its end, without this process's environment, packages or folder.

    Args:
        timeout_s: of wall time; processor time is bounded too.
        memory_bytes: address space.
    """
    with tempfile.TemporaryDirectory() as scratch:
        errors = Path(scratch) / "errors"
        command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(memory_bytes), str(max(1, round(timeout_s + 1)))]
        with errors.open("wb") as sink:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=sink, cwd=scratch, env={},
                start_new_session=True,
            )  # fmt: skip
            try:
                process.communicate(source.encode("utf-8", "replace"), timeout=timeout_s)
            except subprocess.TimeoutExpired:
                return Outcome(False, "timeout")
            finally:
                _end(process)
        if process.returncode == 0:
            return Outcome(True)
        lines = errors.read_bytes()[-2000:].decode("utf-8", "replace").strip().splitlines()
        return Outcome(False, (lines[-1] if lines else f"exit {process.returncode}")[:_MAX_REASON])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the program and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
