import datetime as dt
import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from seqattn.data.sequences import Sequences
from seqattn.errors import DataError, ParameterError

DATED = pl.DataFrame(
    {
        "seq_id": ["u", "u", "v"],
        "t": [dt.datetime(2024, 1, d, tzinfo=dt.UTC) for d in (1, 2, 3)],
        "k": ["a", "b", "a"],
    }
)
MIXED = [([0.0, 1.0], [("x", 1), "b"]), ([2.0], ["b"])]


@pytest.mark.parametrize(
    "data",
    [
        Sequences.of(DATED),
        Sequences.of(MIXED, window=(0, 5)),
        Sequences.from_lists([*MIXED, ([], [])], window=(0, 5)),
        Sequences.from_lists([(np.arange(9.0), np.zeros(9, int))], chunk=4),
    ],
    ids=["dates", "mixed labels", "an empty sequence", "chunks"],
)
def test_what_was_saved_opens_with_the_same_content(tmp_path, data):
    data.save(tmp_path / "x")
    back = Sequences.open(tmp_path / "x")
    assert back.digest() == data.digest()
    assert Sequences.of(tmp_path / "x").digest() == data.digest()
    assert back.to_frame()["t"].equals(data.to_frame()["t"])
    assert back.labels == data.labels
    assert [type(label) for label in back.labels] == [type(label) for label in data.labels]


def test_events_stay_on_disk_until_they_are_used(tmp_path):
    n = 2_000_000
    pairs = [(np.arange(n // 200, dtype=float), np.zeros(n // 200, int)) for _ in range(200)]
    Sequences.from_lists(pairs).save(tmp_path / "x")
    program = (
        "import sys, resource\n"
        "from seqattn.data.sequences import Sequences\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "data = Sequences.open(sys.argv[1])\n"
        "assert data.select([5]).n_events == 10_000\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert isinstance(Sequences.open(tmp_path / "x").times, np.memmap)
    assert int(done.stdout) < 12_000, f"{done.stdout} kB for 24 MB of events"


def test_saving_again_replaces_and_leaves_open_arrays_alone(tmp_path):
    first, second = Sequences.of(MIXED), Sequences.of(DATED)
    first.save(tmp_path)
    opened = Sequences.open(tmp_path)
    second.save(tmp_path)
    assert opened.digest() == first.digest()
    assert Sequences.open(tmp_path).digest() == second.digest()
    assert {path.suffix for path in tmp_path.iterdir()} == {".npy", ".json"}


def test_saved_sequences_can_be_opened_with_other_labels(tmp_path):
    Sequences.of(DATED).save(tmp_path)
    assert Sequences.of(tmp_path, labels=["b", "a"]).types.tolist() == [1, 0, 1]
    with pytest.raises(ParameterError, match="'window' does not apply"):
        Sequences.of(tmp_path, window="max")


def test_foreign_folders_and_files_are_not_overwritten(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        Sequences.of(MIXED).save(tmp_path)
    with pytest.raises(DataError, match="is a file"):
        Sequences.of(MIXED).save(tmp_path / "note.txt")


def test_labels_that_cannot_be_written_leave_nothing_half_done(tmp_path):
    data = Sequences.of([([1.0], [frozenset({1})])])
    with pytest.raises(DataError, match="cannot be written"):
        data.save(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def change_meta(folder, **changes):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "meta.json").unlink(), "is not complete or was not written"),
        (lambda folder: (folder / "times.npy").unlink(), "is damaged"),
        (
            lambda folder: (folder / "times.npy").write_bytes((folder / "times.npy").read_bytes()[:-8]),
            "is damaged",
        ),
        (lambda folder: (folder / "meta.json").write_text("{"), "meta.json in .* is damaged"),
        (lambda folder: change_meta(folder, kind="other"), "was not written by Sequences.save"),
        (lambda folder: change_meta(folder, format=99), "written by a newer version"),
        (lambda folder: np.save(folder / "start.npy", np.zeros(9)), "start.npy in .* holds 9 values, not 2"),
    ],
    ids=["no meta", "no times", "short times", "bad meta", "foreign", "newer", "wrong length"],
)
def test_damaged_folders_are_refused(tmp_path, damage, message):
    Sequences.of(MIXED).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        Sequences.open(tmp_path)


def test_an_absent_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere' does not exist"):
        Sequences.open(tmp_path / "nowhere")
