"""What the command line and the tuner are told of point processes."""

from __future__ import annotations

import datetime as dt
import inspect
import math

import numpy as np
import polars as pl
import pytest
from small_events import SIZES, TINY, draw, write_splits

import seqattn
from seqattn import hawkes
from seqattn.errors import DataError, ParameterError
from seqattn.hawkes import task

SMALL = {**TINY, "baselines": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("data") / "clicks")


@pytest.fixture(scope="module")
def parts(folder):
    return task.splits(folder, task.SPLITS)


@pytest.fixture(scope="module")
def fitted(parts):
    return task.fit(task.build(SMALL, seed=0), parts["train"], parts["dev"])


def test_every_exported_point_process_has_a_name():
    assert set(task.MODELS.values()) == set(hawkes.__all__)


def test_a_folder_gives_its_splits(folder, parts):
    assert {role: len(part) for role, part in parts.items()} == SIZES
    assert parts["dev"].digest() == task.load_split(folder, "dev").digest()
    assert list(task.splits(folder)) == ["train", "dev"]


def test_a_known_name_gives_its_splits_with_types_and_window_of_the_catalogue():
    dev = task.load_split("taxi", "dev")
    assert (len(dev), dev.n_types) == (200, 10)


def test_a_file_is_cut_at_random_and_the_same_way_each_time(tmp_path):
    draw(0, 20).write_parquet(tmp_path / "events.parquet")
    cut = task.splits(tmp_path / "events.parquet", task.SPLITS, share=0.2, seed=1)
    again = task.splits(tmp_path / "events.parquet", task.SPLITS, share=0.2, seed=1)
    other = task.splits(tmp_path / "events.parquet", task.SPLITS, share=0.2, seed=2)
    assert [part.digest() for part in cut.values()] == [part.digest() for part in again.values()]
    assert cut["test"].ids.tolist() != other["test"].ids.tolist()
    ids = [name for part in cut.values() for name in part.ids.tolist()]
    assert sorted(ids) == sorted(f"s{i}" for i in range(20))


def test_a_file_is_kept_whole_without_a_share(tmp_path):
    draw(0, 20).write_csv(tmp_path / "events.csv")
    assert {role: len(part) for role, part in task.splits(tmp_path / "events.csv", share=None).items()} == {
        "train": 20
    }


def test_saved_sequences_are_cut_like_a_file(parts, tmp_path):
    parts["train"].save(tmp_path / "saved")
    cut = task.splits(tmp_path / "saved", share=0.25)
    assert {role: len(part) for role, part in cut.items()} == {"train": 9, "dev": 3}


def test_reading_options_are_those_of_the_readers(folder):
    assert task.load_split(folder, "train", window="max").window == "max"
    for reader in (seqattn.Sequences.from_table, seqattn.Sequences.read):
        names = [name for name, p in inspect.signature(reader).parameters.items() if p.kind is p.KEYWORD_ONLY]
        assert set(names) <= set(task.reading_options())
    with pytest.raises(ParameterError, match=r"'windw' is not a reading option\..* Did you mean 'window'"):
        task.load_split(folder, "train", windw="max")


@pytest.mark.parametrize("name", task.MODELS)
def test_every_model_can_be_built_with_its_own_defaults(name):
    model = task.build({}, name)
    assert type(model).__name__ == task.MODELS[name]
    assert task.build(task.settings(model), name).get_params() == model.get_params()


def test_build_passes_settings_seed_device_and_reading_on():
    read = {"time": "when", "seq": "user", "window": [0, 9], "sort": True}
    model = task.build({"d_model": 8}, seed=3, device="cpu", read=read)
    assert (model.d_model, model.random_state, model.device) == (8, 3, "cpu")
    assert (model.columns, model.window) == ({"t": "when", "seq_id": "user"}, (0, 9))
    assert task.reading(model) == {"time": "when", "seq": "user", "window": (0, 9)}
    assert task.reading(task.build({})) == {}


@pytest.mark.parametrize(
    ("settings", "model", "text"),
    [
        ({"n_layer": 2}, "sahp", r"'n_layer' is not a setting of 'sahp'\. .* Did you mean 'n_layers'"),
        ({"d_model": 8}, "poisson", r"The model 'poisson' has no settings\. Leave 'd_model' out\."),
        ({"d_model": "wide"}, "sahp", r"d_model='wide' is of the wrong kind\. Allowed: int\."),
        ({"d_model": True}, "sahp", "d_model=True is of the wrong kind"),
        ({"share_layers": 1}, "sahp", r"share_layers=1 is of the wrong kind\. Allowed: bool\."),
        ({"epochs": None}, "sahp", "epochs=None is of the wrong kind"),
        ({"attention": 3}, "sahp", "attention=3 is of the wrong kind"),
        ({"random_state": 1}, "sahp", "'random_state' is not a setting of a run: use --seed instead"),
        ({}, "saph", r"no model 'saph'\. .* Did you mean 'sahp'"),
    ],
)
def test_what_cannot_be_built_is_refused(settings, model, text):
    with pytest.raises(ParameterError, match=text):
        task.build(settings, model)


@pytest.mark.parametrize(
    "settings", [{"patience": None}, {"validation": None}, {"learning_rate": 1}, {"dropout": 0.5}]
)
def test_values_of_the_annotated_kinds_are_taken(settings):
    model = task.build(settings)
    assert {name: getattr(model, name) for name in settings} == settings
    assert isinstance(model.learning_rate, float)


def test_a_baseline_cannot_be_sent_to_a_device_it_does_not_have():
    with pytest.raises(ParameterError, match="runs on the CPU only"):
        task.build({}, "poisson", device="cuda")


def test_the_development_data_choose_the_epoch_unless_the_model_wants_none(parts, fitted):
    assert fitted.history_.best_epoch is not None
    free = task.fit(task.build({**SMALL, "validation": None}, seed=0), parts["train"], parts["dev"])
    assert free.history_.best_epoch is None


def test_the_objective_is_the_held_out_likelihood_of_each_epoch(parts, fitted):
    assert task.objective(fitted, parts["dev"]) == fitted.score(parts["dev"])
    values = [task.epoch_objective(fitted, record) for record in fitted.history_.records]
    assert max(values) == pytest.approx(task.objective(fitted, parts["dev"]), abs=1e-5)


def test_the_objective_is_in_the_unit_of_the_data(folder, tmp_path):
    """Times a thousand times as long cost log(1000) nats per event, and nothing else."""
    slow = tmp_path / "slow"
    slow.mkdir()
    for split in task.SPLITS:
        frame = pl.read_csv(folder / f"{split}.csv").with_columns(t=1000 * pl.col("t"))
        frame.write_csv(slow / f"{split}.csv")
    found = []
    for data in (folder, slow):
        parts = task.splits(data)
        model = task.fit(task.build(SMALL, seed=0), parts["train"], parts["dev"])
        found.append(
            (task.objective(model, parts["dev"]), task.epoch_objective(model, model.history_.records[0]))
        )
    (a, b), (c, d) = found
    assert a - c == pytest.approx(math.log(1000), abs=1e-4)
    assert b - d == pytest.approx(math.log(1000), abs=1e-4)


def test_new_data_get_the_types_of_the_model(fitted, tmp_path):
    only_b = draw(0, 3).with_columns(k=pl.lit("b"))
    only_b.write_csv(tmp_path / "b.csv")
    assert task.load_new(fitted, tmp_path / "b.csv", "test").labels == ("a", "b")
    strange = only_b.with_columns(k=pl.lit("c"))
    strange.write_csv(tmp_path / "c.csv")
    with pytest.raises(DataError, match="'c' is not among the labels"):
        task.load_new(fitted, tmp_path / "c.csv", "test")


def test_new_files_are_read_as_the_model_remembers_unless_told_otherwise(parts, tmp_path):
    model = task.build({}, "poisson", read={"time": "when"}).fit(parts["train"])
    draw(0, 3).rename({"t": "when"}).write_csv(tmp_path / "a.csv")
    draw(0, 3).rename({"t": "moment"}).write_csv(tmp_path / "b.csv")
    first = task.load_new(model, tmp_path / "a.csv", "test")
    second = task.load_new(model, tmp_path / "b.csv", "test", time="moment")
    assert first.digest() == second.digest()


def test_evaluate_takes_the_options_it_names(parts, fitted):
    assert set(task.EVALUATION["convention"]) == {"full", "to_last", "from_first"}
    figures = task.evaluate(fitted, parts["test"], convention="from_first")
    assert figures["convention"] == "from_first"
    with pytest.raises(ParameterError, match="'conventions' is not an option of evaluate"):
        task.evaluate(fitted, parts["test"], conventions="full")


def test_evaluate_adds_a_horizon_only_if_asked(parts, fitted):
    plain = task.evaluate(fitted, parts["test"])
    figures = task.evaluate(fitted, parts["test"], horizon=3.0, seed=4, convention="to_last")
    assert "horizon" not in plain
    assert figures.pop("horizon") == fitted.evaluate_horizon(parts["test"], 3.0, random_state=4)
    assert figures == task.evaluate(fitted, parts["test"], convention="to_last")


@pytest.mark.parametrize("convention", ["full", "from_first"])
def test_evaluate_tells_independence_and_balance_as_the_goodness_of_fit_does(parts, fitted, convention):
    figures = task.evaluate(fitted, parts["test"], convention=convention)
    fit = fitted.goodness_of_fit(parts["test"], convention=convention, by_type=False)
    if convention == "from_first":  # no censored piece is counted, in either form
        assert figures["count_balance"] == pytest.approx(
            (fit.expected - fit.n_events) / math.sqrt(fit.n_events)
        )
    for name in ("ks_pvalue", "ljung_box_pvalue", "count_balance"):
        assert figures[name] == getattr(fit, name)


def test_the_table_and_the_caption_show_the_horizon(parts, fitted):
    figures = task.evaluate(fitted, parts["test"], horizon=3.0)
    headers, rows = task.summary_rows(figures, "mine")
    assert headers[-2:] == ["OTD", "T-mAP"]
    assert [row[0] for row in rows] == ["mine", "no_events"]
    assert rows[0][-2:] == [figures["horizon"]["otd"], figures["horizon"]["t_map"]]
    assert rows[1][-2:] == [figures["horizon"]["baselines"]["no_events"]["otd"], 0.0]
    assert "within a horizon of 3, 5 histories" in task.caption(figures)


def test_simulate_passes_its_options_on(parts, fitted):
    nothing = task.simulate(fitted, n_paths=3, until=4.0, start=1.0, method="inverse", seed=5)
    same = fitted.sample(3, 4.0, start=1.0, method="inverse", random_state=5)
    assert nothing.digest() == same.digest()
    after = task.simulate(fitted, parts["test"], horizon=2.0, max_events=2, seed=5)
    assert (
        after.digest()
        == fitted.sample(1, horizon=2.0, max_events=2, history=parts["test"], random_state=5).digest()
    )
    with pytest.raises(ParameterError, match="'until_' is not an option of simulate"):
        task.simulate(fitted, until_=4.0)
    with pytest.raises(ParameterError, match="A start is for paths from nothing"):
        task.simulate(fitted, parts["test"], horizon=2.0, start=1.0)


def test_a_model_of_dates_draws_paths_in_dates():
    moments = pl.Series([f"2024-03-01T0{hour}:00" for hour in (0, 2, 5, 9)]).str.to_datetime()
    model = seqattn.PoissonProcess().fit({"seq_id": [0] * 4, "t": moments, "k": ["a", "b", "a", "a"]})
    with pytest.raises(ParameterError, match="paths from nothing need a start"):
        task.simulate(model, until=dt.date(2024, 4, 2))
    paths = task.simulate(model, start=dt.date(2024, 4, 1), until=dt.date(2024, 4, 2), seed=0)
    days = paths.to_frame()["t"].dt.date().unique().to_list()
    assert days == [dt.date(2024, 4, 1)]
    assert paths.end[0] - paths.start[0] == 24 * 3600


def test_the_table_has_the_model_first_and_a_title_for_each_value(parts):
    model = task.fit(task.build(TINY, seed=0), parts["train"], parts["dev"])
    figures = task.evaluate(model, parts["test"])
    headers, rows = task.summary_rows(figures, "mine")
    assert [row[0] for row in rows] == ["mine", *figures["baselines"]]
    assert {len(row) for row in rows} == {len(headers)}
    assert rows[0][headers.index("log-likelihood")] == figures["loglik_per_event"]
    assert rows[1][headers.index("RMSE")] == figures["baselines"]["poisson"]["rmse"]
    assert rows[0][headers.index("KS p")] == figures["ks_pvalue"]


def test_the_caption_names_convention_window_and_number_of_events(parts, fitted):
    figures = task.evaluate(fitted, parts["test"], convention="to_last")
    text = task.caption(figures)
    assert "'to_last'" in text
    assert "'last_event'" in text
    assert f"{figures['n_events']} events" in text


def test_plots_show_a_sequence_and_the_goodness_of_fit(parts, fitted, tmp_path):
    paths = task.plots(fitted, parts["test"], tmp_path)
    assert [path.name for path in paths] == ["intensity.png", "goodness_of_fit.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_no_fit_is_drawn_where_no_event_is_scored(fitted, tmp_path):
    one = seqattn.Sequences.from_lists([([1.0], ["a"])], labels=("a", "b"), window=(None, 5.0))
    assert [path.name for path in task.plots(fitted, one, tmp_path)] == ["intensity.png"]


def test_there_is_nothing_to_plot_where_no_window_has_a_length(fitted, tmp_path):
    single = seqattn.Sequences.from_lists([([1.0], ["a"])], labels=("a", "b"), window=(1.0, 1.0))
    assert task.plots(fitted, single, tmp_path) == []


def test_describe_counts(parts):
    events = parts["train"].n_events
    assert task.describe(parts["train"]) == f"12 sequences, {events} events, 2 types"
    assert np.isscalar(events)
