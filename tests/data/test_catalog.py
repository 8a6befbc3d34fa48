import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from seqattn.data import catalog
from seqattn.data.catalog import (
    cache_folder,
    entries,
    entry,
    find,
    is_on_disk,
    load_dataset,
    load_split,
    resource,
    searched,
)
from seqattn.data.download import types_sha256
from seqattn.data.sequences import Sequences
from seqattn.errors import DataError, ParameterError, SeqattnWarning

REAL = os.environ.get("SEQATTN_DATA")


@pytest.fixture(autouse=True)
def clean_places(monkeypatch, tmp_path):
    for name in ("SEQATTN_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SEQATTN_CACHE", str(tmp_path / "cache"))


def put(folder: Path, splits=("train", "dev", "test"), seq: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        frame = pl.DataFrame({"seq_id": [seq, seq], "t": [0.0, 1.0], "k": [1, 0]})
        frame.write_parquet(folder / f"{split}.parquet")


def test_every_entry_is_complete_and_its_name_unique():
    known = entries("tpp")
    names = [name for one in known for name in (one.name, *one.aliases)]
    assert len(set(names)) == len(names)
    for one in known:
        assert one.splits == ("train", "dev", "test"), one.name
        assert all((one.title, one.source, one.licence, one.unit)), one.name
        assert one.types >= 1
        assert all(part.sequences for part in one.parts.values()), one.name
        assert set(one.urls) in (set(), set(one.splits)), one.name


def test_the_sets_of_the_published_tables_are_known():
    names = {one.name for one in entries()}
    assert {"taxi", "taobao", "stackoverflow", "earthquake", "retweet", "amazon", "mimic-ii/fold5"} <= names
    assert entry("hawkes2d").window == (0.0, 100.0)
    assert entry("taxi").window == "last_event"


def test_unknown_families_and_names_are_refused():
    with pytest.raises(ParameterError, match="no family 'abc'"):
        entries("abc")
    with pytest.raises(DataError, match=r"no known data set 'taxy'.*Did you mean 'taxi'\?"):
        entry("taxy")


def test_taxi_loads_without_any_environment(tmp_path):
    program = (
        "import sys\n"
        "from seqattn import load_dataset\n"
        "parts = load_dataset('taxi')\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules\n"
        "print({split: (len(data), data.n_events, data.labels) for split, data in parts.items()})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={}, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    labels = tuple(range(10))
    assert eval(done.stdout) == {
        "train": (1400, 51854, labels),
        "dev": (200, 7404, labels),
        "test": (400, 14820, labels),
    }


def test_embedded_files_are_what_the_catalogue_says():
    for split, part in entry("taxi").parts.items():
        frame = pl.read_parquet(find("taxi").path / f"{split}.parquet")
        assert types_sha256(frame["k"]) == part.types_sha256
        assert (frame["seq_id"].n_unique(), frame.height) == (part.sequences, part.events)


def test_taxi_has_the_properties_its_notes_state():
    data = load_dataset("taxi", "test")
    same_sequence = np.diff(np.repeat(np.arange(len(data)), data.lengths)) == 0
    assert not np.any((np.diff(data.types) == 0) & same_sequence), "a type occurs twice in a row"
    assert data.grid().spacing == pytest.approx(1 / 3600, rel=1e-12)
    assert np.all(data.context == 1)
    assert data.window == "last_event"


def test_places_are_looked_through_in_order(monkeypatch, tmp_path):
    assert find("taxi").origin == "embedded"
    put(cache_folder() / "tpp" / "taxi", seq=1)
    assert find("taxi").origin == "cache"
    assert load_dataset("taxi", "dev").ids.tolist() == [1]
    put(tmp_path / "data" / "tpp" / "taxi", seq=2)
    monkeypatch.setenv("SEQATTN_DATA", str(tmp_path / "data"))
    assert find("taxi").origin == "SEQATTN_DATA"
    assert load_dataset("taxi", "dev").ids.tolist() == [2]


def test_a_wrong_data_folder_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("SEQATTN_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"SEQATTN_DATA is '.*nowhere', which is not a folder"):
        load_dataset("taxi")


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SEQATTN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "seqattn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(catalog.sys, "platform", "linux")
    assert cache_folder() == tmp_path / ".cache" / "seqattn"
    monkeypatch.setattr(catalog.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "seqattn"


def test_data_that_are_absent_say_where_to_get_them():
    with pytest.raises(DataError) as caught:
        load_dataset("taobao")
    message = str(caught.value)
    assert "Download it with: seqattn datasets get taobao" in message
    assert all(repr(str(place.path / "taobao")) in message for place in searched("tpp"))
    with pytest.raises(
        DataError, match=r"cannot be downloaded.*albertyang33/FOREST.*tpp/memetracker-forest.*SEQATTN_DATA"
    ):
        load_dataset("memetracker-forest")


def test_an_alias_means_the_first_fold(monkeypatch, tmp_path):
    put(tmp_path / "tpp" / "mimic-ii" / "fold1", seq=1)
    put(tmp_path / "tpp" / "mimic-ii" / "fold2", seq=2)
    monkeypatch.setenv("SEQATTN_DATA", str(tmp_path))
    assert load_dataset("mimic-ii", "dev").ids.tolist() == [1]
    assert load_dataset("mimic-ii/fold2", "dev").ids.tolist() == [2]
    assert load_dataset("mimic-ii", "dev").n_types == 75


def test_catalogue_windows_and_types_are_applied_unless_replaced(monkeypatch, tmp_path):
    put(tmp_path / "tpp" / "hawkes2d")
    monkeypatch.setenv("SEQATTN_DATA", str(tmp_path))
    data = load_dataset("hawkes2d", "dev")
    assert (data.start.tolist(), data.end.tolist(), data.context.tolist()) == ([0.0], [100.0], [0])
    other = load_dataset("hawkes2d", "dev", window="last_event", labels=7)
    assert (other.end.tolist(), other.n_types) == ([1.0], 7)


def test_a_folder_of_results_does_not_hide_a_known_name_and_one_of_data_does(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taxi").mkdir()
    (tmp_path / "taxi" / "config.toml").write_text("")
    assert not is_on_disk("taxi")
    known = load_split("taxi", "dev")
    assert known.n_events > 7000
    put(tmp_path / "taxi", seq=5)
    assert is_on_disk("taxi")
    assert load_split("taxi", "dev").ids.tolist() == [5]
    # A folder that is called otherwise is what the user means, and its lack of data is an error.
    (tmp_path / "runs").mkdir()
    with pytest.raises(DataError, match="'runs' has no file for the split 'dev'"):
        load_split("runs", "dev")


def test_a_split_that_does_not_exist_is_named():
    with pytest.raises(DataError, match=r"'taxi' has no split 'tests'.*Did you mean 'test'\?"):
        load_dataset("taxi", "tests")


def test_a_folder_that_lacks_a_file_says_what_was_looked_for(monkeypatch, tmp_path):
    put(tmp_path / "tpp" / "taxi", splits=("train",))
    monkeypatch.setenv("SEQATTN_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load_dataset("taxi", "dev")
    message = str(caught.value)
    assert "no file for the split 'dev'" in message
    assert "Looked for dev / valid / validation / val with the endings .parquet, .csv" in message
    assert message.endswith("The folder holds: train.parquet.")


@pytest.mark.parametrize("name", ["dev.csv", "valid.csv", "validation.parquet", "val.jsonl"])
def test_split_files_of_a_folder_are_found_under_their_usual_names(tmp_path, name):
    frame = pl.DataFrame({"seq_id": [5, 5], "t": [0.0, 1.0], "k": ["a", "b"]})
    writers = {".csv": frame.write_csv, ".parquet": frame.write_parquet, ".jsonl": frame.write_ndjson}
    writers[Path(name).suffix](tmp_path / name)
    assert load_split(tmp_path, "dev").digest() == Sequences.of(frame).digest()
    assert load_split(str(tmp_path), "dev", window=(0, 9)).end.tolist() == [9.0]


def test_two_files_for_one_split_are_refused(tmp_path):
    put(tmp_path, splits=("dev", "valid"))
    with pytest.raises(DataError, match=r"holds dev\.parquet and valid\.parquet for the split 'dev'"):
        load_split(tmp_path, "dev")


def test_a_file_is_read_whole_and_a_saved_folder_opened(tmp_path):
    data = Sequences.from_lists([([0.0, 1.0], ["b", "a"])])
    data.to_frame().write_csv(tmp_path / "events.csv")
    assert load_split(tmp_path / "events.csv", "train").digest() == data.digest()
    data.save(tmp_path / "saved")
    assert load_split(tmp_path / "saved", "test").digest() == data.digest()
    data.save(tmp_path / "parts" / "train")
    assert load_split(tmp_path / "parts", "train").digest() == data.digest()


def test_known_names_load_their_split():
    assert load_split("taxi", "dev").digest() == load_dataset("taxi", "dev").digest()


def test_something_that_is_nothing_lists_what_is_known(tmp_path):
    with pytest.raises(DataError, match=r"no file, folder or known data set 'taxii'.*Did you mean 'taxi'\?"):
        load_split("taxii", "train")
    with pytest.raises(DataError, match="no file, folder or known data set"):
        load_split(tmp_path / "none.csv", "train")


def test_resources_are_found_in_an_installed_package_too(monkeypatch, tmp_path):
    package = tmp_path / "site" / "seqattn"
    (package / "_resources" / "datasets").mkdir(parents=True)
    monkeypatch.setattr(catalog, "__file__", str(package / "data" / "catalog.py"))
    assert resource("datasets") == package / "_resources" / "datasets"
    with pytest.raises(DataError, match="'tuning/x' is not part of this installation"):
        resource("tuning", "x")


def has_ties(notes: str) -> bool:
    return "are zero" in notes


@pytest.mark.skipif(REAL is None, reason="SEQATTN_DATA is not set")
@pytest.mark.parametrize("name", [one.name for one in entries("tpp") if not one.name.endswith("-full")])
@pytest.mark.filterwarnings("ignore:.*gaps between events are zero:seqattn.errors.SeqattnWarning")
def test_the_real_files_are_what_the_catalogue_says(monkeypatch, name):
    monkeypatch.setenv("SEQATTN_DATA", str(REAL))
    known = entry(name)
    if not (Path(str(REAL)) / "tpp" / name).is_dir():
        pytest.skip(f"{name} is not in SEQATTN_DATA")
    for split, data in load_dataset(name).items():
        part = known.parts[split]
        assert (len(data), data.n_events, data.n_types) == (part.sequences, part.events, known.types)
        assert hashlib.sha256(data.types.astype("<i2").tobytes()).hexdigest() == part.types_sha256


@pytest.mark.skipif(REAL is None, reason="SEQATTN_DATA is not set")
def test_real_ties_are_warned_of(monkeypatch):
    monkeypatch.setenv("SEQATTN_DATA", str(REAL))
    with pytest.warns(SeqattnWarning, match="849 of 22004 gaps"):
        load_dataset("retweet", "dev")
