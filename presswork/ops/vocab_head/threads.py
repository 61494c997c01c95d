"""Threads for the sweep. Its own, not torch's: those spin after every matmul and would starve the compiled loops."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from presswork.ops.threads import torch_threads
from presswork.ops.vocab_head.classes import TILE

LAG = 8  # tiles handed out before the oldest is merged, and so the most threads that can help
READING_WORK = 1024  # what reading one logit costs, in multiplications
INLINE_WORK = 2**29  # multiplications below which starting threads costs more than it saves, about a millisecond

Submit = Callable[..., "Future[Any]"]


def run_now(function: Callable[..., Any], *args: Any) -> "Future[Any]":
    """A submit function that does the work itself."""
    future: Future[Any] = Future()
    future.set_result(function(*args))
    return future


def wait_for(work: "Iterable[Future[Any]]") -> None:
    """Until all of it is done; raises what any of it raised."""
    for done in work:
        done.result()


def share_threads(rows: int, width: int, tokens: int) -> tuple[int, int]:
    """(workers, threads each) that together are as many as torch would use for products of this size."""
    available = torch.get_num_threads()
    if rows * tokens * (width + READING_WORK) < INLINE_WORK:
        return 1, 1
    count = min(available, LAG, -(-tokens // TILE))
    return count, available // count


@contextmanager
def worker_threads(count: int, threads_each: int) -> Iterator[Submit]:
    """Submit function of `count` workers, each letting torch use `threads_each`; a single worker is the caller.

    Inside, torch keeps to `threads_each` threads in the caller too. Mutates torch's thread count, restored at the end.
    """
    with torch_threads(threads_each):
        if count == 1:
            yield run_now
        else:
            with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads_each,)) as pool:
                yield pool.submit
