import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from seqattn.data.pieces import Parts
from seqattn.data.sequences import Sequences
from seqattn.errors import DataError, ParameterError, SeqattnWarning

RNG = np.random.default_rng(7)
N = 400
TIMES = np.sort(RNG.integers(0, 90, N)).astype(float)
# In order of time, so that the rows of a sequence stand apart and straddle every piece.
MIXED = pl.DataFrame({"seq_id": RNG.integers(0, 12, N), "t": TIMES, "k": RNG.choice(["b", "a", "c"], N)})
GROUPED = MIXED.sort("seq_id", maintain_order=True)
SHUFFLED = MIXED.sample(fraction=1.0, shuffle=True, seed=1)
DATED = MIXED.with_columns(
    t=pl.datetime(2024, 1, 1, time_unit="us") + pl.duration(milliseconds=pl.col("t") * 137)
)
NAMED = MIXED.with_columns(pl.format("u{}", "seq_id").alias("seq_id"), pl.col("k").cast(pl.Categorical))
WINDOWS = pl.DataFrame({"seq_id": [*range(12), 77], "t0": [-1.0] * 13, "t1": [90.0 + i for i in range(13)]})


def both(frame, folder, piece=37, **options):
    """Read a table in pieces and in memory; return both with the warnings that each gave."""
    frame.write_parquet(folder / "events.parquet", row_group_size=64)
    results = []
    for read in (
        lambda: Sequences.prepare(folder / "events.parquet", folder / "out", piece=piece, **options),
        lambda: Sequences.read(folder / "events.parquet", **options),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results.append((read(), [str(warning.message) for warning in caught]))
    return results


@pytest.mark.parametrize(
    ("frame", "options"),
    [
        (MIXED, {}),
        (GROUPED, {}),
        (SHUFFLED, {"sort": True}),
        (NAMED, {"sort": True}),
        (DATED, {}),
        (DATED.with_columns(pl.col("t").dt.replace_time_zone("Europe/Berlin")), {"window": "max"}),
        (DATED.with_columns(pl.col("t") - pl.col("t").min()), {}),
        (DATED.with_columns(pl.col("t").dt.date()), {"ties": "allow"}),
        (MIXED.with_columns(pl.col("t").cast(pl.Int32)), {"window": (None, 95)}),
        (MIXED.with_columns(pl.col("t") - 50.0), {"window": "max"}),
        (MIXED, {"window": (-3.0, "max")}),
        (MIXED, {"window": WINDOWS}),
        (MIXED, {"window": {i: (None, 90.0 + i) for i in range(13)}}),
        (NAMED, {"labels": ["c", "a", "b", "never"]}),
        (MIXED, {"labels": ["c", "b"], "unknown": "ignore"}),
        (MIXED.with_columns(k=pl.col("seq_id") % 3), {"labels": 5}),
        (MIXED, {"drop_duplicates": True}),
        (MIXED, {"ties": "jitter"}),
        (MIXED, {"chunk": 9}),
        (MIXED, {"chunk": 9, "left_context": 0, "ties": "jitter", "window": (0, 100)}),
        (MIXED, {"chunk": 1000}),
        (MIXED.drop("seq_id"), {"seq": None}),
        (MIXED.rename({"seq_id": "user", "t": "when", "k": "what"}), {"seq": "user", "time": "when", "type": "what"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("piece", [37, 5000])
def test_pieces_give_what_memory_gives(tmp_path, frame, options, piece):
    (mapped, said), (whole, heard) = both(frame, tmp_path, piece, **options)
    assert mapped.digest() == whole.digest()
    assert isinstance(mapped.times, np.memmap)
    assert said == heard
    assert [type(label) for label in mapped.labels] == [type(label) for label in whole.labels]


IDS = {
    "nanoseconds": pl.Series([1_001, 1_002, 1_001, 1_003]).cast(pl.Datetime("ns")),
    "the end of summer time": (1603584000_000 + pl.Series(range(0, 7200_000, 1800_000))).cast(
        pl.Datetime("ms", "Europe/Berlin")
    ),
    "times of day": pl.Series([1, 2, 1, 3]).cast(pl.Time),
    "spans": pl.Series([1, 2, 1, 3]).cast(pl.Duration("ns")),
    "days": pl.Series([1, 2, 1, 3]).cast(pl.Date),
    "decimals": pl.Series([1, 2, 1, 3]).cast(pl.Decimal(10, 2)),
    "64 bits without a sign": pl.Series([2**63 + 1, 5, 2**63 + 1, 5], dtype=pl.UInt64),
    "128 bits": pl.Series([2**70, 5, 2**70, -(2**80)], dtype=pl.Int128),
    "bytes": pl.Series([b"a", b"b", b"a", b"c"]),
}


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("kind", IDS)
def test_ids_of_every_kind_stay_apart_and_come_back(tmp_path, kind, sort):
    frame = pl.DataFrame({"seq_id": IDS[kind], "t": [1.0, 2.0, 3.0, 4.0], "k": ["a", "b", "a", "b"]})
    (mapped, _), (whole, _) = both(frame, tmp_path, 2, sort=sort)
    assert mapped.digest() == whole.digest()
    assert len(mapped) == frame["seq_id"].n_unique()
    assert mapped.id_columns().equals(whole.id_columns())
    assert mapped.id_columns().schema == whole.id_columns().schema


@pytest.mark.parametrize("ids", [[[1], [1], [2], [2]], [{"a": 1}] * 4])
def test_ids_that_are_no_single_value_are_refused(tmp_path, ids):
    frame = pl.DataFrame({"seq_id": ids, "t": [1.0, 2.0, 3.0, 4.0], "k": ["a", "b", "a", "b"]})
    frame.write_parquet(tmp_path / "a.parquet")
    for read in (lambda path: Sequences.prepare(path, tmp_path / "out"), Sequences.read):
        with pytest.raises(DataError, match="Column 'seq_id' holds .*An id must be one value"):
            read(tmp_path / "a.parquet")


@pytest.mark.parametrize("piece", [1, 2, 3])
@pytest.mark.parametrize("frame", [MIXED[:15], GROUPED[100:115]], ids=["in order of time", "grouped"])
def test_the_smallest_pieces_give_what_memory_gives(tmp_path, frame, piece):
    (mapped, _), (whole, _) = both(frame, tmp_path, piece)
    assert mapped.digest() == whole.digest()


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({"t": None}, {}),
        ({"t": float("nan")}, {}),
        ({"t": float("inf")}, {}),
        ({"k": None}, {}),
        ({"seq_id": None}, {}),
        ({"t": 1e6}, {}),
        ({"t": -5.0}, {"window": (0, 100), "sort": True}),
        ({"t": 500.0}, {"window": (0, 100), "sort": True}),
        ({"k": "strange"}, {"labels": ["a", "b", "c"]}),
        ({"seq_id": 99}, {"window": WINDOWS}),
        ({}, {"ties": "error"}),
        ({}, {"labels": ["x"], "unknown": "ignore"}),
        ({}, {"time": "when"}),
        ({}, {"window": (50, 40)}),
    ],
)
def test_refusals_are_those_of_memory_and_leave_nothing(tmp_path, change, options):
    row = 217
    frame = MIXED.with_row_index("n").with_columns(
        pl.when(pl.col("n") == row).then(pl.lit(value)).otherwise(pl.col(name)).alias(name)
        for name, value in change.items()
    )
    frame.drop("n").write_parquet(tmp_path / "events.parquet")
    with pytest.raises(DataError) as whole:
        Sequences.read(tmp_path / "events.parquet", **options)
    with pytest.raises(DataError) as pieces:
        Sequences.prepare(tmp_path / "events.parquet", tmp_path / "out", piece=50, **options)
    assert str(pieces.value) == str(whole.value)
    assert [path.name for path in tmp_path.iterdir()] == ["events.parquet"]


def test_a_row_is_counted_over_all_files(tmp_path):
    for part in range(4):
        MIXED[100 * part : 100 * part + 100].write_parquet(tmp_path / f"part-{part}.parquet")
    joined = Sequences.prepare(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", piece=33, ties="jitter")
    assert joined.digest() == Sequences.from_table(MIXED, ties="jitter").digest()
    bad = MIXED[100:200].with_columns(t=pl.when(pl.col("t") == pl.col("t").max()).then(None).otherwise("t"))
    bad.write_parquet(tmp_path / "part-1.parquet")
    row = 100 + int(np.flatnonzero(bad["t"].is_null())[0])
    with pytest.raises(DataError, match=f"missing in row {row}"):
        Sequences.prepare(tmp_path, tmp_path / "out", piece=33)


def _csv(folder):
    MIXED.write_csv(folder / "a.csv")
    return folder / "a.csv"


def _lists(folder):
    GROUPED.group_by("seq_id").agg("t", "k").write_parquet(folder / "a.parquet")
    return folder


def _splits(folder):
    for name in ("train", "dev"):
        MIXED.write_parquet(folder / f"{name}.parquet")
    return folder


def _unlike(folder):
    MIXED.write_parquet(folder / "a.parquet")
    MIXED.with_columns(pl.col("t").cast(pl.Float32)).write_parquet(folder / "b.parquet")
    return folder


def _damaged(folder):
    (folder / "a.parquet").write_bytes(b"PAR1 but nothing more")
    return folder / "a.parquet"


def _empty(folder):
    MIXED[:0].write_parquet(folder / "a.parquet")
    return folder


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (_csv, "only Parquet can. Convert it"),
        (_lists, "holds lists, one sequence per row.*Explode the lists"),
        (_splits, "'dev.parquet' and 'train.parquet' are splits"),
        (_unlike, "holds Float64 in .*a.parquet', but Float32 in .*b.parquet'"),
        (_damaged, "a.parquet' cannot be read as parquet"),
        (_empty, "The table has no rows"),
        (lambda folder: folder / "no.parquet", "There is no file"),
        (lambda folder: folder, "There is no Parquet file in"),
    ],
)
def test_what_cannot_be_read_in_pieces_is_refused_with_a_cure(tmp_path, make, text):
    with pytest.raises(DataError, match=text):
        Sequences.prepare(make(tmp_path), tmp_path / "out")


def test_options_and_folders_are_checked_first(tmp_path):
    MIXED.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(ParameterError, match="Did you mean 'window'"):
        Sequences.prepare(tmp_path / "a.parquet", tmp_path / "out", windw="max")
    with pytest.raises(ParameterError, match="piece=0"):
        Sequences.prepare(tmp_path / "a.parquet", tmp_path / "out", piece=0)
    with pytest.raises(DataError, match="holds other files"):
        Sequences.prepare(tmp_path / "a.parquet", tmp_path)


SENSELESS = {
    "data=None": "None is no path of a Parquet file",
    "data=5": "5 is no path of a Parquet file",
    "data=[5]": "5 is no path of a Parquet file",
    "folder=None": "folder=None is no path",
    "folder=''": "folder='' is no path",
    "time=[1]": "time=[1] is no name of a column",
    "seq=1": "seq=1 is no name of a column",
    "type=None": "type=None is no name of a column",
    "sort='maybe'": "sort='maybe' is neither True nor False",
    "drop_duplicates='maybe'": "drop_duplicates='maybe' is neither True nor False",
    "chunk='abc'": "chunk='abc' must be a whole number",
    "chunk=2.5": "chunk=2.5 must be a whole number",
}
# In a process of its own: the runtime checks of the tests would refuse these kinds before the package does.
REFUSALS = """
import json, sys
from seqattn import Sequences
from seqattn.errors import ParameterError
def told(call):
    try:
        call()
    except ParameterError as error:
        return str(error)
answers = {}
for text in json.loads(sys.argv[1]):
    given = eval(f"dict({text})")
    answers[text] = [told(lambda: Sequences.prepare(**{"data": "a.parquet", "folder": "out", **given}))]
    if not given.keys() & {"data", "folder"}:
        answers[text].append(told(lambda: Sequences.read("a.parquet", **given)))
print(json.dumps(answers))
"""


def test_what_makes_no_sense_is_refused_with_a_sentence(tmp_path, run_python):
    MIXED.write_parquet(tmp_path / "a.parquet")
    done = run_python(REFUSALS, json.dumps(list(SENSELESS)))
    assert done.returncode == 0, done.stderr
    for text, answers in json.loads(done.stdout).items():
        assert all(SENSELESS[text] in (answer or "") for answer in answers), (text, answers)


def test_hidden_files_are_no_parts_of_a_table(tmp_path):
    MIXED.write_parquet(tmp_path / "a.parquet")
    for name in ("._a.parquet", ".b.parquet", "_metadata.parquet"):
        (tmp_path / name).write_bytes(b"for another program")
    assert len(Parts(tmp_path).paths) == 1
    with pytest.raises(DataError, match="cannot be read as parquet"):
        Parts(tmp_path / "._a.parquet")


def test_parts_in_several_folders_may_all_be_called_train(tmp_path):
    for month in ("feb", "jan"):
        (tmp_path / month).mkdir()
        MIXED.write_parquet(tmp_path / month / "train.parquet")
    assert len(Parts([tmp_path / "jan" / "train.parquet", tmp_path / "feb" / "train.parquet"]).paths) == 2


def test_a_result_before_stays_until_the_new_one_is_complete(tmp_path):
    MIXED.write_parquet(tmp_path / "a.parquet")
    MIXED.with_columns(t=None).write_parquet(tmp_path / "b.parquet")
    with pytest.warns(SeqattnWarning, match="equal times"):
        before = Sequences.prepare(tmp_path / "a.parquet", tmp_path / "out")
    with pytest.raises(DataError, match="missing"):
        Sequences.prepare(tmp_path / "b.parquet", tmp_path / "out")
    assert Sequences.open(tmp_path / "out").digest() == before.digest()
    after = Sequences.prepare(tmp_path / "a.parquet", tmp_path / "out", window="max", ties="jitter")
    assert Sequences.open(tmp_path / "out").digest() == after.digest() != before.digest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet", "out"]


@pytest.mark.filterwarnings("ignore::seqattn.errors.SeqattnWarning")
def test_other_files_of_the_folder_stay_even_the_source(tmp_path):
    target = tmp_path / "out"
    MIXED.write_parquet(tmp_path / "a.parquet")
    first = Sequences.prepare(tmp_path / "a.parquet", target)
    (target / "notes.txt").write_text("mine")
    NAMED.write_parquet(target / "b.parquet")
    second = Sequences.prepare(target / "b.parquet", target)
    assert Sequences.open(target).digest() == second.digest() == Sequences.from_table(NAMED).digest()
    assert (target / "notes.txt").read_text() == "mine"
    assert pl.read_parquet(target / "b.parquet").equals(NAMED.with_columns(pl.col("k").cast(pl.Categorical)))
    assert (target / "ids.json").exists()
    assert not (target / "ids.npy").exists()
    assert first.times.tolist() == Sequences.from_table(MIXED).times.tolist(), "what is open keeps its file"
    assert Sequences.prepare(tmp_path / "a.parquet", target).ids.tolist() == first.ids.tolist()
    assert not any(path.name.startswith(".") for path in target.iterdir())


@pytest.mark.parametrize("target", ["link", "dangling", ".", "../real/../other"])
def test_the_folder_may_be_a_link_or_the_current_one(tmp_path, monkeypatch, target):
    MIXED.write_parquet(tmp_path / "a.parquet")
    place = tmp_path / "here"
    for folder in (place, tmp_path / "real"):
        folder.mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(place)
    named = tmp_path / target if target in ("link", "dangling") else Path(target)
    inode = named.resolve().stat().st_ino if named.exists() else None
    data = Sequences.prepare(tmp_path / "a.parquet", named, ties="jitter")
    assert Sequences.open(named).digest() == data.digest()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "dangling").is_symlink()
    assert inode in (None, named.resolve().stat().st_ino), "the folder was replaced"


def test_a_folder_that_is_filled_meanwhile_is_left_alone(tmp_path, monkeypatch):
    MIXED.write_parquet(tmp_path / "a.parquet")
    (tmp_path / "out").mkdir()
    usual = Sequences.recode

    def late(self, *given):
        (tmp_path / "out" / "notes.txt").write_text("mine")
        return usual(self, *given)

    monkeypatch.setattr(Sequences, "recode", late)
    with pytest.raises(DataError, match="holds other files"):
        Sequences.prepare(tmp_path / "a.parquet", tmp_path / "out", ties="jitter")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_an_output_that_cannot_be_written_is_refused_before_the_table_is_read(tmp_path):
    MIXED.with_columns(t=None).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "file").write_text("")
    with pytest.raises(ParameterError, match=r"file.out' cannot be made: .*\. Choose another name"):
        Sequences.prepare(tmp_path / "a.parquet", tmp_path / "file" / "out")


FULL = """
import resource, sys
from seqattn.cli import main
sys.dont_write_bytecode = True  # it would be cut at the limit, and spoil every later import
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
sys.argv = ["seqattn", "datasets", "prepare", "a.parquet", "--output", sys.argv[1]]
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of files are POSIX")
def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path, run_python):
    MIXED.write_parquet(tmp_path / "a.parquet")
    done = run_python(FULL, "out")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"Error: File too large: '{tmp_path}'."]
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_no_more_than_a_piece_is_read_at_once(tmp_path):
    MIXED.write_parquet(tmp_path / "a.parquet")
    heights = [(first, len(frame)) for first, frame in Parts(tmp_path / "a.parquet").pieces(["t"], 60)]
    assert heights == [(start, min(60, N - start)) for start in range(0, N, 60)]


PROGRAM = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from seqattn.data.sequences import Sequences
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
small, large, folder = sys.argv[1:]
Sequences.prepare(small, folder, piece=20_000)
before = peak()
Sequences.prepare(large, folder, piece=20_000)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_memory_does_not_grow_with_the_number_of_events(tmp_path):
    n = 1_500_000
    frame = pl.DataFrame({"seq_id": np.arange(n) % 5000, "t": np.arange(n) / 2, "k": np.arange(n) % 3})
    frame.write_parquet(tmp_path / "large.parquet", row_group_size=20_000)
    frame[: n // 15].write_parquet(tmp_path / "small.parquet", row_group_size=20_000)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(str(tmp_path / name) for name in ("small.parquet", "large.parquet", "out"))],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 24_000, f"{done.stdout} kB more for 36 MB of columns"
