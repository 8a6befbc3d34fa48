from __future__ import annotations

import datetime as dt
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hawkes.reference import CROSS, HAWKES, hawkes_data, hawkes_process, paired_error, poisson_data
from sklearn.base import clone

import seqattn
from seqattn import SAHP, Sequences
from seqattn.attention import Segments
from seqattn.errors import ArtifactError, DataError, ParameterError, SeqattnWarning
from seqattn.hawkes.diagnose import plot_intensity

SMALL = {"epochs": 2, "d_model": 8, "random_state": 0, "baselines": False, "device": "cpu"}


@pytest.fixture(scope="module")
def fitted() -> SAHP:
    """A model that learned something, on data with labels that are text."""
    data = hawkes_data(HAWKES, 40, seed=1)
    named = data.to_frame().with_columns(pl.col("k").replace_strict({0: "buy", 1: "sell"}))
    sequences = Sequences.from_table(named, window=(0.0, 100.0))
    return SAHP(epochs=6, d_model=16, random_state=0, device="cpu").fit(sequences)


@pytest.fixture(scope="module")
def held_out() -> Sequences:
    data = hawkes_data(HAWKES, 10, seed=2)
    named = data.to_frame().with_columns(pl.col("k").replace_strict({0: "buy", 1: "sell"}))
    return Sequences.from_table(named, window=(0.0, 100.0))


def differences(model, oracle, data, convention="full"):
    """Return the difference of per-event values and its standard error, paired over sequences."""
    mine, true = model._scores(data), oracle._scores(data)
    counts = np.bincount(true.row[true.counted(convention) & true.ends], minlength=len(data))
    values = [scores.per_sequence(convention, len(data)) for scores in (mine, true)]
    return float((values[0] - values[1]).sum() / counts.sum()), paired_error(*values, counts)


@pytest.mark.slow
def test_poisson_floor():
    """On a Poisson process nothing beats 1 - ln 0.25: any leak of the target would."""
    train, test = poisson_data(120, 0), poisson_data(60, 1)
    model = SAHP(epochs=10, random_state=0, baselines=False, device="cpu").fit(train)
    oracle = seqattn.PoissonProcess().fit(train)
    oracle.rate_ = np.full(4, 0.25)
    gain, error = differences(model, oracle, test)
    assert -0.01 < gain < 3 * error
    assert oracle.log_likelihood(test).per_event == pytest.approx(-(1 - np.log(0.25)), abs=0.05)


@pytest.mark.slow
def test_oracle_floor_with_240_sequences():
    train, dev, test = (hawkes_data(HAWKES, n, seed) for n, seed in ((240, 0), (60, 1), (120, 2)))
    model = SAHP(epochs=30, batch_size=1024, random_state=0, baselines=False, device="cpu")
    gain, error = differences(model.fit(train, validation=dev), hawkes_process(HAWKES), test)
    assert -0.03 < gain < 3 * error
    # The effects on the intensity have a ground truth, too: excitation times the share that falls within the horizon.
    _, excitation, decay = HAWKES
    found, true = model.effect_matrix(test, 2.0).values, excitation * (1 - np.exp(-2 * decay))
    assert abs(found[1, 0]) < 0.05
    assert (np.argsort(found, axis=None) == np.argsort(true, axis=None)).all()


@pytest.mark.slow
def test_oracle_floor_with_800_sequences():
    train, dev, test = (hawkes_data(HAWKES, n, seed) for n, seed in ((800, 10), (100, 11), (120, 12)))
    model = SAHP(epochs=20, batch_size=4096, random_state=0, baselines=False, device="cpu")
    gain, error = differences(model.fit(train, validation=dev), hawkes_process(HAWKES), test)
    assert -0.02 < gain < 3 * error


@pytest.mark.slow
def test_cross_excitation_is_learned_not_copied():
    """Each type excites the other: a model that has seen its target copies the last type."""
    train, dev, test = (hawkes_data(CROSS, n, seed) for n, seed in ((120, 0), (30, 1), (60, 2)))
    model = SAHP(epochs=25, batch_size=1024, random_state=0, baselines=False, device="cpu")
    model.fit(train, validation=dev)
    mine, oracle = model.forecasts(test, "from_first"), hawkes_process(CROSS).forecasts(test, "from_first")
    last = np.concatenate([test.sequence(i)[1][:-1] for i in range(len(test))])
    accuracy, best = np.mean(mine.guess == mine.kind), np.mean(oracle.guess == oracle.kind)
    copying = np.mean(last == mine.kind)
    assert accuracy > best - 0.03
    assert accuracy > copying + 0.1
    assert np.mean(mine.guess == last) < 0.3


@pytest.mark.parametrize("form", ["mark", "hidden"])
def test_both_forms_fit_and_forecast(form, held_out):
    model = SAHP(**{**SMALL, "form": form}).fit(held_out)
    result = model.evaluate(held_out)
    assert np.isfinite(result["loglik_per_event"])
    assert result["integral_error"] < 1e-3
    assert model.predict_next(held_out, horizon=1.0)["p_event"].is_between(0, 1).all()
    assert (model.intensity(held_out, [50.0]) > 0).all()


def test_unit_of_time_does_not_matter():
    data = hawkes_data(HAWKES, 12, seed=4)
    pairs = [data.sequence(i) for i in range(len(data))]
    hours = Sequences.from_lists(pairs, window=(0.0, 100.0), labels=2)
    seconds = Sequences.from_lists([(t * 3600, k) for t, k in pairs], window=(0.0, 360_000.0), labels=2)
    one, other = SAHP(**SMALL).fit(hours), SAHP(**SMALL).fit(seconds)
    for name, value in one.module_.state_dict().items():
        torch.testing.assert_close(other.module_.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    moved = other.score(seconds) + np.log(3600)
    assert moved == pytest.approx(one.score(hours), abs=1e-5)


def test_shift_of_times_does_not_matter(fitted, held_out):
    frame = held_out.to_frame().with_columns(pl.col("t") + 50_000.0)
    later = Sequences.from_table(frame, window=(50_000.0, 50_100.0), labels=held_out.labels)
    assert fitted.score(later) == pytest.approx(fitted.score(held_out), abs=1e-6)


def test_names_of_types_do_not_matter(held_out):
    """Training is the same whatever the types are called, as long as their order is."""
    frame = held_out.to_frame().with_columns(pl.col("k").replace_strict({"buy": 3, "sell": 9}))
    numbers = Sequences.from_table(frame, window=(0.0, 100.0))
    one, other = SAHP(**SMALL).fit(held_out), SAHP(**SMALL).fit(numbers)
    assert one.score(held_out) == other.score(numbers)
    assert other.predict(numbers)["k"].unique().is_in([3, 9]).all()


def test_company_of_a_sequence_does_not_matter(fitted, held_out):
    """In one published program the likelihood of a sequence depends on the longest sequence of its batch."""
    together = fitted._scores(held_out).per_sequence("full", len(held_out))
    alone = [fitted.log_likelihood(held_out.select([i])).total for i in range(len(held_out))]
    counts = held_out.lengths
    np.testing.assert_allclose(together / counts, np.array(alone) / counts, atol=1e-6)


def test_same_seed_same_bits_and_other_seed_other_bits(held_out):
    one, same, other = (SAHP(**{**SMALL, "random_state": seed}).fit(held_out) for seed in (0, 0, 1))
    for name, value in one.module_.state_dict().items():
        assert torch.equal(value, same.module_.state_dict()[name])
    assert one.score(held_out) != other.score(held_out)


def test_saved_model_gives_the_same_bits(fitted, held_out, tmp_path):
    path = fitted.save(tmp_path / "model.safetensors")
    opened = seqattn.load(path)
    assert opened.predict(held_out).equals(fitted.predict(held_out))
    assert opened.evaluate(held_out) == fitted.evaluate(held_out)
    assert opened.labels_ == ("buy", "sell")
    assert opened.get_params()["d_model"] == 16


def test_predict_gives_a_row_per_event_in_the_users_words(fitted, held_out):
    table = fitted.predict(held_out, quantiles=(0.1, 0.9))
    assert table.columns[:6] == ["seq_id", "position", "t_mean", "t_median", "t_q0.1", "t_q0.9"]
    assert table.height == held_out.n_events
    assert table["seq_id"].to_list() == held_out.to_frame()["seq_id"].to_list()
    assert set(table["k"]) <= {"buy", "sell"}
    assert (table["t_q0.1"] < table["t_median"]).all()
    assert (table["t_median"] < table["t_q0.9"]).all()
    times = held_out.times
    first = held_out.offsets[:-1]
    assert (np.delete(table["t_q0.1"].to_numpy(), first) > np.delete(np.roll(times, 1), first)).all()
    assert table["scored"].all()


def test_tables_come_back_as_they_came(fitted, held_out):
    frame = held_out.to_frame()
    assert isinstance(fitted.predict(frame), pl.DataFrame)
    pandas = frame.to_dict(as_series=False)
    back = fitted.predict(pd.DataFrame(pandas))
    assert isinstance(back, pd.DataFrame)
    np.testing.assert_array_equal(back["t_mean"], fitted.predict(frame)["t_mean"])


def test_dates_come_back_as_dates():
    start = np.datetime64("2026-01-01", "us")
    frame = pl.DataFrame(
        {
            "seq_id": ["a", "a", "b", "b"],
            "t": (start + np.array([0, 3, 1, 4]) * np.timedelta64(3600, "s")).tolist(),
            "k": ["buy", "sell", "buy", "buy"],
        }
    )
    model = SAHP(**SMALL, validation=None).fit(frame)
    table = model.predict_next(frame)
    assert table["t_mean"].dtype == pl.Datetime("us")
    now = np.datetime64("2026-01-03T00:00:00", "us")
    later = model.predict_next(frame, now=now)
    assert (later["t_median"].to_numpy() > now).all()


def test_probabilities_sum_to_one_and_name_their_condition(fitted, held_out):
    for when in ("unknown", "given"):
        chances = fitted.predict_proba(held_out, when=when)
        assert chances.shape == (held_out.n_events, 2)
        np.testing.assert_allclose(chances.sum(1), 1, atol=1e-6)
    assert not np.allclose(fitted.predict_proba(held_out), fitted.predict_proba(held_out, when="given"))
    with pytest.raises(ParameterError, match="'known'.*'unknown' or 'given'"):
        fitted.predict_proba(held_out, when="known")


def test_next_event_after_waiting(fitted, held_out):
    """Waiting without an event moves the forecast on, and the chance of an event follows the survival."""
    at_end = fitted.predict_next(held_out, horizon=5.0)
    assert (at_end["t_median"] > 100.0).all()
    assert at_end["p_event"].is_between(0, 1, closed="none").all()
    chance = fitted.predict_next(held_out, horizon=1e6)["p_event"]
    assert (chance > 0.999).all()
    last = np.array([held_out.sequence(i)[0][-1] for i in range(len(held_out))])
    now = fitted.predict_next(held_out, now=last)
    history = fitted.predict(held_out)
    assert now.height == len(held_out)
    assert history.height == held_out.n_events
    with pytest.raises(DataError, match=r"now=.*before the last event of sequence"):
        fitted.predict_next(held_out, now=0.5)


def test_intensity_is_left_continuous_and_agrees_with_the_likelihood(fitted, held_out):
    one = held_out.select([0])
    times, kinds = one.sequence(0)
    at = fitted.intensity(one, times)[0]
    scores = fitted._scores(one)
    own = np.log(at[np.arange(len(times)), kinds])
    np.testing.assert_allclose(own, (scores.log_total + scores.log_type)[:-1], atol=1e-4)
    grid = np.linspace(0, 100, 100_001)
    middle = (grid[1:] + grid[:-1]) / 2
    mass = fitted.intensity(one, middle)[0].sum() * 1e-3
    assert mass == pytest.approx(scores.compensator.sum(), rel=1e-3)
    with pytest.raises(DataError, match="before the window"):
        fitted.intensity(one, [-1.0])


def test_evaluation_prints_baselines_and_agrees_with_its_parts(fitted, held_out):
    result = fitted.evaluate(held_out, "from_first")
    likelihood = fitted.log_likelihood(held_out, "from_first")
    assert result["loglik_per_event"] == pytest.approx(likelihood.per_event)
    assert result["convention"] == "from_first"
    assert result["window"] == "given"
    assert set(result["baselines"]) == {"poisson", "renewal", "markov", "exponential_hawkes"}
    own = {key for key in result if key != "baselines"}
    assert all(set(values) == own for values in result["baselines"].values())
    table, forecasts = fitted.predict(held_out), fitted.forecasts(held_out)
    gaps = table["t_mean"].to_numpy() - np.where(
        table["position"] == 0, 0.0, np.concatenate([[0.0], held_out.times[:-1]])
    )
    np.testing.assert_allclose(gaps, forecasts.mean, rtol=1e-5, atol=1e-9)


def test_learning_beats_the_poisson_process(fitted, held_out):
    result = fitted.evaluate(held_out)
    assert result["loglik_per_event"] > result["baselines"]["poisson"]["loglik_per_event"]


def test_unknown_types_are_refused_or_counted(fitted):
    rows = [([1.0, 2.0], ["buy", "hold"])]
    with pytest.raises(DataError, match="'hold'"):
        fitted.score(rows)
    lenient = SAHP(**SMALL, unknown="ignore", validation=None).fit([([1.0, 2.0, 3.0], ["a", "b", "a"])])
    with pytest.warns(SeqattnWarning, match="1"):
        lenient.score([([1.0, 2.0, 3.0], ["a", "b", "c"])])


def test_type_without_training_data_is_allowed_and_warned_of():
    rows = [([1.0, 2.0, 3.0], [0, 1, 0]), ([1.0, 2.5], [1, 0])]
    with pytest.warns(SeqattnWarning, match="1 of 3 types never occur"):
        model = SAHP(**SMALL, types=3, validation=None).fit(rows)
    assert np.isfinite(model.score([([1.0, 2.0], [0, 2])]))


def test_one_type_has_no_type_metrics():
    data = poisson_data(6, 0, n_types=1)
    result = SAHP(**SMALL).fit(data).evaluate(data)
    assert result["accuracy"] is None
    assert result["macro_f1"] is None
    assert result["loglik_type"] == pytest.approx(0, abs=1e-6)


def test_empty_and_single_event_sequences_are_scored():
    rows = [([], []), ([4.0], [1]), ([1.0, 2.0], [0, 1]), ([3.0, 8.0], [1, 1])]
    data = Sequences.from_lists(rows, window=(0.0, 10.0), labels=2)
    model = SAHP(**SMALL, validation=None).fit(data)
    assert model.log_likelihood(data).n_events == 5
    assert model.predict(data).height == 5
    assert model.predict_next(data).height == 4
    empty = model.log_likelihood(data.select([0]))
    assert empty.total < 0


def test_one_sequence_cannot_be_held_out():
    with pytest.raises(DataError, match="validation=None"):
        SAHP(**SMALL).fit([([1.0, 2.0, 3.0], [0, 1, 0])])


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5, -0.1])
def test_impossible_shares_are_refused(share, held_out):
    with pytest.raises(ParameterError, match="between 0 and 1"):
        SAHP(**SMALL, validation=share).fit(held_out)


def test_grid_of_times_is_audited(fitted):
    rng = np.random.default_rng(0)
    pairs = [(np.unique(np.round(np.sort(rng.uniform(0, 100, 80)), 1)), None) for _ in range(5)]
    rows = [(times, rng.choice(["buy", "sell"], len(times))) for times, _ in pairs]
    audit = fitted.audit_grid(Sequences.from_lists(rows, window=(0.0, 100.1), labels=("buy", "sell")))
    assert audit["spacing"] == pytest.approx(0.1)
    assert audit["loglik_jittered"] != audit["loglik_per_event"]
    free = fitted.audit_grid(hawkes_free())
    assert free["spacing"] is None


def hawkes_free() -> Sequences:
    frame = (
        hawkes_data(HAWKES, 3, seed=6)
        .to_frame()
        .with_columns(pl.col("k").replace_strict({0: "buy", 1: "sell"}))
    )
    return Sequences.from_table(frame, window=(0.0, 100.0))


def test_restart_from_a_checkpoint_changes_nothing(held_out, tmp_path):
    path = tmp_path / "fit.safetensors"
    options = {**SMALL, "epochs": 4, "dropout": 0.2}
    straight = SAHP(**options).fit(held_out)

    class Stop(Exception):
        pass

    class Interrupt:
        def begin(self, settings):
            pass

        def epoch(self, record):
            if record["epoch"] == 3:
                raise Stop

        def end(self, history):
            pass

    with pytest.raises(Stop):
        SAHP(**options).fit(held_out, checkpoint=path, observers=[Interrupt()])
    resumed = SAHP(**options).fit(held_out, checkpoint=path)
    for name, value in straight.module_.state_dict().items():
        assert torch.equal(value, resumed.module_.state_dict()[name])


@pytest.mark.parametrize("precision", ["bf16", "float64"])
def test_other_precisions_come_near(precision, held_out):
    plain = SAHP(**SMALL).fit(held_out).score(held_out)
    assert SAHP(**SMALL, precision=precision).fit(held_out).score(held_out) == pytest.approx(plain, abs=0.02)


@pytest.mark.parametrize("integral", ["gauss", "trapezoid", "monte_carlo"])
def test_other_integrals_train(integral, held_out):
    model = SAHP(**SMALL, integral=integral, nodes=20).fit(held_out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeqattnWarning)
        assert model.score(held_out) == model.score(held_out)


def test_integral_of_a_crude_rule_is_warned_of(held_out):
    model = SAHP(**SMALL, integral="trapezoid", nodes=2).fit(held_out)
    with pytest.warns(SeqattnWarning, match="integral of the intensity is off"):
        model.evaluate(held_out)


def test_a_negative_loss_is_no_reason_to_stop():
    """Densities above 1 are legitimate: one published program stops as soon as the summed loss is negative."""
    burst = np.arange(1, 31) + 1e-4 * np.arange(30)
    rows = [(np.sort(np.concatenate([burst, burst + 1e-3])), [0, 1] * 30) for _ in range(8)]
    data = Sequences.from_lists(rows, window=(0.0, 40.0), labels=2)
    options = {"epochs": 30, "patience": None, "learning_rate": 0.03, "batch_size": 128, "dropout": 0.0}
    model = SAHP(**{**SMALL, **options}).fit(data)
    losses = [record["train_loss"] for record in model.history_.records]
    assert len(losses) == 30
    assert losses[-1] < 0
    assert model.history_.best_epoch == 1 + int(np.argmin([r["valid_loss"] for r in model.history_.records]))


def test_scikit_learn_callbacks_score_every_epoch(held_out):
    callback = pytest.importorskip("sklearn.callback")
    monitor = callback.ScoringMonitor(scoring={"score": lambda fitted, X, y: fitted.score(X)})
    model = SAHP(**{**SMALL, "validation": None}).set_callbacks(monitor).fit(held_out)
    rows = [row for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    assert len(rows) == 2
    assert rows[-1]["score"] == pytest.approx(model.score(held_out), abs=1e-6)


def test_dates_serve_as_now_and_as_times_and_in_plots(tmp_path):
    start = dt.datetime(2026, 1, 1)  # noqa: DTZ001 - the data have no zone
    rows = [([start + dt.timedelta(hours=h) for h in (0, 1, 3, 4)], [0, 1, 0, 1])] * 3
    model = SAHP(**SMALL, validation=None).fit(rows)
    now = start + dt.timedelta(hours=9)
    assert (model.predict_next(rows, now=now)["t_median"] > now).all()
    assert (model.predict_next(rows, now=[now] * 3)["t_median"] > now).all()
    assert model.intensity(rows, now).shape == (3, 1, 2)
    path = plot_intensity(model, rows, 0, tmp_path / "intensity.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="times are numbers, but the model was fitted to dates"):
        model.score([([0.0, 1.0], [0, 1])])


def test_now_must_be_finite(fitted, held_out):
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(DataError, match="finite"):
            fitted.predict_next(held_out, now=wrong)


def copied(fitted, **params):
    """Return a model with the fitted parts of another and parameters of its own."""
    other = clone(fitted).set_params(**params)
    other.__dict__.update({name: value for name, value in vars(fitted).items() if name.endswith("_")})
    return other


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_does_not_lock_the_model(fitted, held_out, tmp_path):
    path = copied(fitted, device="cuda").save(tmp_path / "model.safetensors")
    with pytest.warns(SeqattnWarning, match="opened on the CPU"):
        opened = seqattn.load(path)
    assert opened.score(held_out) == fitted.score(held_out)


def test_parts_that_do_not_fit_are_an_artifact_error(fitted, tmp_path):
    with pytest.raises(ArtifactError, match="do not fit together"):
        seqattn.load(copied(fitted, d_model=32).save(tmp_path / "model.safetensors"))
    table = pl.DataFrame({"seq_id": [0], "t0": [0.0], "t1": [5.0]})
    model = seqattn.PoissonProcess(window=table).fit([([1.0, 2.0], [0, 1])])
    with pytest.raises(ArtifactError, match="parameter window is a DataFrame"):
        model.save(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_heads", 0), ("n_layers", 0), ("dropout", 1.0), ("nodes", 1), ("batch_size", 0), ("unknown", "drop")],
)
def test_parameters_out_of_range_are_refused(name, value, held_out):
    with pytest.raises(ParameterError, match=f"{name}={value!r}"):
        SAHP(**{**SMALL, name: value}).fit(held_out)


def test_held_out_sequences_have_events():
    rows = [([], []), ([1.0, 2.0], [0, 1]), ([], []), ([3.0], [1])]
    for seed in range(3):
        model = SAHP(**{**SMALL, "random_state": seed}, window=(0.0, 30.0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SeqattnWarning)  # a type may be held out
            model.fit(rows)
        assert model.history_.records[-1]["valid_loss"] is not None


def test_quantile_levels_are_checked_and_kept_apart(fitted, held_out):
    assert "t_q0.5" in fitted.predict(held_out, quantiles=(0.5,)).columns
    table = fitted.predict(held_out, quantiles=(0.123456789, 0.123456788))
    assert table.width == len(fitted.predict(held_out).columns) + 2
    with pytest.raises(ParameterError, match="repeat"):
        fitted.predict(held_out, quantiles=(0.1, 0.1))
    with pytest.raises(ParameterError, match="between 0 and 1"):
        fitted.predict(held_out, quantiles=(1.0,))


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("neighborhood(3)", "has no meaning with causal=True"),
        (Segments(torch.zeros(3, dtype=torch.int64)), "label for each token"),
    ],
)
def test_patterns_that_no_point_process_can_use_are_refused_before_data_are_read(pattern, text):
    with pytest.raises(ParameterError, match=text):
        SAHP(attention=pattern).fit("no such file.csv")
