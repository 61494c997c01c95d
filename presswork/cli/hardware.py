"""What machine this is: cores, memory, instruction sets, accelerators."""

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from presswork.engine.loader import as_device

# Instruction sets that decide how fast this package's matrix products are.
_RELEVANT = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A machine as far as it matters here.

    Args:
        num_cores: that this process may use; num_threads: that torch uses.
        features: instruction sets of interest.
        memory_bytes, available_bytes: of the machine, or of the container where that allows less.
        gpus: name and memory of each CUDA device.
    """

    cpu: str
    num_cores: int
    num_threads: int
    features: tuple[str, ...]
    memory_bytes: int
    available_bytes: int
    torch_version: str
    gpus: tuple[tuple[str, int], ...]


def read_hardware() -> Hardware:
    """Look at the machine; starts nothing and reserves no memory."""
    cpu, features = _cpu()
    memory, available = _memory()
    return Hardware(
        cpu=cpu,
        num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        num_threads=torch.get_num_threads(),
        features=features,
        memory_bytes=memory,
        available_bytes=available,
        torch_version=torch.__version__,
        gpus=_gpus(),
    )


def available_bytes(device: str, hardware: Hardware) -> int:
    """Memory that a model on this device could take. Raises ConfigError for a device that is not there."""
    if as_device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0]
    return hardware.available_bytes


def _cpu() -> tuple[str, tuple[str, ...]]:
    text = _read("/proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    found = set(flags[1].split()) if flags else {torch.backends.cpu.get_cpu_capability().lower()}
    features = tuple(name for name in _RELEVANT if name in found) if flags else tuple(found)
    return name[1].strip() if name else platform.processor() or platform.machine(), features


def _memory() -> tuple[int, int]:
    """(all, available) bytes."""
    text = _read("/proc/meminfo")
    total, available = (
        int(found[1]) * 1024 if (found := re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)) else _pages(page)
        for name, page in (("MemTotal", "SC_PHYS_PAGES"), ("MemAvailable", "SC_AVPHYS_PAGES"))
    )
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        total, available = min(total, int(limit)), min(available, max(0, int(limit) - int(used)))
    return total, available


def _pages(name: str) -> int:
    return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") if name in os.sysconf_names else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _gpus() -> tuple[tuple[str, int], ...]:
    if not torch.cuda.is_available():
        return ()
    found = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return tuple((device.name, device.total_memory) for device in found)
