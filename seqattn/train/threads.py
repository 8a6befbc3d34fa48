"""One thread where several would sum in another order: results that do not depend on the number of cores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

__all__ = ["one_thread"]


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
