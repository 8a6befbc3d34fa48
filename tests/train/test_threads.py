"""One thread inside the block, as many as before after it."""

from __future__ import annotations

import pytest
import torch
from threadpoolctl import threadpool_info

from seqattn.train.threads import one_thread


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
