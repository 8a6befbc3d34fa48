"""Known sets of interactions: the catalogue, where they are looked for, their splits, downloads and object arrays."""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seqattn.data.catalog import entries, entry, find, load_dataset, load_split, splits_of
from seqattn.data.download import fetch
from seqattn.data.interactions import Interactions
from seqattn.data.rec import InteractionSet, sequences_sha256
from seqattn.data.splitfile import read_split_file
from seqattn.errors import DataError

REAL = os.environ.get("SEQATTN_DATA")
HEAD = "user_id:token\titem_id:token\ttimestamp:float\n"


@pytest.fixture(autouse=True)
def clean_places(monkeypatch, tmp_path):
    monkeypatch.delenv("SEQATTN_DATA", raising=False)
    monkeypatch.setenv("SEQATTN_CACHE", str(tmp_path / "cache"))


def put(path: Path, rows: list[tuple] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = rows or [(user, 10 * user + i, i) for user in (1, 2) for i in range(4)]
    path.write_text(HEAD + "".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


def items(data: Interactions) -> list[list]:
    return [[data.item_ids[code] for code in data.items_of(user).tolist()] for user in range(data.n_users)]


# -- the catalogue ---------------------------------------------------------------------------------------------


def test_the_seven_sets_are_known_completely():
    known = entries("rec")
    names = ["amazon-beauty", "amazon-sports", "amazon-toys", "yelp", "lastfm", "ml-100k", "ml-1m"]
    assert [one.name for one in known] == names
    for one in known:
        assert one.splits == ("train", "dev", "test")
        assert all((one.title, one.source, one.licence, one.notes, one.is_downloadable))
        assert sum(part.rows for part in one.parts.values()) == one.interactions
        assert one.parts["dev"].rows == one.parts["test"].rows == one.users
        assert one.n_labels == one.items
    assert sum(one.sequences_sha256 is not None for one in known) == 6


@pytest.mark.skipif(REAL is None, reason="SEQATTN_DATA is not set")
@pytest.mark.parametrize("name", ["amazon-beauty", "lastfm", "ml-100k"])
def test_the_sets_are_what_the_catalogue_says(name, monkeypatch):
    monkeypatch.setenv("SEQATTN_DATA", REAL or "")
    known, parts = entry(name), load_dataset(name)
    whole = Interactions.read(Path(REAL or "", "rec", name, f"{name}.inter"))
    known.check(whole)
    assert (int(whole.lengths.min()), int(whole.lengths.max())) == known.length
    assert [known.differences(split, part) for split, part in parts.items()] == [[], [], []]
    assert parts["train"].joined(parts["dev"]).joined(parts["test"]).digest() == whole.digest()


def test_splits_are_cut_from_the_end_of_each_history(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQATTN_DATA", str(tmp_path))
    put(tmp_path / "rec" / "lastfm" / "lastfm.inter")
    parts = load_dataset("lastfm")
    assert [items(part) for part in parts.values()] == [[[10, 11], [20, 21]], [[12], [22]], [[13], [23]]]
    assert items(load_dataset("lastfm", "dev")) == [[12], [22]]
    assert load_dataset("lastfm", "dev").item_ids.to_list() == parts["train"].item_ids.to_list()
    assert find("lastfm").origin == "SEQATTN_DATA"
    assert entry("lastfm").differences("dev", parts["dev"]) == [
        "dev has 2 of 1,090 users",
        "dev has 8 of 3,646 items",
        "dev has 2 of 1,090 interactions",
    ]


def test_a_known_set_says_nothing_of_ties_and_a_file_does(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQATTN_DATA", str(tmp_path))
    path = put(tmp_path / "rec" / "lastfm" / "lastfm.inter", [(1, item, 0) for item in range(4)])
    assert load_dataset("lastfm", "train").notes[0].startswith("3 rows have the time")
    with pytest.warns(UserWarning, match="3 rows have the time"):
        load_split(path, "train", family="rec")


def test_a_folder_holds_a_table_per_split_or_one_for_all(tmp_path, monkeypatch):
    put(tmp_path / "mine" / "mine.inter")
    assert splits_of(tmp_path / "mine", "rec") == ("train", "dev", "test")
    assert items(load_split(tmp_path / "mine", "test", family="rec")) == [[13], [23]]
    monkeypatch.chdir(tmp_path / "mine")
    assert items(load_split(".", "test", family="rec")) == [[13], [23]]
    put(tmp_path / "apart" / "train.inter")
    put(tmp_path / "apart" / "valid.inter", [(1, 5, 9)])
    assert splits_of(tmp_path / "apart", "rec") == ("train", "dev")
    assert items(load_split(tmp_path / "apart", "dev", family="rec")) == [[5]]
    assert load_split(tmp_path / "apart", "train", family="rec").n_rows == 8
    with pytest.raises(DataError, match="has no file for the split 'test'"):
        load_split(tmp_path / "apart", "test", family="rec")
    assert splits_of(tmp_path / "mine" / "mine.inter", "rec") == ()
    assert load_split(tmp_path / "mine" / "mine.inter", "test", family="rec").n_rows == 8


def test_reading_options_reach_the_table(tmp_path):
    path = put(tmp_path / "a" / "a.inter", [(1, 5, 3), (1, 6, 2), (1, 7, 1)])
    assert items(load_split(path, "train", family="rec", time=None)) == [[5, 6, 7]]
    assert items(load_split(path.parent, "test", family="rec", time=None)) == [[7]]


def test_the_example_of_an_installed_recbole_is_found_without_importing_it(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "recbole", raising=False)
    put(tmp_path / "recbole" / "dataset_example" / "ml-100k" / "ml-100k.inter")
    (tmp_path / "recbole" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    with monkeypatch.context() as absent:
        absent.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(DataError, match="'ml-100k' is not on this machine"):
            find("ml-100k")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find("ml-100k").origin == "recbole"
    assert items(load_dataset("ml-100k", "dev")) == [[12], [22]]
    assert "recbole" not in sys.modules
    put(tmp_path / "data" / "rec" / "ml-100k" / "ml-100k.inter")
    monkeypatch.setenv("SEQATTN_DATA", str(tmp_path / "data"))
    assert find("ml-100k").origin == "SEQATTN_DATA"


def test_a_set_that_is_absent_says_how_to_get_it():
    with pytest.raises(DataError) as caught:
        load_dataset("amazon-toys")
    assert "seqattn datasets get amazon-toys" in str(caught.value)
    assert "put amazon-toys.inter (columns user_id, item_id, timestamp) into rec/amazon-toys" in str(
        caught.value
    )


# -- downloads -------------------------------------------------------------------------------------------------


def toy(url: Path, form: str, data: Interactions, **changes) -> InteractionSet:
    known = {"users": data.n_users, "items": data.n_items, "interactions": data.n_rows, "length": (4, 4)}
    text = {"name": "toy", "title": "t", "source": "s", "licence": "l"}
    row = {**text, **known, "url": url.as_uri(), "form": form, "parts": {"train": {"rows": 4}}}
    return InteractionSet.from_row({**row, "sequences_sha256": sequences_sha256(data), **changes})


def write_npy(path: Path, parts: list[dict], n_users: int, n_items: int) -> Path:
    array = np.empty(5, dtype=object)
    array[:] = [*parts, n_users, n_items]
    np.save(path, array, allow_pickle=True)
    return path


def originals(folder: Path) -> dict[str, Path]:
    """Write the same histories in every form."""
    folder.mkdir(exist_ok=True)
    (folder / "lists.txt").write_text("0 4 2 3 1\n1 0 2 4 3\n")
    dat = "".join(f"{u}::{i}::5::{t}\n" for t, u, i in [(3, 1, 3), (0, 1, 0), (1, 1, 2), (2, 1, 4)])
    dat = "0::4::1::7\n0::2::1::8\n0::3::1::9\n0::1::1::9\n" + dat
    with zipfile.ZipFile(folder / "ratings.zip", "w") as archive:
        archive.writestr("ml/README", "x")
        archive.writestr("ml/ratings.dat", dat)
    put(
        folder / "log.inter",
        [(0, 4, 0), (0, 2, 1), (0, 3, 2), (0, 1, 3), (1, 0, 0), (1, 2, 1), (1, 4, 2), (1, 3, 3)],
    )
    parts = [{0: [4, 2], 1: [0, 2]}, {0: [3], 1: [4]}, {0: [1], 1: [3]}]
    write_npy(folder / "array.npy", parts, 2, 5)
    return {
        "lists": folder / "lists.txt",
        "movielens": folder / "ratings.zip",
        "inter": folder / "log.inter",
        "npy": folder / "array.npy",
    }


@pytest.mark.parametrize("form", ["lists", "movielens", "inter", "npy"])
def test_every_form_of_original_becomes_the_same_table(form, tmp_path):
    files = originals(tmp_path / "originals")
    data = Interactions.of(files["inter"])
    place = fetch(toy(files[form], form, data))
    assert [path.name for path in place.path.iterdir()] == ["toy.inter"]
    found = Interactions.read(place.path / "toy.inter")
    assert items(found) == [[4, 2, 3, 1], [0, 2, 4, 3]]
    assert sequences_sha256(found) == sequences_sha256(data)


def test_what_is_not_the_set_is_removed(tmp_path):
    files = originals(tmp_path / "originals")
    known = toy(files["lists"], "lists", Interactions.of(files["inter"]))
    for changed, text in [
        (replace(known, items=6), "it has 5 items instead of 6"),
        (replace(known, sequences_sha256="0" * 64), "its sequences are others"),
        (replace(known, url=files["npy"].as_uri()), "is not 'toy'"),
        (replace(known, form="movielens"), "is not 'toy'"),
        (replace(known, url=(tmp_path / "absent").as_uri()), "The download of .* failed"),
    ]:
        with pytest.raises(DataError, match=text):
            fetch(changed)
        assert list((tmp_path / "cache" / "rec").iterdir()) == []


# -- object arrays of the authors ------------------------------------------------------------------------------


def test_an_object_array_is_read_with_its_parts(tmp_path):
    parts = [{1: np.array([5, 3]), 0: [2]}, {0: np.int64(4), 1: [1]}, {1: [0]}]
    frame = read_split_file(write_npy(tmp_path / "a.npy", parts, 2, 6))
    frame = frame.select("user_id", "item_id", "part", "timestamp")
    assert frame.rows() == [
        (0, 2, 0, 0),
        (0, 4, 1, 1),
        (1, 5, 0, 0),
        (1, 3, 0, 1),
        (1, 1, 1, 2),
        (1, 0, 2, 3),
    ]


def test_an_object_array_is_a_table_like_others(tmp_path):
    files = originals(tmp_path / "array")
    folder = files["npy"].parent
    (folder / "log.inter").unlink()
    assert items(load_split(folder, "dev", family="rec")) == [[3], [4]]
    assert load_split(files["npy"], "train", family="rec").n_rows == 8


class Evil:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([Evil(), {}, {}, 0, 0], "asks for builtins.print"),
        ([{0: [1]}, {0: [1]}, {0: [Path("x")]}, 1, 2], "asks for pathlib"),
        ([[1], {}, {}, 1, 2], "holds no three dictionaries"),
        ([{0: [1]}, {0: [1, 2]}, {}, 1, 3], "validation part of .* has 2 items of user 0"),
        ([{0: ["a"]}, {}, {}, 1, 3], "training part of .* does not hold whole numbers"),
        ([{0: [1]}, {}, {}, 2, 3], "states 2 users and 3 items, but holds 1 and 2"),
        ([{0: [7]}, {}, {}, 1, 3], "states 1 users and 3 items, but holds 1 and 8"),
    ],
)
def test_object_arrays_of_another_content_are_refused(tmp_path, capsys, content, text):
    array = np.empty(5, dtype=object)
    array[:] = content
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=text):
        read_split_file(tmp_path / "a.npy")
    assert capsys.readouterr().out == ""


def test_files_that_are_no_object_arrays_are_refused(tmp_path):
    np.save(tmp_path / "numbers.npy", np.arange(5))
    with pytest.raises(DataError, match="it holds int64 of shape"):
        read_split_file(tmp_path / "numbers.npy")
    np.save(tmp_path / "long.npy", np.array([{}] * 6), allow_pickle=True)
    with pytest.raises(DataError, match="five objects"):
        read_split_file(tmp_path / "long.npy")
    whole = write_npy(tmp_path / "a.npy", [{0: [1]}, {}, {}], 1, 2).read_bytes()
    for number, content in enumerate((b"", b"no array", whole[:-30], whole[:128] + pickle.dumps(3))):
        (tmp_path / f"{number}.npy").write_bytes(content)
        with pytest.raises(DataError, match="is no file of three splits"):
            read_split_file(tmp_path / f"{number}.npy")


def test_users_of_an_object_array_may_stand_in_any_order(tmp_path):
    rng = np.random.default_rng(0)
    histories = {int(user): rng.integers(0, 50, rng.integers(3, 9)).tolist() for user in rng.permutation(20)}
    parts = [
        {user: found[:-2] for user, found in histories.items()},
        {user: found[-2:-1] for user, found in reversed(histories.items())},
        {user: found[-1:] for user, found in histories.items()},
    ]
    frame = read_split_file(write_npy(tmp_path / "a.npy", parts, 20, 50))
    data = Interactions.of(frame.drop("part"))
    assert items(data) == [histories[user] for user in range(20)]
