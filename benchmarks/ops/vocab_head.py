"""Time of the vocabulary head beside its floor, the two matrix products alone. N rows, D model, V vocab.

Run it with no option for the standing sizes, or give --rows, --width and --vocab together.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from presswork.ops.vocab_head import Reading, read_vocab

SIZES = ((90, 128, 850), (90, 128, 4096), (256, 1024, 32768), (256, 1024, 262144))
TILE = 2048
# How sharp the rows' distributions are: standard deviation of the raw logits. Real models sharpen as a canvas settles.
SPREADS = {"flat": 2.0, "peaked": 12.0}


def median_ms(run: Callable[[], object], repeat: int) -> float:
    """Median wall time of `repeat` runs after one to warm up."""
    run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def products_only(hidden: Tensor, embedding: Tensor) -> None:
    """The arithmetic nothing can avoid: logits of every tile, and every tile's part of the soft embedding."""
    for tile in embedding.split(TILE):
        torch.mm(torch.mm(hidden, tile.T), tile)


def read(hidden: Tensor, embedding: Tensor, uniform: Tensor, soft: bool) -> Reading:
    temperature = torch.full((len(hidden),), 0.6)
    return read_vocab(hidden, embedding, softcap=30.0, temperature=temperature, uniform=uniform, soft_embedding=soft)


def report(rows: int, width: int, vocab: int, dtype: torch.dtype, repeat: int) -> None:
    """One line a kind of distribution."""
    torch.manual_seed(0)
    embedding = (torch.randn(vocab, width) / width**0.5).to(dtype)
    uniform = torch.rand(rows, dtype=torch.float64)
    for name, spread in SPREADS.items():
        hidden = (torch.randn(rows, width) * spread).to(dtype)
        floor = median_ms(partial(products_only, hidden, embedding), repeat)
        full = median_ms(partial(read, hidden, embedding, uniform, True), repeat)
        bare = median_ms(partial(read, hidden, embedding, uniform, False), repeat)
        print(
            f"N={rows} D={width} V={vocab} {str(dtype)[6:]} {name}: "
            f"all readings {full:.2f} ms, without soft embedding {bare:.2f} ms, two products alone {floor:.2f} ms",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--vocab", type=int)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    chosen = (args.rows, args.width, args.vocab)
    sizes = SIZES if None in chosen else (chosen,)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for size in sizes:
        report(*size, getattr(torch, args.dtype), args.repeat)


if __name__ == "__main__":
    with torch.no_grad():
        main()
