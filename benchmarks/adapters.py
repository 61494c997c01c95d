"""What adapters cost in generation: denoise steps of one and of four requests, with none, one and four adapters.

    python benchmarks/adapters.py --runs 3

Random weights of the GEMM size of benchmarks/peers/transformers_cpu.py, bfloat16, adapters of rank 8 on every product;
one canvas of 256 after a prompt of 256 a request, 4 denoise steps, alternated in one run, medians. Writes
benchmarks/results/adapters.json.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from offline import RESULTS, alternate
from peers.transformers_cpu import CANVAS, commit, hardware, large, prompt_ids

from presswork.engine.engine import Engine, EngineConfig
from presswork.models.adapters import LoraConfig
from presswork.weights.initialise import random_model
from presswork.weights.lora import new_adapter
from presswork.weights.peft_files import save_adapter

STEPS, NUM = 4, 4
CASES = {
    "1 request, no adapter": [None],
    "1 request, an adapter": ["a0"],
    "4 requests, no adapter": [None] * NUM,
    "4 requests, one adapter": ["a0"] * NUM,
    "4 requests, an adapter each": [f"a{i}" for i in range(NUM)],
}


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    config, lora = large(32768), LoraConfig(rank=8)
    engine = Engine(random_model(config, dtype=torch.bfloat16), config=EngineConfig(prefix_cache_bytes=0))
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(NUM):
            folder = Path(scratch) / str(i)
            save_adapter(new_adapter(config, lora, seed=i), folder, config, lora)
            engine.load_adapter(f"a{i}", folder)
    ids = prompt_ids(config.vocab_size)

    def seconds(adapters: list[str | None]) -> float:
        params = engine.defaults.changed(
            max_tokens=CANVAS, max_denoising_steps=STEPS, stability_threshold=None, ignore_eos=True
        )
        started = time.perf_counter()
        requests = [engine.submit(ids, params.changed(adapter=name)) for name in adapters]
        for request in requests:
            for _ in engine.events(request):
                pass
        return (time.perf_counter() - started) / STEPS

    figures = alternate({name: lambda given=given: seconds(given) for name, given in CASES.items()}, arguments.runs)
    result = {
        "s_per_step": figures,
        "adapter_bytes": sum(p.nbytes for p in new_adapter(config, lora).to(torch.bfloat16).parameters()),
        "hardware": hardware(), "commit": commit(), "command": " ".join(sys.argv),
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "adapters.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({name: round(value["median"], 3) for name, value in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
