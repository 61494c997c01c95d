"""Time of reading classes of tokens, and of weighted readings, beside a free reading. N rows, D model, V vocab.

Every round times each kind once, in turn, so that a busy machine slows all of them alike.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from presswork.ops.vocab_head import ClassWeights, Reading, TokenClasses, read_classes, read_vocab

VOCAB = 262144
SPREADS = {"flat": 2.0, "peaked": 12.0}


def few_classes() -> TokenClasses:
    """300 living tokens in 40 classes."""
    class_of = torch.full((VOCAB,), -1, dtype=torch.int32)
    class_of[torch.randperm(VOCAB)[:300]] = torch.randint(0, 40, (300,), dtype=torch.int32)
    return TokenClasses(class_of=class_of, num_classes=40)


def many_classes() -> TokenClasses:
    """One class of 200,000 tokens and 1,500 classes of 1 to 300, as far as the tokens reach; all scattered."""
    order = torch.randperm(VOCAB)
    sizes = torch.exp(torch.rand(1500) * 5.7).int().clamp(1, 300)
    rest = torch.repeat_interleave(torch.arange(1, 1501), sizes)
    rest = rest[torch.randperm(len(rest))][: VOCAB - 200_000]
    class_of = torch.full((VOCAB,), -1, dtype=torch.int32)
    class_of[order[:200_000]] = 0
    class_of[order[200_000 : 200_000 + len(rest)]] = rest.int()
    return TokenClasses(class_of=class_of, num_classes=1501)


def some_weights(classes: TokenClasses, rows: int) -> ClassWeights:
    """Weights within a few nats; half of the classes off; every sample from one class, in most rows the first."""
    log_weight = torch.randn(rows, classes.num_classes)
    log_weight[torch.rand(log_weight.shape) < 0.5] = -torch.inf
    log_weight[:, :2] = 0.0
    sample_class = (torch.rand(rows) < 0.3).long()
    return ClassWeights(classes=classes, log_weight=log_weight, sample_class=sample_class)


def kinds(rows: int, width: int, dtype: torch.dtype, spread: float) -> dict[str, Callable[[], object]]:
    """What is timed, by name; "free" in the name of a plain reading."""
    embedding = (torch.randn(VOCAB, width) / width**0.5).to(dtype)
    hidden = (torch.randn(rows, width) * spread).to(dtype)
    uniform = torch.rand(rows, dtype=torch.float64)

    def read(num: int, class_weights: ClassWeights | None) -> Reading:
        return read_vocab(
            hidden[:num], embedding, softcap=30.0, temperature=torch.full((num,), 0.6), uniform=uniform[:num],
            soft_embedding=True, class_weights=class_weights,
        )  # fmt: skip

    few, many = few_classes(), many_classes()
    found: dict[str, Callable[[], object]] = {"free": partial(read, rows, None)}
    for name, classes in (("300 living", few), ("1,501 classes", many)):
        found[f"classes, {name}"] = partial(
            read_classes, hidden, embedding, softcap=30.0, temperature=torch.full((rows,), 0.6), classes=classes
        )
        found[f"weighted, {name}"] = partial(read, rows, some_weights(classes, rows))
    found["free, half of the rows"] = partial(read, rows // 2, None)
    found["weighted, half, 1,501 classes"] = partial(read, rows // 2, some_weights(many, rows // 2))
    return found


def report(rows: int, width: int, dtype: torch.dtype, spread: str, repeat: int) -> None:
    """One line a kind: median time, and its share of the free reading's."""
    torch.manual_seed(0)
    runs = kinds(rows, width, dtype, SPREADS[spread])
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeat + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append((time.perf_counter() - start) * 1e3)
    print(f"N={rows} D={width} V={VOCAB} {str(dtype)[6:]} {spread}, {torch.get_num_threads()} threads", flush=True)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"    {name:32} {median:8.1f} ms  {median / medians['free']:.2f} of free", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--spread", default="flat", choices=tuple(SPREADS))
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    report(args.rows, args.width, getattr(torch, args.dtype), args.spread, args.repeat)


if __name__ == "__main__":
    with torch.no_grad():
        main()
