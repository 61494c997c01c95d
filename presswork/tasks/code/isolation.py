"""Runs generated Python in a process of its own, with little time and little memory.

Limits keep mistakes from doing harm: endless loops, huge lists, files written by accident. They are no wall against
code that means harm; run that in a container or a virtual machine.
"""

import contextlib
import os
import secrets
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
exec(compile(source, "generated", "exec"), {"__name__": "generated"})
# Programs that end themselves before their end do not come here.
with open(int(sys.argv[3]), "w") as end:
    end.write(sys.argv[4])
"""
_MAX_REASON = 300


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended: `passed` if its last line was reached; otherwise `reason` says what kept it from there."""

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
        word, (end, told) = secrets.token_hex(16), os.pipe()
        limits = [str(memory_bytes), str(max(1, round(timeout_s + 1)))]
        command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *limits, str(told), word]
        with errors.open("wb") as sink, open(end, "rb") as ending:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=sink, cwd=scratch, env={},
                start_new_session=True, pass_fds=(told,),
            )  # fmt: skip
            os.close(told)
            try:
                process.communicate(source.encode("utf-8", "replace"), timeout=timeout_s)
            except subprocess.TimeoutExpired:
                return Outcome(False, "timeout")
            finally:
                _end(process)
            # Not to the end: what left the program's process group may hold the other side open.
            has_ended = _waiting(ending.fileno(), len(word)) == word.encode()
        if process.returncode == 0 and has_ended:
            return Outcome(True)
        lines = errors.read_bytes()[-2000:].decode("utf-8", "replace").strip().splitlines()
        return Outcome(
            False, (lines[-1] if lines else f"ended itself with exit code {process.returncode}")[:_MAX_REASON]
        )


def _waiting(pipe: int, num_bytes: int) -> bytes:
    """What stands in a pipe now, or as many bytes of it."""
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, num_bytes + 1)
    except BlockingIOError:
        return b""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the program and what it started, except what has left its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
