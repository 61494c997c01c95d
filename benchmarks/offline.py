"""Speed of the engine itself: modes side by side on `sudoku`, and a crowd against one at a time on a tiny model.

    python benchmarks/offline.py --runs 5

Everything that is compared alternates within one run; medians are reported. Writes benchmarks/results/offline.json.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers.transformers_cpu import commit, hardware

from presswork.engine.engine import Engine, EngineConfig
from presswork.engine.loader import load
from presswork.tasks.sudoku.encoding import encode_prompts
from presswork.tasks.sudoku.generate import Clues, generate
from presswork.testing import fixture_model, tiny_model

RESULTS = Path(__file__).resolve().parent / "results"


def alternate(cases: dict[str, Callable[[], float]], runs: int) -> dict[str, dict[str, Any]]:
    """Median of each case's figure over runs that take turns, after one warm-up."""
    for case in cases.values():
        case()
    figures: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(runs):
        for name, case in cases.items():
            figures[name].append(case())
    return {name: {"median": statistics.median(values), "runs": values} for name, values in figures.items()}


def sudoku_modes(runs: int) -> dict[str, Any]:
    """Delivered tokens per second of one request at a time, over the same 16 puzzles in either mode."""
    engine = load("sudoku", config=EngineConfig(prefix_cache_bytes=0))
    prompts = encode_prompts(generate(16, 4242, Clues((30, 45)))[0]).tolist()

    def speed(mode: str, **params: Any) -> float:
        start = time.perf_counter()
        tokens = sum(
            engine.generate(prompt_token_ids=ids, mode=mode, max_tokens=90, **params).usage.completion_tokens
            for ids in prompts
        )
        return tokens / (time.perf_counter() - start)

    # ar may not end early, or its tokens per second would be of shorter texts.
    cases = {
        "diffusion": lambda: speed("diffusion"),
        "ar": lambda: speed("ar", temperature=0.0, ignore_eos=True),
    }
    figures = alternate(cases, runs)
    return {"tokens_per_s": figures, "ratio": figures["diffusion"]["median"] / figures["ar"]["median"]}


MIXED = [
    dict(length=5, max_tokens=24),
    dict(length=40, max_tokens=16, mode="ar"),
    dict(length=17, max_tokens=32, top_k=5),
    dict(length=3, max_tokens=24, entropy_bound=1.0),
    dict(length=64, max_tokens=8),
    dict(length=9, max_tokens=24, mode="ar"),
    dict(length=30, max_tokens=40, temperature=0.0),
    dict(length=12, max_tokens=24, repetition_penalty=1.2),
]


def crowd(engine: Engine, runs: int) -> dict[str, Any]:
    """Tokens per second of eight mixed requests in flight against the same eight one after the other."""
    vocab = engine.model.config.vocab_size
    prompts = [[(7 * i + 3 * n) % vocab for i in range(case["length"])] for n, case in enumerate(MIXED)]
    params = [
        engine.defaults.changed(ignore_eos=True, seed=n, **{k: v for k, v in case.items() if k != "length"})
        for n, case in enumerate(MIXED)
    ]

    def serve(together: bool) -> tuple[float, list[list[int]]]:
        start = time.perf_counter()
        texts: list[list[int]] = []
        groups = [list(range(len(MIXED)))] if together else [[n] for n in range(len(MIXED))]
        for group in groups:
            requests = [engine.submit(prompts[n], params[n]) for n in group]
            for request in requests:
                for _ in engine.events(request):
                    pass
                texts.append(list(request.output.token_ids))
        return sum(map(len, texts)) / (time.perf_counter() - start), texts

    assert serve(True)[1] == serve(False)[1], "a crowd changed a text"
    figures = alternate({"crowd": lambda: serve(True)[0], "solo": lambda: serve(False)[0]}, runs)
    return {"tokens_per_s": figures, "ratio": figures["crowd"]["median"] / figures["solo"]["median"]}


def main() -> None:
    """Run all comparisons, write and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    limits = EngineConfig(prefix_cache_bytes=0)
    result = {
        "sudoku, diffusion over ar, one request": sudoku_modes(arguments.runs),
        "eight mixed requests over one at a time, 2 layers of width 16": crowd(
            Engine(tiny_model(), config=limits), arguments.runs
        ),
        "eight mixed requests over one at a time, 4 layers of width 48": crowd(
            Engine(fixture_model(), config=limits), arguments.runs
        ),
        "hardware": hardware(),
        "commit": commit(),
        "command": " ".join(sys.argv),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "offline.json").write_text(json.dumps(result, indent=2) + "\n")
    print(
        json.dumps(
            {name: value["ratio"] for name, value in result.items() if isinstance(value, dict) and "ratio" in value},
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
