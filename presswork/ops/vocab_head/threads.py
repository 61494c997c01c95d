"""Threads for the sweep. Its own, not torch's: those spin after every matmul and would starve the compiled loops."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

Submit = Callable[..., "Future[Any]"]


def run_now(function: Callable[..., Any], *args: Any) -> "Future[Any]":
    """A submit function that does the work itself."""
    future: Future[Any] = Future()
    future.set_result(function(*args))
    return future


@contextmanager
def worker_threads(count: int, threads_each: int) -> Iterator[Submit]:
    """Submit function of `count` workers, each letting torch use `threads_each`; a single worker is the caller.

    Inside, torch keeps to `threads_each` threads in the caller too. Mutates torch's thread count, restored at the end.
    """
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads_each)
        if count == 1:
            yield run_now
        else:
            with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads_each,)) as pool:
                yield pool.submit
    finally:
        # Also what threads born later start with, whichever thread had set it last.
        torch.set_num_threads(before)
