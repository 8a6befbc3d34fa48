from __future__ import annotations

import copy
import io
import json

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, RegressorMixin, clone
from train.small import Regression, Rows, cut, rows, shuffled

from seqattn.train import callbacks
from seqattn.train.callbacks import CallbackSupport, JsonLog, Progress, ScikitLearnCallbacks, with_callbacks
from seqattn.train.loop import FitSettings, fit_module

sklearn_callback = pytest.importorskip("sklearn.callback", reason="scikit-learn before 1.9 has no callbacks")

DATA = rows(30)
X, Y = DATA.x.numpy(), DATA.y[:, 0].numpy()


class Interrupt:
    """An observer that raises when it is shown a given epoch."""

    def __init__(self, epoch):
        self.at = epoch

    def begin(self, settings):
        pass

    def epoch(self, record):
        if record["epoch"] == self.at:
            raise KeyboardInterrupt

    def end(self, history):
        pass


class Terminal(io.StringIO):
    def isatty(self):
        return True


def fit(*observers, epochs=4, valid=True, **options):
    check = (lambda: cut(rows(10, seed=3), 10)) if valid else None
    settings = FitSettings(epochs, options.pop("learning_rate", 0.05), **options.pop("settings", {}))
    return fit_module(Regression(), shuffled(DATA, 10), check, settings, observers=observers, **options)


def test_progress_writes_one_line_per_epoch_to_a_file():
    stream = io.StringIO()
    history = fit(Progress(stream))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    for line, record in zip(lines, history.records, strict=True):
        assert line.startswith(f"epoch {record['epoch']}/4  train {record['train_loss']:.4f}  ")
        assert f"  valid {record['valid_loss']:.4f}  " in line
        assert f"  {record['items_per_second']:,.0f} items/s" in line
    best = min(history.records, key=lambda record: record["valid_loss"])
    assert f"best {best['valid_loss']:.4f} (epoch {best['epoch']})" in lines[-1]
    assert all(" left" in line for line in lines[:-1])
    assert " left" not in lines[-1]


def test_progress_without_validation_speaks_of_training_only():
    stream = io.StringIO()
    fit(Progress(stream), valid=False)
    assert "valid" not in stream.getvalue()
    assert "best" not in stream.getvalue()


def test_progress_keeps_one_line_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    fit(Progress(stream))
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    pieces = text.rstrip("\n").split("\r")[1:]
    assert len(pieces) == 4
    assert all(piece.endswith("\x1b[K") and len(piece) == 39 + len("\x1b[K") for piece in pieces)


def test_progress_says_when_training_stopped_early():
    stream = io.StringIO()
    history = fit(Progress(stream), epochs=60, learning_rate=0.5, settings={"patience": 2})
    assert history.stopped_early
    assert stream.getvalue().splitlines()[-1] == (
        f"stopped after epoch {len(history.records)} of 60; the weights are those of epoch {history.best_epoch}"
    )


def test_progress_goes_to_standard_error_and_silence_is_the_rule(capsys):
    fit()
    assert capsys.readouterr() == ("", "")
    fit(Progress())
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 4


def test_time_is_told_as_on_a_clock():
    found = [callbacks._clock(seconds) for seconds in (0.4, 59.6, 61.0, 3600.0, 36_061.0)]
    assert found == ["0:00", "1:00", "1:01", "1:00:00", "10:01:01"]


def test_the_log_holds_the_records(tmp_path):
    history = fit(JsonLog(tmp_path / "new" / "log.jsonl"))
    lines = (tmp_path / "new" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history.records


def test_the_log_of_a_resumed_fit_has_each_epoch_once(tmp_path):
    log, checkpoint = tmp_path / "log.jsonl", tmp_path / "checkpoint"
    for epoch in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            # The log is written before the interruption, the checkpoint is not.
            fit(JsonLog(log), Interrupt(epoch), epochs=6, checkpoint=checkpoint)
        with log.open("a") as file:
            file.write('{"epoch": ')
    history = fit(JsonLog(log), epochs=6, checkpoint=checkpoint)
    assert [json.loads(line) for line in log.read_text().splitlines()] == history.records


def test_the_log_of_a_new_fit_begins_anew(tmp_path):
    log = JsonLog(tmp_path / "log.jsonl")
    fit(log, epochs=5)
    history = fit(log, epochs=2)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history.records


class Tiny(RegressorMixin, CallbackSupport, BaseEstimator):
    """The smallest estimator that trains with the fit loop."""

    def __init__(self, epochs=5, learning_rate=0.05, patience=None):
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.patience = patience

    @with_callbacks
    def fit(self, X, y=None, **metadata):
        target = X.sum(1) if y is None else y
        data = Rows(torch.as_tensor(X), torch.as_tensor(target)[:, None])
        module = Regression()
        observer = ScikitLearnCallbacks(
            self, X, y, metadata=metadata, fitted=lambda: {"module_": copy.deepcopy(module)}
        )
        settings = FitSettings(self.epochs, self.learning_rate, self.patience)
        valid = None if self.patience is None else lambda: [data]
        self.history_ = fit_module(module, shuffled(data, 10), valid, settings, observers=[observer])
        self.module_ = module
        return self

    def predict(self, X):
        with torch.no_grad():
            return self.module_(torch.as_tensor(X))[:, 0].numpy()


class Spy:
    """A callback that keeps what scikit-learn hands to it."""

    def __init__(self, stop_at=None):
        self.calls, self.stop_at = [], stop_at

    def setup(self, estimator, context):
        self.calls.append(("setup", context.max_subtasks))

    def teardown(self, estimator, context):
        self.calls.append(("teardown", None))

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None, metadata=None):
        self.calls.append((f"begin {context.task_name}", context.task_id))

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, metadata=None, fitted_estimator=None):
        self.calls.append((f"end {context.task_name}", context.task_id))
        self.metadata, self.fitted, self.data = metadata, fitted_estimator, (X, y)
        if context.task_name == "epoch":
            self.records = [*getattr(self, "records", []), metadata]
        return context.task_id == self.stop_at and context.task_name == "epoch"


def test_callbacks_see_the_fit_and_its_epochs_as_tasks():
    spy = Spy()
    Tiny(epochs=2).set_callbacks(spy).fit(X)
    assert spy.calls == [
        ("setup", 2),
        ("begin fit", 0),
        *[("begin epoch", 0), ("end epoch", 0)],
        *[("begin epoch", 1), ("end epoch", 1)],
        ("end fit", 0),
        ("teardown", None),
    ]


def test_callbacks_get_the_record_of_each_epoch():
    spy = Spy()
    model = Tiny(epochs=3).set_callbacks(spy).fit(X)
    assert spy.records == model.history_.records


def test_with_targets_callbacks_get_what_fit_got_and_the_history_from_the_copy():
    spy = Spy()
    weights = np.ones(len(X))
    model = Tiny(epochs=3).set_callbacks(spy).fit(X, Y, sample_weight=weights)
    assert [set(metadata) for metadata in spy.records] == [{"sample_weight"}] * 3
    assert spy.records[0]["sample_weight"] is weights
    assert spy.data == (X, Y) or (spy.data[0] is X and spy.data[1] is Y)
    assert spy.fitted.history_ == model.history_


def test_a_callback_can_stop_training():
    model = Tiny(epochs=9).set_callbacks(Spy(stop_at=3)).fit(X, Y)
    assert len(model.history_.records) == 4
    assert model.history_.stopped_early


def test_tasks_are_closed_when_training_stops_by_itself():
    spy = Spy()
    model = Tiny(epochs=60, learning_rate=2.0, patience=1).set_callbacks(spy).fit(X, Y)
    assert model.history_.stopped_early
    names = [name for name, _ in spy.calls]
    assert names.count("begin epoch") == names.count("end epoch") == len(model.history_.records)


def test_callbacks_are_closed_after_an_error():
    class Failing(Spy):
        def on_fit_task_end(self, estimator, context):
            raise ZeroDivisionError

    spy = Failing()
    with pytest.raises(ZeroDivisionError):
        Tiny().set_callbacks(spy).fit(X, Y)
    assert spy.calls[-1] == ("teardown", None)


def test_the_scoring_monitor_scores_each_epoch():
    monitor = sklearn_callback.ScoringMonitor(scoring="r2")
    model = Tiny(epochs=6).set_callbacks(monitor).fit(X, Y)
    # The root task is scored too, after the last epoch.
    scores = {row["task_id_path"]: row["r2"] for row in monitor.get_logs(select="most_recent").data}
    assert sorted(scores) == [(0,), *[(0, epoch) for epoch in range(6)]]
    shorter = [Tiny(epochs=6).set_callbacks(Spy(stop_at=epoch)).fit(X, Y).score(X, Y) for epoch in range(6)]
    assert [scores[0, epoch] for epoch in range(6)] == pytest.approx(shorter, rel=1e-12)
    assert scores[0,] == model.score(X, Y)
    assert len(set(shorter)) == 6


def test_the_progress_bar_of_scikit_learn_works(capsys):
    pytest.importorskip("rich")
    plain = Tiny(epochs=3).fit(X, Y).predict(X)
    shown = Tiny(epochs=3).set_callbacks(sklearn_callback.ProgressBar()).fit(X, Y).predict(X)
    assert np.array_equal(plain, shown)
    assert "Tiny - fit" in capsys.readouterr().out


def test_callbacks_reach_an_estimator_within_a_search():
    from sklearn.model_selection import GridSearchCV

    search = GridSearchCV(Tiny(), {"epochs": [2, 3]}, cv=2)
    if not hasattr(search, "set_callbacks"):
        pytest.skip("this scikit-learn's search has no callbacks")

    class Deep(Spy):
        max_propagation_depth = None

    spy = Deep()
    search.set_callbacks(spy).fit(X, Y)
    assert [name for name, _ in spy.calls].count("end epoch") == 2 * (2 + 3) + len(
        search.best_estimator_.history_.records
    )


def test_an_estimator_with_callbacks_is_cloned_and_needs_none():
    model = clone(Tiny(epochs=2).set_callbacks(Spy()))
    assert len(model.fit(X, Y).history_.records) == 2
    assert not hasattr(model, "_callback_fit_ctx")


def test_an_estimator_without_support_trains_as_before():
    class Plain(BaseEstimator):
        pass

    history = fit(ScikitLearnCallbacks(Plain(), X, Y))
    assert len(history.records) == 4


OLD = """
import sys
sys.modules["sklearn.callback"] = None  # as in scikit-learn 1.8
from sklearn.base import BaseEstimator
from train.small import Regression, rows, shuffled
from seqattn.train.callbacks import CallbackSupport, ScikitLearnCallbacks, with_callbacks
from seqattn.train.loop import FitSettings, fit_module

class Tiny(CallbackSupport, BaseEstimator):
    @with_callbacks
    def fit(self, X):
        observer = ScikitLearnCallbacks(self, X)
        self.history_ = fit_module(Regression(), shuffled(rows(9), 3), None, FitSettings(3, 0.1), observers=[observer])
        return self

print(len(Tiny().fit(1).history_.records), CallbackSupport.__module__)
"""


@pytest.mark.slow
def test_with_an_older_scikit_learn_everything_works_without_callbacks(run_python, root):
    found = run_python(OLD, PYTHONPATH=f"{root}:{root / 'tests'}")
    assert (found.stdout, found.stderr) == ("3 seqattn.train.callbacks\n", "")
