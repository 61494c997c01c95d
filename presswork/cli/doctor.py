"""`presswork doctor`: what this machine has, whether a model fits it, and which mode is faster here."""

import os
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from presswork.cli.options import DEFAULT_MODEL, JsonOption, open_engine, print_json

if TYPE_CHECKING:
    from presswork.engine.engine import Engine

# Interpreter, torch and working memory of passes; measured at a vocabulary of 262,144.
_OVERHEAD_BYTES = 800e6


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("doctor")(doctor)


def doctor(
    model: Annotated[str, typer.Argument(help="Embedded name, folder or Hub id.")] = DEFAULT_MODEL,
    tokens: Annotated[int, typer.Option(min=1, help="Length of reply to compare the modes for.")] = 256,
    context: Annotated[int, typer.Option(min=1, help="Context length to plan memory for.")] = 8192,
    measure: Annotated[bool, typer.Option(help="Load the model and time it.")] = True,
    json: JsonOption = False,
) -> None:
    """Check the hardware, plan memory for a checkpoint before loading it, then time both modes."""
    from presswork.weights.hub import resolve

    folder = resolve(model, may_pull=False)
    report: dict[str, Any] = {"hardware": hardware(), "memory": memory_plan(folder, context)}
    if measure and report["memory"]["fits"]:
        report["speed"] = measure_modes(open_engine(model), tokens)
    if json:
        print_json(report)
        return
    for section, facts in report.items():
        print(section)
        for key, value in facts.items():
            print(f"  {key.replace('_', ' '):<24} {value}")


def hardware() -> dict[str, Any]:
    """Processor, memory and what torch sees."""
    import torch

    flags = _cpu_flags()
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": ", ".join(f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags)
        or "baseline",
        "memory_available_gb": round(available_bytes() / 1e9, 1),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
    }


def _cpu_lines(key: str) -> list[str]:
    source = Path("/proc/cpuinfo")
    lines = source.read_text(encoding="utf-8").splitlines() if source.exists() else []
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith(key)]


def _cpu_name() -> str:
    return next(iter(_cpu_lines("model name")), platform.processor() or platform.machine())


def _cpu_flags() -> set[str]:
    return set(next(iter(_cpu_lines("flags")), "").split())


def available_bytes() -> int:
    """Memory that can be taken without swapping."""
    source = Path("/proc/meminfo")
    if source.exists():
        for line in source.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_plan(folder: Path, context: int) -> dict[str, Any]:
    """What loading and one sequence of `context` positions would take, against what is there."""
    import torch

    from presswork.cache.contiguous import ALIGNMENT, bytes_per_position
    from presswork.cli.models import stored_bytes
    from presswork.weights.config_files import read_config

    config = read_config(folder)
    weights = sum(stored_bytes(folder).values())
    full, sliding = bytes_per_position(config, torch.bfloat16)
    context = min(context, config.max_position_embeddings)
    cache = full * context + sliding * min(context, config.sliding_window + ALIGNMENT)
    needed = weights + cache + _OVERHEAD_BYTES
    fits = needed < available_bytes()
    return {
        "weights_gb": round(weights / 1e9, 3),
        "cache_gb": round(cache / 1e9, 3),
        "context": context,
        "needed_gb": round(needed / 1e9, 3),
        "available_gb": round(available_bytes() / 1e9, 3),
        "fits": fits,
    }


def measure_modes(engine: "Engine", tokens: int) -> dict[str, Any]:
    """Milliseconds per denoise step and per ar token, and the step count up to which diffusion is faster."""
    config = engine.model.config
    canvas = min(config.canvas_length, tokens)
    room = engine.max_context - canvas - 1
    prompt = [config.bos_token_id] * max(1, min(64, room))
    step_s = _per_unit(engine, prompt, canvas, steps=4)
    token_s = _per_unit(engine, prompt, min(canvas, 16), steps=None)
    break_even = token_s * canvas / step_s
    return {
        "ms_per_denoise_step": round(step_s * 1e3, 3),
        "ms_per_ar_token": round(token_s * 1e3, 3),
        "canvas_length": canvas,
        "faster_mode": f"diffusion, while a canvas of {canvas} takes fewer than {break_even:.0f} steps"
        if break_even > 2
        else "ar",
    }


def _per_unit(engine: "Engine", prompt: list[int], tokens: int, steps: int | None) -> float:
    """Seconds per denoise step (steps given) or per token (ar), the median of three after a warm-up."""
    params: dict[str, Any] = {"prompt_token_ids": prompt, "max_tokens": tokens, "ignore_eos": True}
    if steps is None:
        params |= {"mode": "ar"}
    else:
        params |= {"max_denoising_steps": steps, "stability_threshold": None}
    times = []
    for _ in range(4):
        start = time.perf_counter()
        engine.generate(**params)
        times.append((time.perf_counter() - start) / (steps or tokens))
    return statistics.median(times[1:])
