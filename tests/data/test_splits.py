import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqattn.data.splits import split_sequences
from seqattn.errors import DataError, ParameterError


@given(st.integers(2, 200), st.floats(0.001, 0.999), st.integers(0, 5))
def test_parts_are_disjoint_complete_and_never_empty(n, share, seed):
    train, valid = split_sequences(n, share, seed)
    assert sorted([*train, *valid]) == list(range(n))
    assert len(train) > 0
    assert len(valid) > 0
    assert abs(len(valid) - n * share) <= 1


def test_the_seed_alone_decides():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = split_sequences(50, 0.3, 1), split_sequences(50, 0.3, 1)
    assert np.array_equal(first[1], second[1])
    assert not np.array_equal(first[1], split_sequences(50, 0.3, 2)[1])
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_a_share_outside_0_and_1_is_refused(share):
    with pytest.raises(ParameterError, match="between 0 and 1"):
        split_sequences(10, share, 0)


@pytest.mark.parametrize("n", [0, 1])
def test_one_sequence_cannot_be_divided(n):
    with pytest.raises(DataError, match=r"cannot be divided.*chunk="):
        split_sequences(n, 0.5, 0)
