"""One kernel on several threads of this process.

Kernels hand out their pieces of work through a shared counter, so a helper thread that comes late costs nothing: the
caller has done its share by then. Each piece is computed alike on any thread.
"""

import functools
import os
import threading
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


class _Narrowed:
    """How many keep torch to another number of threads just now, and how many it has otherwise."""

    def __init__(self) -> None:
        self._lock, self._num, self._usual = threading.Lock(), 0, 0

    def enter(self, before: int) -> None:
        with self._lock:
            if not self._num:
                self._usual = before
            self._num += 1

    def leave(self) -> None:
        with self._lock:
            self._num -= 1

    def usual(self) -> int:
        with self._lock:
            return self._usual if self._num else torch.get_num_threads()


_narrowed = _Narrowed()


@contextmanager
def torch_threads(num: int) -> Iterator[None]:
    """Inside, torch has so many threads in this one. Mutates torch's count, restored at the end.

    A thread that begins meanwhile would start with this number, and keep it; see `take_threads`.
    """
    before = torch.get_num_threads()
    _narrowed.enter(before)
    torch.set_num_threads(num)
    try:
        yield
    finally:
        # Also what threads born later start with, whichever thread had set it last.
        torch.set_num_threads(before)
        _narrowed.leave()


@contextmanager
def few_threads(num_products: int) -> Iterator[None]:
    """Inside, torch keeps to this thread where no product has so many multiply-adds that sharing pays.

    Its threads meet after each operation. That is cheap while they spin; where a process has more of them than cores,
    as every thread that computes brings its own, they sleep instead, and waking them costs more than a small product.
    """
    if num_products >= _WORTH_TORCH_THREADS:
        yield
        return
    with torch_threads(1):
        yield


def take_threads() -> None:
    """Give this thread, which begins, as many of torch's threads as there are outside `torch_threads`."""
    torch.set_num_threads(_narrowed.usual())
    torch.get_num_threads()  # torch settles it now, not at the thread's first operation


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
