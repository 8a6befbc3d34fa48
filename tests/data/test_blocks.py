import os
import shutil
import tempfile
import warnings

import numpy as np
import pytest

from seqattn.data import blocks, sequences
from seqattn.data.blocks import block_rows, scratch, take_sequences
from seqattn.data.sequences import Sequences
from seqattn.errors import SeqattnWarning

RNG = np.random.default_rng(3)
LENGTHS = [0, 3, 1, 0, 7, 2, 2, 12, 0, 1, 0]


def drawn():
    pairs = [(np.sort(RNG.random(n)), RNG.integers(0, 4, n)) for n in LENGTHS]
    return Sequences.from_lists(pairs, window=(0, 1), labels=4)


@pytest.mark.parametrize("size", [1, 3, 5, 100])
def test_blocks_hold_every_sequence_once_and_in_order(size):
    data = drawn()
    parts = list(data.blocks(size))
    assert [key for part in parts for key in part.ids.tolist()] == data.ids.tolist()
    for name in ("times", "types", "start", "end", "context"):
        assert (
            np.concatenate([getattr(part, name) for part in parts]).tolist() == getattr(data, name).tolist()
        )
    assert all(part.n_events <= size or np.count_nonzero(part.lengths) == 1 for part in parts)
    assert all(np.shares_memory(part.times, data.times) for part in parts if part.n_events)


def test_nothing_is_a_block_of_no_sequences():
    assert list(block_rows(np.array([0]))) == []


def test_a_slice_equals_the_rows_that_it_names():
    data = drawn()
    for rows in (slice(2, 8), slice(None), slice(5, 5), slice(8, 3), slice(-4, None), slice(None, None, -1)):
        assert data.select(rows).digest() == data.select(np.arange(len(data))[rows]).digest()


def test_rows_of_a_saved_folder_are_copied_into_a_file(tmp_path, monkeypatch):
    data = drawn()
    data.save(tmp_path)
    opened, rows = Sequences.open(tmp_path), np.array([7, 1, 1, 0, 4])
    assert not isinstance(opened.select(rows).times, np.memmap), "a few events belong in memory"
    monkeypatch.setattr(blocks, "_SMALL", 8)
    chosen = opened.select(rows)
    assert isinstance(chosen.times, np.memmap)
    assert isinstance(chosen.types, np.memmap)
    assert chosen.digest() == data.select(rows).digest()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {path.name for path in tmp_path.iterdir() if path.suffix in (".npy", ".json")}
    assert isinstance(opened.relabel([3, 2, 1, 0]).types, np.memmap)
    assert opened.relabel([3, 2, 1, 0]).digest() == data.relabel([3, 2, 1, 0]).digest()


@pytest.mark.parametrize("size", [1, 3, 100])
def test_events_of_unknown_types_are_dropped_block_by_block(tmp_path, monkeypatch, size):
    pairs = [(np.sort(RNG.random(n)), RNG.integers(0, 4, n)) for n in LENGTHS if n]
    data = Sequences.from_lists(pairs, labels=4)  # the first event of each sequence is history
    data.save(tmp_path)
    opened, usual = Sequences.open(tmp_path), Sequences.blocks
    monkeypatch.setattr(blocks, "_SMALL", 8)
    monkeypatch.setattr(Sequences, "blocks", lambda self: usual(self, size))
    with pytest.warns(SeqattnWarning, match="not among the labels"):
        kept = opened.relabel([3, 1], unknown="ignore")
    assert isinstance(kept.times, np.memmap)
    assert isinstance(kept.types, np.memmap)
    for i in range(len(data)):
        times, types = data.sequence(i)
        known = np.isin(types, [3, 1])
        assert kept.sequence(i)[0].tolist() == times[known].tolist()
        assert kept.label_array(kept.sequence(i)[1]).tolist() == types[known].tolist()
        assert kept.context[i] == known[: data.context[i]].sum()
    assert (kept.start.tolist(), kept.end.tolist()) == (data.start.tolist(), data.end.tolist())


def test_values_are_taken_block_by_block(monkeypatch):
    values = np.arange(50.0)
    begin, offsets = np.array([40, 3, 10]), np.array([0, 5, 5, 12])
    whole = take_sequences(values, begin, offsets)
    monkeypatch.setattr(blocks, "block_rows", lambda offsets: block_rows(offsets, 2))
    assert (
        take_sequences(values, begin, offsets).tolist()
        == whole.tolist()
        == [40, 41, 42, 43, 44, *range(10, 17)]
    )


def test_what_comes_from_memory_stays_there():
    assert not isinstance(scratch(1 << 23, np.float64, np.zeros(3)), np.memmap)


def mapped(folder):
    np.save(folder / "a.npy", np.arange(4.0))
    return np.load(folder / "a.npy", mmap_mode="r")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot take room in advance")
def test_the_room_of_a_result_is_taken_at_once(tmp_path):
    with blocks._reserved(tmp_path, 1 << 20) as file:
        assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 20, (
            "a sparse file ends in SIGBUS on a full disk"
        )


def test_where_nothing_can_be_written_the_folder_for_temporary_files_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "_SMALL", 8)
    (tmp_path / "data").mkdir()
    like = mapped(tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    result = scratch(9, np.int32, like)
    result[:] = np.arange(9)
    assert isinstance(result, np.memmap)
    assert result.tolist() == list(range(9))


def test_a_full_disk_is_told_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "_SMALL", 8)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    like = mapped(tmp_path)
    with pytest.raises(OSError, match="no room for 8,000,000,000,000,000,000 bytes in .*TMPDIR") as caught:
        scratch(10**18, np.float64, like)
    assert str(tmp_path / "none") in str(caught.value)


def test_a_sample_holds_whole_sequences_and_no_more_events_than_asked_for():
    data = drawn()
    for most in (1, 5, 20, 27):
        sample = data.sampled(most, seed=4)
        assert sample.n_events <= most or len(sample) == 1
        kept = [data.ids.tolist().index(key) for key in sample.ids]
        assert kept == sorted(kept)
        assert sample.digest() == data.select(kept).digest()
        assert sample.digest() == data.sampled(most, seed=4).digest()
    assert data.sampled(28) is data


def test_types_are_counted_over_blocks(monkeypatch):
    data = drawn()
    whole = np.bincount(data.types, minlength=4)
    monkeypatch.setattr(sequences, "block_slices", lambda n: blocks.block_slices(n, 3))
    assert data.type_counts().tolist() == whole.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.relabel([3, 1, 2, 0]).type_counts().tolist() == whole[[3, 1, 2, 0]].tolist()
