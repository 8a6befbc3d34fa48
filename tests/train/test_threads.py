"""One thread inside the block, as many as before after it; tasks are shared out among threads."""

from __future__ import annotations

import threading

import pytest
import torch
from threadpoolctl import threadpool_info

from seqattn.train.threads import one_thread, share_out


def counts() -> list[int]:
    return [torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())]


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_come_back_after_the_block_and_after_an_error():
    before = counts()
    with one_thread():
        assert set(counts()) == {1}
    assert counts() == before
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert counts() == before


def test_tasks_are_done_at_the_same_time_each_on_one_thread():
    meeting, found = threading.Barrier(2, timeout=60), {}

    def work(task: int) -> None:
        # Passed only when two threads are here.
        meeting.wait()
        found[task] = torch.get_num_threads()

    share_out(work, range(6))
    assert found == dict.fromkeys(range(6), 1)
    assert torch.get_num_threads() == 2


def test_an_error_in_a_task_reaches_the_caller_and_threads_come_back():
    def work(task: int) -> None:
        if task == 3:
            raise KeyError(task)

    with pytest.raises(KeyError):
        share_out(work, range(6))
    assert torch.get_num_threads() == 2
