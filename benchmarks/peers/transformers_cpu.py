"""Fixed-step generation on the CPU, presswork against transformers, on the same random checkpoint, alternated.

    python benchmarks/peers/transformers_cpu.py tiny gemm vocabulary --runs 3

Three sizes, bfloat16, one canvas of 256 tokens after a prompt of 256: `tiny` (V = 4,096), `gemm` (hidden 1024,
12 layers, 64 experts, top 8 of width 352, V = 32,768) and `vocabulary` (the same with V = 262,144). Both engines do
the same number of denoise steps, with early stop off; seconds per step are wall time over steps, prefill included.
Peak memory is taken in a process of its own, from the kernel's high-water mark. Writes benchmarks/results/*.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from presswork.cache.contiguous import bytes_per_position
from presswork.config import ModelConfig, periodic_layers
from presswork.engine.engine import EngineConfig
from presswork.engine.loader import load
from presswork.weights.config_files import write_generation_config
from presswork.weights.initialise import random_model
from presswork.weights.save import save_model

RESULTS = Path(__file__).resolve().parents[1] / "results"
PROMPT, CANVAS = 256, 256


def large(vocab_size: int) -> ModelConfig:
    """The GEMM and vocabulary sizes; they differ in V alone."""
    return ModelConfig(
        vocab_size=vocab_size, hidden_size=1024, intermediate_size=1056, num_attention_heads=8,
        layers=periodic_layers(12, period=6, sliding=(128, 4), full=(256, 2)), num_experts=64, top_k_experts=8,
        moe_intermediate_size=352, sliding_window=1024, canvas_length=CANVAS,
    )  # fmt: skip


def tiny() -> ModelConfig:
    """A model whose step is mostly overhead."""
    return ModelConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=256, num_attention_heads=4,
        layers=periodic_layers(4, period=4, sliding=(64, 2), full=(128, 1)), num_experts=8, top_k_experts=2,
        moe_intermediate_size=128, sliding_window=1024, canvas_length=CANVAS,
    )  # fmt: skip


SIZES = {"tiny": (tiny, 16), "gemm": (lambda: large(32768), 6), "vocabulary": (lambda: large(262144), 3)}


def prompt_ids(vocab_size: int) -> list[int]:
    """The same random prompt for both."""
    return torch.randint(3, vocab_size, (PROMPT,), generator=torch.Generator().manual_seed(1)).tolist()


def presswork_runner(folder: Path, steps: int) -> Any:
    """A function that generates one canvas in `steps` steps and returns its seconds."""
    engine = load(folder, config=EngineConfig(prefix_cache_bytes=0))
    ids = prompt_ids(engine.model.config.vocab_size)

    def run() -> float:
        start = time.perf_counter()
        reply = engine.generate(
            prompt_token_ids=ids,
            max_tokens=CANVAS,
            max_denoising_steps=steps,
            stability_threshold=None,
            ignore_eos=True,
        )
        assert reply.stats.num_denoise_steps == steps and len(reply.token_ids) == CANVAS
        return time.perf_counter() - start

    return run


def transformers_runner(folder: Path, steps: int) -> Any:
    """The same by transformers' generate, with its default attention and experts."""
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ids = torch.tensor([prompt_ids(model.config.text_config.vocab_size)])

    @torch.no_grad()
    def run() -> float:
        start = time.perf_counter()
        result = model.generate(
            ids, max_new_tokens=CANVAS, max_denoising_steps=steps, stability_threshold=None, confidence_threshold=None,
            eos_token_id=None,
        )  # fmt: skip
        assert result.sequences.shape[1] == PROMPT + CANVAS
        return time.perf_counter() - start

    return run


def compare(name: str, runs: int, scratch: Path) -> dict[str, Any]:
    """Alternate both engines and report medians per step and their ratio."""
    make, steps = SIZES[name]
    config = make()
    folder = write_checkpoint(config, scratch / name)
    runners = {"presswork": presswork_runner(folder, steps), "transformers": transformers_runner(folder, steps)}
    for run in runners.values():
        run()
    seconds: dict[str, list[float]] = {engine: [] for engine in runners}
    for _ in range(runs):
        for engine, run in runners.items():
            seconds[engine].append(run() / steps)
    medians = {engine: statistics.median(values) for engine, values in seconds.items()}
    del runners
    return {
        "size": name,
        "dtype": "bfloat16",
        "prompt": PROMPT,
        "canvas": CANVAS,
        "steps": steps,
        "s_per_step": medians,
        "s_per_step_runs": seconds,
        "ratio": medians["transformers"] / medians["presswork"],
        "memory": measure_memory(folder, config),
    }


def write_checkpoint(config: ModelConfig, folder: Path) -> Path:
    """Random weights that both engines load."""
    model = random_model(config, dtype=torch.bfloat16, seed=0, device="cpu")
    save_model(model, folder)
    write_generation_config(folder, {})
    return folder


def measure_memory(folder: Path, config: ModelConfig) -> dict[str, float]:
    """Peak of a fresh process that loads the checkpoint and generates, beyond what importing alone takes, in MB."""
    command = [sys.executable, __file__, "--memory", str(folder)]
    peaks = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
    full, sliding = bytes_per_position(config, torch.bfloat16)
    kv = (full + sliding) * (PROMPT + CANVAS) / 1e6
    over = peaks["peak_mb"] - peaks["imports_mb"] - weights - kv
    return peaks | {"weights_mb": weights, "kv_mb": kv, "beyond_weights_and_kv_mb": over}


def report_memory(folder: Path) -> None:
    """Body of the memory process: prints its marks as JSON."""
    imports = high_water_mb()
    presswork_runner(folder, 2)()
    print(json.dumps({"imports_mb": imports, "peak_mb": high_water_mb()}))


def high_water_mb() -> float:
    """Most resident memory this process ever had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def hardware() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def commit() -> str:
    """The commit measured, marked where anything but results differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", ":/", ":(exclude,top)benchmarks/results")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


def main() -> None:
    """Parse arguments, run the sizes asked for, write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", metavar="SIZE", help=f"of {', '.join(SIZES)}; all by default")
    parser.add_argument(
        "--runs", type=int, default=3, help="counted runs of each engine, alternated, after one warm-up"
    )
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        report_memory(arguments.memory)
        return
    unknown = sorted(set(arguments.sizes) - set(SIZES))
    if unknown:
        parser.error(f"unknown size {unknown[0]!r}; known: {', '.join(SIZES)}")
    RESULTS.mkdir(exist_ok=True)
    for name in arguments.sizes or SIZES:
        with tempfile.TemporaryDirectory() as scratch:
            result = compare(name, arguments.runs, Path(scratch))
        result |= {"hardware": hardware(), "commit": commit(), "command": " ".join(sys.argv)}
        (RESULTS / f"transformers_cpu_{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps({key: result[key] for key in ("size", "s_per_step", "ratio", "memory")}))


if __name__ == "__main__":
    main()
