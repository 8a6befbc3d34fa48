"""Known sets of labelled series: the catalogue, the places where they are looked for, and the download."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from seqattn.data.catalog import (
    cache_folder,
    entries,
    entry,
    find,
    is_on_disk,
    load_dataset,
    load_split,
    resource,
    splits_of,
)
from seqattn.data.download import fetch
from seqattn.data.panels import Panel
from seqattn.errors import DataError, MissingDependencyError

REAL = os.environ.get("SEQATTN_DATA")
EMBEDDED = resource("datasets", "uea", "BasicMotions")


@pytest.fixture(autouse=True)
def clean_places(monkeypatch, tmp_path):
    monkeypatch.delenv("SEQATTN_DATA", raising=False)
    monkeypatch.setenv("SEQATTN_CACHE", str(tmp_path / "cache"))


def put(folder: Path, name: str = "Toy", shift: int = 0, splits: tuple[str, ...] = ("TRAIN", "TEST")) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, split in enumerate(splits):
        head = "@timeStamps false\n@classLabel true a b\n@data\n"
        lines = f"{number + shift},1,2:3,4,5:a\n1,2,3:4,5,6:b\n"
        (folder / f"{name}_{split}.ts").write_text(head + lines)
    return folder


def pack(folder: Path, archive: Path) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.glob("*.ts"):
            file.write(path, path.name)
    return archive


def test_the_thirty_sets_are_known_completely():
    known = entries("uea")
    assert len(known) == 30
    assert [one.name for one in known if one.length[0] < one.length[1]] == [
        "CharacterTrajectories",
        "InsectWingbeat",
        "JapaneseVowels",
        "SpokenArabicDigits",
    ]
    for one in known:
        assert one.splits == ("train", "test"), one.name
        assert all((one.title, one.source, one.licence, one.domain)), one.name
        assert min(one.channels, one.length[0], one.parts["train"].cases, one.parts["test"].cases) >= 1
        assert one.classes >= 2
        assert one.is_downloadable
    digests = [part.sha256 for one in known for part in one.parts.values() if part.sha256]
    assert len(digests) == len(set(digests)) == 38


def test_a_name_means_one_set_whatever_its_family():
    names = [name for one in entries() for name in (one.name, *one.aliases)]
    assert len(names) == len(set(names))
    assert (entry("BasicMotions").family, entry("taxi").family) == ("uea", "tpp")
    with pytest.raises(DataError, match="no known data set 'BasicMotions'"):
        entry("BasicMotions", "tpp")
    with pytest.raises(DataError, match=r"'BasicMotion'.*Did you mean 'BasicMotions'\?"):
        load_dataset("BasicMotion")


def test_the_embedded_set_is_what_the_catalogue_says():
    known, parts = entry("BasicMotions"), load_dataset("BasicMotions")
    assert find("BasicMotions").origin == "embedded"
    assert list(parts) == ["train", "test"]
    for split, panel in parts.items():
        assert known.differences(split, panel) == []
        assert sorted(set(panel.labels.tolist())) == ["Badminton", "Running", "Standing", "Walking"]
        content = (EMBEDDED / f"BasicMotions_{split.upper()}.ts").read_bytes()
        assert hashlib.sha256(content).hexdigest() == known.parts[split].sha256
    assert load_dataset("BasicMotions", "train").digest() == parts["train"].digest()
    with pytest.raises(DataError, match=r"no split 'dev'\. Splits: train, test"):
        load_dataset("BasicMotions", "dev")


def test_places_are_looked_through_in_order_folders_before_archives(monkeypatch, tmp_path):
    pack(put(tmp_path / "1", "BasicMotions", 1), cache_folder() / "uea" / "BasicMotions.zip")
    assert find("BasicMotions").origin == "cache"
    assert load_dataset("BasicMotions", "train").series[0][0, 0] == 1
    put(cache_folder() / "uea" / "BasicMotions", "BasicMotions", 2)
    assert load_dataset("BasicMotions", "train").series[0][0, 0] == 2
    pack(put(tmp_path / "3", "BasicMotions", 3), tmp_path / "data" / "uea" / "BasicMotions.zip")
    monkeypatch.setenv("SEQATTN_DATA", str(tmp_path / "data"))
    assert find("BasicMotions").origin == "SEQATTN_DATA"
    assert load_dataset("BasicMotions", "test").series[0][0, 0] == 4


def test_a_set_that_is_absent_says_where_to_get_it():
    with pytest.raises(DataError) as caught:
        load_dataset("EigenWorms")
    message = str(caught.value)
    assert "seqattn datasets get EigenWorms" in message
    assert "EigenWorms_TRAIN.ts and EigenWorms_TEST.ts into uea/EigenWorms" in message
    assert "uea/EigenWorms.zip" in message


@pytest.mark.parametrize("form", ["archive names", "plain names", "zip"])
def test_a_folder_or_archive_of_a_user_gives_its_splits(form, tmp_path):
    place = put(tmp_path / "mine", splits=("TRAIN", "TEST", "VALID"))
    wanted = {split: Panel.read(place / f"Toy_{split}.ts").digest() for split in ("TRAIN", "TEST", "VALID")}
    if form == "plain names":
        for path in place.iterdir():
            path.rename(place / path.name.removeprefix("Toy_").lower())
    if form == "zip":
        place = pack(place, tmp_path / "mine.zip")
    assert is_on_disk(place)
    assert splits_of(place, "uea") == ("train", "dev", "test")
    for split, name in (("train", "TRAIN"), ("dev", "VALID"), ("test", "TEST")):
        assert load_split(place, split, family="uea").digest() == wanted[name]


def test_splits_are_told_of_names_and_files(tmp_path):
    assert splits_of("BasicMotions", "uea") == ("train", "test")
    assert splits_of("taxi", "tpp") == ("train", "dev", "test")
    path = put(tmp_path) / "Toy_TRAIN.ts"
    assert splits_of(path, "uea") == ()
    assert load_split(path, "anything", family="uea").digest() == Panel.read(path).digest()
    with pytest.raises(DataError, match="no file, folder or known data set"):
        splits_of(tmp_path / "nothing", "uea")


def test_two_files_for_one_split_and_none_are_refused(tmp_path):
    put(tmp_path)
    with pytest.raises(
        DataError, match=r"no file for the split 'dev'. Looked for dev\.ts, NAME_DEV\.ts / valid"
    ):
        load_split(tmp_path, "dev", family="uea")
    put(tmp_path, "Other")
    with pytest.raises(DataError, match=r"holds Other_TEST\.ts and Toy_TEST\.ts for the split 'test'"):
        load_split(tmp_path, "test", family="uea")


def test_a_folder_of_results_called_like_a_set_does_not_hide_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "BasicMotions").mkdir()
    assert not is_on_disk("BasicMotions")
    assert len(load_split("BasicMotions", "train", family="uea")) == 40
    put(tmp_path / "BasicMotions")
    assert is_on_disk("BasicMotions")
    assert len(load_split("BasicMotions", "train", family="uea")) == 2


def test_differences_from_the_catalogue_are_named():
    train = load_dataset("BasicMotions", "train")
    other = Panel([case[:5, :90] for case in train.series[:39]], train.labels[:39])
    assert entry("BasicMotions").differences("train", other) == [
        "train holds 39 of 40 cases",
        "train has 5 channels instead of 6",
        "train has series of 90 to 90 points instead of 100 to 100",
    ]


# -- download --------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch, tmp_path) -> Path:
    """Let sktime's loader look at a folder of this machine instead of its servers."""
    loaders = pytest.importorskip("sktime.datasets._data_io")
    folder = tmp_path / "server"
    folder.mkdir()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(loaders, "CLASSIF_URLS", [folder.as_uri()])
    return folder


@pytest.mark.slow
def test_a_set_is_downloaded_through_sktime_and_checked(server, tmp_path):
    pack(EMBEDDED, server / "BasicMotions.zip")
    place = fetch("BasicMotions")
    assert place.path == cache_folder() / "uea" / "BasicMotions"
    assert sorted(path.name for path in place.path.iterdir()) == [
        "BasicMotions_TEST.ts",
        "BasicMotions_TRAIN.ts",
    ]
    assert find("BasicMotions").origin == "cache"
    for split, panel in load_dataset("BasicMotions").items():
        assert panel.digest() == load_split(EMBEDDED, split, family="uea").digest()


@pytest.mark.slow
def test_other_content_and_failed_downloads_leave_nothing_behind(server, tmp_path):
    with pytest.raises(DataError, match="sktime could not download 'BasicMotions'"):
        fetch("BasicMotions")
    pack(put(tmp_path / "other", "BasicMotions"), server / "BasicMotions.zip")
    with pytest.raises(DataError, match=r"is not 'train' of 'BasicMotions': train holds 2 of 40 cases"):
        fetch("BasicMotions")
    assert list((cache_folder() / "uea").iterdir()) == []


def test_without_sktime_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "sktime.datasets", None)
    with pytest.raises(MissingDependencyError, match="pip install sktime"):
        fetch("EigenWorms")
    assert not list((cache_folder() / "uea").iterdir())


# -- the real files --------------------------------------------------------------------------------------------


@pytest.mark.skipif(REAL is None, reason="SEQATTN_DATA is not set")
@pytest.mark.parametrize("name", [one.name for one in entries("uea") if one.parts["train"].sha256])
def test_the_real_files_are_what_the_catalogue_says(monkeypatch, name):
    monkeypatch.setenv("SEQATTN_DATA", str(REAL))
    known = entry(name)
    place = find(name).path
    lengths, labels = [], set()
    for split in known.splits:
        path = known.split_files(place, split)[0]
        panel = Panel.read(path)
        assert known.differences(split, panel) == []
        assert not any(np.isnan(case).any() for case in panel.series), "padding or gaps"
        content = path.read_bytes() if path.is_file() else zipfile.ZipFile(place).read(path.name)
        assert hashlib.sha256(content).hexdigest() == known.parts[split].sha256
        lengths += panel.lengths.tolist()
        labels |= set(panel.labels.tolist())
    assert (min(lengths), max(lengths)) == known.length
    assert len(labels) == known.classes


@pytest.mark.skipif(REAL is None, reason="SEQATTN_DATA is not set")
def test_repeated_and_constant_cases_are_as_the_notes_say(monkeypatch):
    monkeypatch.setenv("SEQATTN_DATA", str(REAL))
    libras = load_dataset("Libras")
    train, test = ([case.tobytes() for case in libras[split].series] for split in ("train", "test"))
    assert sum(case in set(train) for case in test) == 19
    assert (len(train) - len(set(train)), len(test) - len(set(test))) == (6, 5)
    lsst = load_dataset("LSST", "test")
    constant = [
        (i, k) for i, case in enumerate(lsst.series) for k in np.flatnonzero(np.ptp(case, axis=1) == 0)
    ]
    assert constant == [(1295, 1), (1295, 2), (1295, 3)]
    scp = load_dataset("SelfRegulationSCP1", "train").to_array()
    for channel in range(5):
        np.testing.assert_array_equal(scp[:, channel, 6:], scp[:, channel + 1, :-6])
