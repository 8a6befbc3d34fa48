"""One thread where several would sum in another order: results that do not depend on the number of cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

__all__ = ["one_thread", "share_out"]

_Task = TypeVar("_Task")


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread of the CPU inside a ``with`` block, and on as many as before after it.

    Notes
    -----
    Products of matrices and decompositions split their sums by threads, so that the last bits depend on their number.
    Small networks lose little: 30 epochs of 180 cases of 24 x 51 points took 12 CPU seconds and 16 seconds in all with
    one thread, 16 and 14 to 29 with two, on a machine that had other work too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def share_out(work: Callable[[_Task], None], tasks: Iterable[_Task]) -> None:
    """Do tasks on as many threads as torch may use, each task on one thread.

    Parameters
    ----------
    work
        Does one task; what it writes is no other task's.
    tasks
        What it is called with.

    Notes
    -----
    Threads share whole tasks, not the sums within them, so that results have the same bits for any number of them.
    """
    n_threads = torch.get_num_threads()
    if n_threads == 1:
        for task in tasks:
            work(task)
        return
    torch.set_num_threads(1)
    try:
        # The number holds for the thread that sets it.
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(work, tasks):
                pass
    finally:
        torch.set_num_threads(n_threads)
