"""Data larger than memory: the same numbers block by block as at once, and nothing that loads all events."""

import json

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from small_events import draw

from seqattn import SAHP, EmpiricalMarkov, PoissonProcess, RenewalProcess, Sequences
from seqattn.cli import cli
from seqattn.data import blocks
from seqattn.data.batches import batches, pack
from seqattn.errors import DataError
from seqattn.hawkes import baselines, counting, forecasting, task

SMALL = {"d_model": 8, "n_heads": 1, "n_layers": 1, "epochs": 1, "n_decays": 1, "random_state": 0}


@pytest.fixture(scope="module")
def table():
    return draw(5, 60)


@pytest.fixture(scope="module")
def fitted(table):
    return SAHP(**SMALL, own_kernels=2, gap_kernels=2, baselines=False).fit(table)


@pytest.mark.parametrize("window", ["last_event", (0.0, 100.0)])
def test_counts_and_mean_gap_do_not_depend_on_the_blocks(table, window, monkeypatch):
    data = Sequences.from_table(table, window=window)
    measures = (counting.scored_counts, counting.mean_positive_gap, counting.event_rates)
    whole = [measure(data) for measure in measures]
    gaps = np.concatenate([np.diff(data.sequence(i)[0], prepend=data.start[i]) for i in range(len(data))])
    assert whole[1] == pytest.approx(gaps[gaps > 0].mean(), rel=1e-12)
    usual = Sequences.blocks
    monkeypatch.setattr(Sequences, "blocks", lambda self: usual(self, 17))
    assert len(list(data.blocks())) > 10
    for measure, expected in zip(measures, whole, strict=True):
        np.testing.assert_allclose(measure(data), expected, rtol=1e-12)


def test_a_fit_on_a_saved_folder_equals_that_in_memory(table, fitted, tmp_path, monkeypatch):
    table.write_parquet(tmp_path / "events.parquet")
    data = Sequences.prepare(tmp_path / "events.parquet", tmp_path / "events", piece=100)
    monkeypatch.setattr(blocks, "_SMALL", 8)
    mapped = SAHP(**SMALL, own_kernels=2, gap_kernels=2, baselines=False).fit(data)
    for name, value in fitted.module_.state_dict().items():
        assert (mapped.module_.state_dict()[name] == value).all(), name


def test_a_batch_looks_at_its_own_sequences_only(table):
    data = Sequences.from_table(table)
    asked = []

    class Watched(np.ndarray):
        def __getitem__(self, key):
            found = super().__getitem__(key)
            asked.append(np.size(found))
            return found

        def __array_ufunc__(self, ufunc, method, *inputs, **options):
            asked.extend(np.size(x) for x in inputs if isinstance(x, Watched))
            plain = [np.asarray(x) for x in inputs]
            return getattr(ufunc, method)(*plain, **options)

    object.__setattr__(data, "offsets", data.offsets.view(Watched))
    pack(data, np.array([3, 8]))
    assert max(asked) < len(data), "the cost of a batch grows with the number of sequences"


def test_a_plan_takes_each_sequence_once(table):
    data = Sequences.from_table(table)
    plan = batches(data, 50, seed=1).plan
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(data)))


@pytest.mark.parametrize("quantiles", [(), (0.1, 0.9)])
def test_forecasts_in_pieces_are_those_at_once(table, fitted, quantiles, monkeypatch):
    usual = fitted.predict(table, quantiles)
    monkeypatch.setattr(forecasting, "_FORECASTS", 60)
    pieces = list(fitted.predict_blocks(table, quantiles))
    assert len(pieces) > 3
    assert pl.concat(pieces).equals(fitted.predict(table, quantiles))
    numbers = [name for name in usual.columns if usual[name].dtype.is_float()]
    for name in numbers:  # other batches: the same up to rounding
        np.testing.assert_allclose(pl.concat(pieces)[name], usual[name], rtol=1e-4)


def test_no_sequences_have_an_empty_table_of_forecasts(fitted, table):
    none = Sequences.from_table(table).select([])
    assert pl.concat(fitted.predict_blocks(none)).equals(fitted.predict(none))
    assert fitted.predict(none).columns[:2] == ["seq_id", "position"]


def test_new_data_come_in_pieces_where_a_folder_is_given(fitted, table, tmp_path):
    table.write_parquet(tmp_path / "a.parquet")
    mapped = task.load_new(fitted, tmp_path / "a.parquet", "test", tmp_path / "events")
    assert isinstance(mapped.times, np.memmap)
    assert mapped.digest() == task.load_new(fitted, tmp_path / "a.parquet", "test").digest()
    lists = table.group_by("seq_id", maintain_order=True).agg("t", "k")
    lists.write_parquet(tmp_path / "b.parquet")
    read = task.load_new(fitted, tmp_path / "b.parquet", "test", tmp_path / "more")
    assert read.n_events == mapped.n_events
    assert not (tmp_path / "more").exists()
    table.with_columns(k=pl.lit("strange")).write_parquet(tmp_path / "c.parquet")
    with pytest.raises(DataError, match="'strange'"):
        task.load_new(fitted, tmp_path / "c.parquet", "test", tmp_path / "more")


def test_the_commands_prepare_and_predict_from_parquet_to_parquet(fitted, table, tmp_path):
    table.rename({"t": "when"}).write_parquet(tmp_path / "a.parquet")
    model, whole = str(fitted.save(tmp_path / "model.safetensors")), fitted.predict(table)

    def told(*line):
        done = CliRunner().invoke(cli, [*map(str, line), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    raw, events = ("--read", "time=when"), tmp_path / "events"
    facts = told("datasets", "prepare", tmp_path / "a.parquet", "--output", events, *raw)
    assert (facts["n_sequences"], facts["n_events"], facts["window"]) == (60, len(table), "last_event")
    for data, output in ((tmp_path / "a.parquet", tmp_path / "1.parquet"), (events, tmp_path / "2.parquet")):
        more = raw if data.suffix else ()
        assert told("predict", model, "--data", data, "--output", output, *more)["n_rows"] == len(table)
        assert pl.read_parquet(output).equals(whole)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["1.parquet", "2.parquet", "a.parquet", "events", "model.safetensors"]


def test_reading_options_of_a_run_are_for_tables_not_for_saved_folders(table, tmp_path):
    shuffled = table.rename({"t": "when"}).sample(fraction=1.0, shuffle=True, seed=1)
    read = {"time": "when", "sort": True, "window": [0, 1000]}
    options = [word for name, value in read.items() for word in ("--read", f"{name}={str(value).lower()}")]
    (tmp_path / "splits").mkdir()
    raw, events, split = tmp_path / "a.parquet", tmp_path / "events", tmp_path / "splits" / "test"
    shuffled.write_parquet(raw)
    shuffled.with_columns(k=pl.lit("strange")).write_parquet(tmp_path / "b.parquet")
    for folder in (events, split):
        Sequences.prepare(raw, folder, **read)
    line = ["fit", "hawkes", "--model", "poisson", "--data", raw, *options, "--output", tmp_path / "run"]
    assert CliRunner().invoke(cli, list(map(str, line))).exit_code == 0
    tables = []
    for data in (raw, events, tmp_path / "splits"):
        done = CliRunner().invoke(cli, ["predict", str(tmp_path / "run"), "--data", str(data)])
        assert done.exit_code == 0, done.output
        tables.append(done.stdout)
    assert tables[0] == tables[1] == tables[2]
    asked = ["predict", str(tmp_path / "run"), "--data", str(events), "--read", "sort=true"]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 2
    assert "'sort' does not apply" in done.stderr


def test_baselines_of_many_events_are_fitted_to_a_sample(table, monkeypatch):
    data = Sequences.from_table(table)
    whole = PoissonProcess().fit(data)
    sample = data.sampled(200)
    assert 0 < sample.n_events <= 200
    monkeypatch.setattr(baselines, "manageable", lambda sequences: sequences.sampled(200))
    assert PoissonProcess().fit(data).rate_.tolist() == whole.rate_.tolist(), "sums need no sample"
    for kind in (EmpiricalMarkov, RenewalProcess):
        sampled, alone = kind().fit(data), kind().fit(sample)
        for name in ("rate_", "median_", "shape_", "share_"):
            if hasattr(alone, name):
                assert getattr(sampled, name).tolist() == getattr(alone, name).tolist(), (kind, name)
