"""One kernel on several threads of this process.

Kernels hand out their pieces of work through a shared counter, so a helper thread that comes late costs nothing: the
caller has done its share by then. Each piece is computed alike on any thread.
"""

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

_WORTH_SHARING = 1 << 26  # multiply-adds of about 0.1 ms on one core, several times the cost of waking a helper
_WORTH_TORCH_THREADS = 1 << 24


@functools.cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="presswork-ops")


# A child process has none of its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)


@contextmanager
def few_threads(num_products: int) -> Iterator[None]:
    """Inside, torch keeps to this thread where no product has more than so many multiply-adds that sharing pays.

    Its threads meet after each operation. That is cheap while they spin; where a process has more of them than cores,
    as every thread that computes brings its own, they sleep instead, and waking them costs more than a small product.
    Mutates torch's thread count, restored at the end.
    """
    before = torch.get_num_threads()
    if num_products >= _WORTH_TORCH_THREADS or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def num_shares(num_products: int, num_pieces: int) -> int:
    """Over how many threads to spread work of so many multiply-adds, cut into so many pieces; at most torch's."""
    if num_products < _WORTH_SHARING:
        return 1
    return max(1, min(torch.get_num_threads(), num_pieces, num_products // (_WORTH_SHARING // 2)))


def run_shared(shares: int, kernel: Callable[..., object], *arguments: "int | np.floating[Any]") -> None:
    """kernel(*arguments, counter address) on `shares` threads, the caller's among them; returns when all is done.

    For one share the address is 0: the kernel counts by itself.
    """
    if shares == 1:
        kernel(*arguments, 0)
        return
    counter: Tensor = torch.zeros(1, dtype=torch.int64)
    address = counter.data_ptr()
    futures = [_helpers().submit(kernel, *arguments, address) for _ in range(shares - 1)]
    try:
        kernel(*arguments, address)
    finally:
        for future in futures:
            # One that has not begun would find nothing left to do.
            if not future.cancel():
                future.result()
