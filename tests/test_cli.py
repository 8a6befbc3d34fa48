"""The commands as a person or a script uses them: what is printed where, exit codes, files, and interruptions."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result
from small_events import SIZES, TINY, draw, write_splits

import seqattn
from seqattn.cli import cli

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "import sys; from seqattn.cli import main; sys.argv[0] = 'seqattn'; main()"
SET = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
METRICS = {
    "loglik_per_event",
    "loglik_time",
    "loglik_type",
    "convention",
    "n_events",
    "rmse",
    "mae",
    "accuracy",
    "macro_f1",
    "ks_pvalue",
}


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{arguments}: {result.exit_code}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    return result


def start(*arguments: str | Path, folder: Path) -> subprocess.Popen[str]:
    """Start the command in a process group of its own, as a shell does."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_splits(tmp_path_factory.mktemp("data") / "clicks")


@pytest.fixture(scope="module")
def fitted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Fit once, for tests that only look."""
    folder = tmp_path_factory.mktemp("run") / "fitted"
    return folder, run("fit", "hawkes", "--data", data, *SET, "--output", folder, "--json")


# -- fit -------------------------------------------------------------------------------------------------------


def test_fit_prints_one_json_object_and_nothing_else_on_stdout(fitted, data):
    _, result = fitted
    figures = json.loads(result.stdout)
    assert METRICS | {"baselines"} <= figures["validation"].keys()
    assert figures["validation"]["baselines"].keys() == {"poisson", "renewal", "markov", "exponential_hawkes"}
    assert (figures["epochs"], figures["data"]) == (2, str(data))
    assert "train: 12 sequences" in result.stderr


def test_fit_writes_the_model_its_history_its_settings_and_a_picture(fitted):
    folder, _ = fitted
    found = {path.name for path in folder.iterdir()}
    assert found == {"model.safetensors", "config.toml", "history.jsonl", "figures.json", "training.png"}
    assert [json.loads(line)["epoch"] for line in (folder / "history.jsonl").read_text().splitlines()] == [
        1,
        2,
    ]
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")


def test_fit_shows_the_figures_on_the_development_data(fitted, data):
    folder, result = fitted
    model = seqattn.load(folder)
    expected = model.evaluate(pl.read_csv(data / "dev.csv"))
    figures = json.loads(result.stdout)["validation"]
    assert figures["loglik_per_event"] == expected["loglik_per_event"]
    assert figures["baselines"]["markov"]["rmse"] == expected["baselines"]["markov"]["rmse"]


def test_fit_prints_a_table_with_a_row_per_baseline(data, tmp_path):
    text = run("fit", "hawkes", "--data", data, *SET, "--output", tmp_path / "run").stdout
    lines = text.splitlines()
    names = ["sahp", "poisson", "renewal", "markov", "exponential_hawkes"]
    assert [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in names] == names
    assert lines[-1] == f"Model: {tmp_path / 'run' / 'model.safetensors'}"


def test_fit_does_not_need_the_test_data(tmp_path):
    folder = write_splits(tmp_path / "two", ("train", "dev"))
    run("fit", "hawkes", "--data", folder, *SET, "--output", tmp_path / "run")


def test_a_complete_run_is_told_again_and_not_trained_again(data, tmp_path):
    command = ("fit", "hawkes", "--data", data, *SET, "--set", "baselines=false", "--output", tmp_path)
    first = run(*command)
    written = (tmp_path / "model.safetensors").stat().st_mtime_ns
    second = run(*command)
    assert second.stdout == first.stdout
    assert "is complete" in second.stderr
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == written


def test_another_run_in_the_folder_is_refused_unless_it_may_be_replaced(data, tmp_path):
    command = ("fit", "hawkes", "--data", data, *SET, "--set", "baselines=false", "--output", tmp_path)
    run(*command)
    refused = run(*command, "--seed", "7", code=2)
    assert "seed is 7 and 0" in refused.stderr
    assert "--overwrite" in refused.stderr
    figures = json.loads(run(*command, "--seed", "7", "--overwrite", "--json").stdout)
    assert figures["epochs"] == 2
    assert "seed = 7" in (tmp_path / "config.toml").read_text()


def test_the_settings_of_a_run_repeat_it(fitted, tmp_path):
    folder, result = fitted
    again = run("fit", "hawkes", "--config", folder / "config.toml", "--output", tmp_path, "--json")
    assert json.loads(again.stdout)["validation"] == json.loads(result.stdout)["validation"]


def test_options_go_before_the_configuration_file(fitted, tmp_path):
    folder, _ = fitted
    command = ("fit", "hawkes", "--config", folder / "config.toml", "--output", tmp_path, "--json")
    assert json.loads(run(*command, "--set", "epochs=1").stdout)["epochs"] == 1


def test_a_single_file_is_split_by_the_share_of_the_estimator(tmp_path):
    draw(3, 20).write_csv(tmp_path / "events.csv")
    command = ("fit", "hawkes", "--data", tmp_path / "events.csv", *SET, "--set", "baselines=false")
    result = run(*command, "--set", "validation=0.25", "--output", tmp_path / "a")
    assert "train: 15 sequences" in result.stderr
    assert "dev: 5 sequences" in result.stderr
    whole = run(*command, "--set", "validation=none", "--output", tmp_path / "b", "--json")
    assert "train: 20 sequences" in whole.stderr
    assert json.loads(whole.stdout)["validation"] is None


@pytest.mark.parametrize("model", ["poisson", "renewal", "markov", "exponential_hawkes"])
def test_every_baseline_can_be_fitted_by_name(data, tmp_path, model):
    result = run("fit", "hawkes", "--model", model, "--data", data, "--output", tmp_path, "--json")
    assert json.loads(result.stdout)["validation"]["loglik_per_event"] < 10
    assert type(seqattn.load(tmp_path)).__name__ in seqattn.__all__


def test_how_files_are_read_is_remembered_by_the_run(tmp_path):
    names = ("user", "when", "what")
    draw(4, 20, names).write_csv(tmp_path / "events.csv")
    read = ["--read", "seq=user", "--read", "time=when", "--read", "type=what", "--read", "window=[0, 50]"]
    file = tmp_path / "events.csv"
    run("fit", "hawkes", "--model", "poisson", "--data", file, *read, "--output", tmp_path / "run")
    figures = json.loads(run("evaluate", tmp_path / "run", "--data", file, "--json").stdout)
    # With a window from 0 the first event of each sequence counts too.
    assert (figures["window"], figures["n_events"]) == ("given", len(pl.read_csv(file)))
    model = seqattn.load(tmp_path / "run")
    assert model.columns == {"seq_id": "user", "t": "when", "k": "what"}


def test_quiet_leaves_the_screen_to_the_result(data, tmp_path):
    result = run("fit", "hawkes", "--data", data, *SET, "--output", tmp_path, "--quiet")
    assert result.stderr == ""
    assert "log-likelihood" in result.stdout


def test_without_matplotlib_a_fit_ends_with_advice(data, tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run("fit", "hawkes", "--data", data, *SET, "--set", "baselines=false", "--output", tmp_path)
    assert "pip install 'seqattn[plot]'" in result.stderr
    assert not (tmp_path / "training.png").exists()


@pytest.mark.slow
def test_an_interrupted_fit_goes_on_to_the_same_bits(data, tmp_path):
    many = [*SET, "--set", "epochs=40", "--set", "patience=none", "--set", "baselines=false"]
    folder = tmp_path / "run"
    command = ("fit", "hawkes", "--data", data, *many, "--output", folder)
    process = start(*command, folder=tmp_path)
    history = folder / "history.jsonl"
    wait_for(lambda: history.exists() and len(history.read_text().splitlines()) >= 3, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert out == ""
    assert f"What was finished is in '{folder}'; the same command goes on." in err
    assert "Traceback" not in err
    assert len(history.read_text().splitlines()) < 40
    resumed = run(*command, "--json")
    straight = run("fit", "hawkes", "--data", data, *many, "--output", tmp_path / "straight", "--json")
    assert json.loads(resumed.stdout)["validation"] == json.loads(straight.stdout)["validation"]
    assert [json.loads(line)["epoch"] for line in history.read_text().splitlines()] == list(range(1, 41))


def test_an_order_to_stop_ends_a_command_cleanly(tmp_path):
    """A service or scheduler sends SIGTERM; nothing half done may stay."""
    n = 400_000
    pl.DataFrame(
        {"seq_id": [i // 20 for i in range(n)], "t": [float(i) for i in range(n)], "k": "a"}
    ).write_parquet(tmp_path / "a.parquet")
    command = ("datasets", "prepare", "a.parquet", "--output", "out", "--read", "piece=1000")
    process = start(*command, folder=tmp_path)
    wait_for(lambda: any(tmp_path.glob(".seqattn-*")), process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out, err.strip()) == (143, "", "Stopped.")
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


# -- evaluate and predict --------------------------------------------------------------------------------------


def test_evaluate_gives_what_the_model_gives(fitted, data):
    folder, _ = fitted
    figures = json.loads(run("evaluate", folder, "--data", data, "--json").stdout)
    expected = seqattn.load(folder).evaluate(pl.read_csv(data / "test.csv"))
    assert METRICS | {"baselines"} <= figures.keys()
    assert figures == json.loads(json.dumps(expected))


def test_evaluate_takes_the_data_of_the_run_and_the_part_asked_for(fitted, data):
    folder, _ = fitted
    result = run("evaluate", folder, "--split", "dev", "--json")
    assert f"using '{data}', on which the model was trained" in result.stderr
    assert json.loads(result.stdout)["n_events"] == len(pl.read_csv(data / "dev.csv")) - SIZES["dev"]


def test_evaluate_scores_by_the_convention_asked_for(fitted, data):
    folder, _ = fitted
    found = {
        name: json.loads(run("evaluate", folder, "--convention", name, "--json").stdout)
        for name in ("full", "from_first")
    }
    assert {name: figures["convention"] for name, figures in found.items()} == {
        "full": "full",
        "from_first": "from_first",
    }
    model = seqattn.load(folder)
    expected = model.log_likelihood(pl.read_csv(data / "test.csv"), "from_first").per_event
    assert found["from_first"]["loglik_per_event"] == expected


def test_evaluate_writes_json_csv_and_a_picture(fitted, tmp_path):
    folder, _ = fitted
    result = run("evaluate", folder, "--output", tmp_path / "new" / "figures", "--json")
    written = tmp_path / "new" / "figures"
    assert json.loads((written / "evaluation.json").read_text()) == json.loads(result.stdout)
    table = pl.read_csv(written / "evaluation.csv")
    assert table["model"].to_list() == ["SAHP", "poisson", "renewal", "markov", "exponential_hawkes"]
    assert table["log-likelihood"][0] == json.loads(result.stdout)["loglik_per_event"]
    for name in ("intensity.png", "goodness_of_fit.png"):
        assert (written / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_predict_writes_the_predictions_of_the_model(fitted, data, tmp_path, ending):
    folder, _ = fitted
    expected = seqattn.load(folder).predict(pl.read_csv(data / "test.csv"))
    path = tmp_path / f"forecasts{ending}"
    result = run("predict", folder, "--data", data, "--output", path)
    read = {".csv": pl.read_csv, ".parquet": pl.read_parquet, ".jsonl": pl.read_ndjson}[ending]
    assert read(path).equals(expected)
    assert result.stdout == f"{len(expected):,} rows: {path}\n"


def test_predict_prints_csv_without_an_output(fitted, data):
    folder, _ = fitted
    expected = seqattn.load(folder).predict(pl.read_csv(data / "test.csv"))
    assert pl.read_csv(io.StringIO(run("predict", folder).stdout)).equals(expected)
    found = json.loads(run("predict", folder, "--json").stdout)
    assert found["n_rows"] == len(expected)
    assert found["predictions"][3]["t_mean"] == expected["t_mean"][3]


def test_evaluate_scores_a_horizon_if_asked(fitted, data):
    folder, _ = fitted
    command = ("evaluate", folder, "--horizon", "3", "--seed", "7", "--device", "cpu")
    found = json.loads(run(*command, "--json").stdout)["horizon"]
    assert found == seqattn.load(folder).evaluate_horizon(pl.read_csv(data / "test.csv"), 3.0, random_state=7)
    assert found["baselines"].keys() == {"poisson", "renewal", "markov", "exponential_hawkes", "no_events"}
    text = run(*command).stdout
    assert "all events within a horizon of 3, 5 histories, 20 paths each" in text
    assert next(line for line in text.splitlines() if line.startswith("model ")).endswith("OTD   T-mAP")


def test_predict_takes_a_seed_and_a_device(fitted):
    folder, _ = fitted
    assert run("predict", folder, "--seed", "3", "--device", "cpu").stdout == run("predict", folder).stdout


def test_a_model_that_has_no_device_refuses_one(data, tmp_path):
    run("fit", "hawkes", "--model", "poisson", "--data", data, "--output", tmp_path)
    refused = run("predict", tmp_path, "--device", "cuda", code=2)
    assert "PoissonProcess runs on the CPU only, but device='cuda' was asked for." in refused.stderr
    assert run("predict", tmp_path, "--device", "cpu").stdout == run("predict", tmp_path).stdout


def test_a_device_takes_the_place_of_the_one_of_the_fit(fitted):
    folder, _ = fitted
    assert (seqattn.load(folder).device, seqattn.load(folder, device="cpu").device) == ("auto", "cpu")


# -- simulate --------------------------------------------------------------------------------------------------


def test_simulate_prints_paths_from_nothing_as_csv(fitted):
    folder, _ = fitted
    result = run("simulate", folder, "--paths", "4", "--until", "6", "--seed", "3")
    expected = seqattn.load(folder).sample(4, 6, random_state=3).to_frame()
    table = pl.read_csv(io.StringIO(result.stdout))
    assert table.columns == ["seq_id", "t", "k"]
    assert table.equals(expected)
    assert set(table["k"]) <= {"a", "b"}
    assert f"4 paths, {len(expected)} events" in result.stderr


def test_simulate_goes_on_from_the_sequences_of_the_data(fitted, data):
    folder, _ = fitted
    command = ("simulate", folder, "--data", data, "--split", "dev", "--paths", "2", "--horizon", "4")
    table = pl.read_csv(io.StringIO(run(*command).stdout))
    dev = pl.read_csv(data / "dev.csv")
    model = seqattn.load(folder)
    assert table.equals(model.sample(2, horizon=4.0, history=dev, random_state=0).to_frame())
    assert table.columns == ["seq_id", "path", "t", "k"]
    last = dev.group_by("seq_id").agg(last=pl.col("t").max())
    since = table.join(last, on="seq_id").select(pl.col("t") - pl.col("last")).to_series()
    assert 0 < since.min() < since.max() <= 4
    assert since.max() > 2


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_simulate_writes_paths_and_prints_one_json_object(fitted, tmp_path, ending):
    folder, _ = fitted
    path = tmp_path / "new" / f"paths{ending}"
    command = ("simulate", folder, "--events", "5", "--paths", "3", "--method", "inverse", "--output", path)
    facts = json.loads(run(*command, "--json").stdout)
    read = {".csv": pl.read_csv, ".parquet": pl.read_parquet, ".jsonl": pl.read_ndjson}[ending]
    expected = seqattn.load(folder).sample(3, max_events=5, method="inverse", random_state=0).to_frame()
    assert read(path).equals(expected)
    told = {
        "n_paths": 3,
        "n_events": 18,
        "n_truncated": 0,
        "method": "inverse",
        "seed": 0,
        "output": str(path),
    }
    assert told.items() <= facts.items()
    assert facts["seconds"] >= 0
    assert run(*command).stdout == f"3 paths, 18 events: {path}\n"


def test_simulate_gives_events_as_json_without_an_output(fitted):
    folder, _ = fitted
    result = run("simulate", folder, "--until", "6", "--json", "--quiet")
    found = json.loads(result.stdout)
    assert found["events"] == seqattn.load(folder).sample(1, 6, random_state=0).to_frame().to_dicts()
    assert result.stderr == ""


def test_simulate_tells_of_paths_that_were_cut_short(fitted):
    folder, _ = fitted
    result = run("simulate", folder, "--until", "100", "--events", "2", "--paths", "3", "--json", "--quiet")
    assert json.loads(result.stdout)["n_truncated"] == 3
    assert "Warning: Paths cut short at their most events: 3." in result.stderr


def test_simulate_takes_dates_for_a_model_of_dates(tmp_path):
    rows = [(f"s{i}", f"2024-03-0{i + 1}T0{hour}:00:00", "a") for i in range(4) for hour in (0, 3, 7)]
    frame = pl.DataFrame(rows, schema=["seq_id", "t", "k"], orient="row")
    frame.with_columns(pl.col("t").str.to_datetime()).write_parquet(tmp_path / "visits.parquet")
    fit = ("fit", "hawkes", "--model", "poisson", "--data", tmp_path / "visits.parquet")
    run(*fit, "--output", tmp_path / "run")
    text = run("simulate", tmp_path / "run", "--start", "2024-05-01", "--until", "2024-05-02T12:00:00").stdout
    assert all(line.split(",")[1][:10] in ("2024-05-01", "2024-05-02") for line in text.splitlines()[1:])
    assert len(text.splitlines()) > 3
    refused = run("simulate", tmp_path / "run", "--start", "2024-05-01", "--until", "9", code=3)
    assert "The end of the paths holds numbers, but the event times are dates" in refused.stderr


@pytest.mark.slow
def test_a_reader_that_closes_the_pipe_early_is_no_error(fitted, tmp_path):
    folder, _ = fitted
    many = draw(9, 400)
    many.write_csv(tmp_path / "many.csv")
    with start("predict", folder, "--data", tmp_path / "many.csv", folder=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("seq_id,position")
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "Broken" not in errors


# -- what goes wrong -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "broken.toml").write_text("epochs = = 3")
    (folder / "other.toml").write_text('task = "classify"')
    (folder / "typo.toml").write_text("setings = {}\n")
    (folder / "kind.toml").write_text('seed = "one"\n')
    (folder / "foreign.safetensors").write_bytes(b"not a model")
    (folder / "file").write_text("")
    draw(1, 4, ("seq_id", "time", "k")).write_csv(folder / "names.csv")
    draw(1, 4).with_columns(t=-pl.col("t")).write_csv(folder / "falling.csv")
    return folder


MISTAKES = {
    "unknown command": ("fti hawkes", 2, "Did you mean 'fit'?"),
    "unknown option": ("fit hawkes --outputt x", 2, "No such option"),
    "unknown task": (
        "fit hawks",
        2,
        "There is no task 'hawks'. Tasks: hawkes, classify, recommend; studies: dynamics. Did you mean 'hawkes'?",
    ),
    "unknown model": ("fit hawkes --model saph", 2, "Did you mean 'sahp'?"),
    "unknown data": ("fit hawkes --data taxii", 3, "Did you mean 'taxi'?"),
    "missing file": ("fit hawkes --data {bad}/none.csv", 3, "none.csv"),
    "wrong column": ("fit hawkes --data {bad}/names.csv", 3, "Column 't' is not in the table."),
    "way to name columns": ("fit hawkes --data {bad}/names.csv", 3, "--read time=when"),
    "bad events": ("fit hawkes --data {bad}/falling.csv", 3, "Times decrease in sequence 's0'"),
    "unknown setting": ("fit hawkes --set epoch=1", 2, "'epoch' is not a setting of 'sahp'."),
    "nearest setting": ("fit hawkes --set epoch=1", 2, "Did you mean 'epochs'?"),
    "wrong kind": ("fit hawkes --set epochs=many", 2, "epochs='many' is of the wrong kind. Allowed: int."),
    "truth for number": ("fit hawkes --set epochs=true", 2, "epochs=True is of the wrong kind."),
    "wrong value": ("fit hawkes --data {data} --output {tmp} --set form=marc", 2, "Did you mean 'mark'?"),
    "setting with an option": ("fit hawkes --set random_state=1", 2, "use --seed instead"),
    "setting of reading": ("fit hawkes --set window=max", 2, "use --read window=... instead"),
    "no value": ("fit hawkes --set epochs", 2, "--set 'epochs' is not of the form key=value."),
    "no TOML value": ("fit hawkes --set epochs=[1", 2, "is not a TOML value"),
    "unknown reading option": ("fit hawkes --read tme=when", 2, "'tme' is not a reading option."),
    "no configuration": ("fit hawkes --config {bad}/none.toml", 2, "cannot be read: No such file"),
    "bad TOML": ("fit hawkes --config {bad}/broken.toml", 2, "is not a TOML file"),
    "other task's file": ("fit hawkes --config {bad}/other.toml", 2, "belongs to the task 'classify'"),
    "typo in file": ("fit hawkes --config {bad}/typo.toml", 2, "Did you mean 'settings'?"),
    "wrong kind in file": ("fit hawkes --config {bad}/kind.toml", 2, "seed in"),
    "output below a file": (
        "fit hawkes --data {data} --output {bad}/file/x",
        2,
        "Choose another output folder.",
    ),
    "no such device": (
        "fit hawkes --data {data} --device tpu --output {tmp}",
        2,
        "device='tpu' is not known.",
    ),
    "baseline elsewhere": ("fit hawkes --model poisson --device cuda", 2, "runs on the CPU only"),
    "no model": ("evaluate {bad}/none", 3, "There is no saved model"),
    "foreign model": ("evaluate {bad}/foreign.safetensors", 3, "was not written by seqattn"),
    "predict to an unknown kind": ("predict {model} --output x.xlsx", 2, "Use one of .csv, .parquet, .jsonl"),
    "unknown split": ("evaluate {model} --data taxi --split tets", 3, "Did you mean 'test'?"),
    "unknown convention": ("evaluate {model} --convention ful", 2, "Did you mean 'full'?"),
    "unknown types": ("evaluate {model} --data taxi", 3, "is not among the labels"),
    "no end of paths": ("simulate {model}", 2, "give --until, --horizon or --events"),
    "two ends of paths": ("simulate {model} --until 9 --horizon 2", 2, "both say where paths end"),
    "end before start": (
        "simulate {model} --until 2 --start 3",
        3,
        "paths, 2.0, is before the path begins",
    ),
    "end that is no number": ("simulate {model} --until nan", 2, "--until 'nan' is no time"),
    "end that is never": ("simulate {model} --until inf", 2, "--until 'inf' is no time"),
    "end that is no time": ("simulate {model} --until soon", 2, "--until 'soon' is no time. Examples: 12.5"),
    "end in dates": ("simulate {model} --until 2024-01-01", 3, "The end of the paths holds dates"),
    "start after histories": (
        "simulate {model} --data {data} --horizon 2 --start 3",
        2,
        "--start is for paths from nothing",
    ),
    "no length of paths": ("simulate {model} --horizon -1", 2, "horizon=-1.0 is no time span"),
    "no paths": ("simulate {model} --horizon 1 --paths 0", 2, "0 is not in the range"),
    "unknown method": ("simulate {model} --horizon 1 --method thining", 2, "is not one of"),
    "simulate to an unknown kind": ("simulate {model} --horizon 1 --output x.txt", 2, "Use one of .csv"),
    "simulate without a model": ("simulate {bad}/none --horizon 1", 3, "There is no saved model"),
    "horizon beyond the windows": ("evaluate {model} --horizon 1e6", 3, "No window is as long as"),
    "horizon that is none": ("evaluate {model} --horizon 0", 2, "horizon=0.0 is no time span"),
    "model on no such device": ("predict {model} --device tpu", 2, "device='tpu' is not known."),
    "settings of a model without": (
        "fit hawkes --model poisson --set epochs=3",
        2,
        "The model 'poisson' has no settings. Leave 'epochs' out.",
    ),
    "prediction to a folder": ("predict {model} --output {tmp}/x.csv", 2, "x.csv' is a folder. Name a file."),
    "reading option that is an argument": (
        "predict {model} --read into=x",
        2,
        "'into' is not a reading option.",
    ),
    "another": ("evaluate {model} --read data=x", 2, "'data' is not a reading option."),
    "a third": (
        "fit hawkes --data {data} --output {tmp}/run --read share=0.5",
        2,
        "'share' is not a reading",
    ),
    "option that is an argument of prepare": (
        "datasets prepare a.parquet --output {tmp}/out --read folder=x",
        2,
        "'folder' is not a reading option.",
    ),
    "prepare into nothing": ("datasets prepare a.parquet --output=", 2, "folder='' is no path"),
    "no trials": ("tune hawkes --trials 0", 2, "0 is not in the range"),
    "unknown data set": ("datasets show taxxi", 3, "Did you mean 'taxi'?"),
    "nowhere to download from": ("datasets get hawkes2d", 3, "No location to download 'hawkes2d' from"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_a_sentence_and_its_exit_code(mistake, bad_files, fitted, data, tmp_path, monkeypatch):
    monkeypatch.setenv("SEQATTN_DATA", "")
    line, code, text = MISTAKES[mistake]
    places = {"bad": bad_files, "model": fitted[0], "data": data, "tmp": tmp_path}
    (tmp_path / "x.csv").mkdir()
    result = run(*line.format(**places).split(), code=code)
    assert text in result.stderr
    assert result.stdout == ""


def test_the_way_to_name_columns_is_told_only_where_one_is_missing(tmp_path):
    draw(1, 4).with_columns(k=pl.lit([1])).write_parquet(tmp_path / "a.parquet")
    result = run("datasets", "prepare", tmp_path / "a.parquet", "--output", tmp_path / "out", code=3)
    assert result.stderr.startswith("Error: Column 'k' holds")
    assert "--read" not in result.stderr


def test_a_failure_while_training_names_its_cause_and_ends_with_1(data, tmp_path):
    settings = [*SET, "--set", "learning_rate=1e30", "--set", "epochs=20"]
    result = run("fit", "hawkes", "--data", data, *settings, "--output", tmp_path, code=1)
    assert "not finite in epoch" in result.stderr
    assert "Try a smaller learning_rate" in result.stderr


def test_after_a_failure_other_settings_may_use_the_folder(data, tmp_path):
    command = ("fit", "hawkes", "--data", data, *SET, "--set", "baselines=false", "--output", tmp_path)
    run(*command, "--set", "clock=gapp", code=2)
    run(*command)


def test_verbose_shows_where_an_error_came_from(bad_files):
    result = CliRunner().invoke(cli, ["fit", "hawkes", "--data", str(bad_files / "none.csv"), "-v"])
    assert result.exit_code == 3
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: There is no file")


def test_an_unforeseen_error_is_one_line_with_the_way_to_more(monkeypatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("the sky fell")

    monkeypatch.setattr("seqattn.report.machine", fail)
    result = run("doctor", code=1)
    assert "RuntimeError: the sky fell" in result.stderr
    assert "-v shows where" in result.stderr


def test_a_warning_of_the_library_is_one_line_on_stderr(data, tmp_path, monkeypatch):
    ties = pl.concat([draw(1, 6), draw(1, 6)]).sort("seq_id", "t")
    ties.write_csv(tmp_path / "ties.csv")
    result = run(
        "fit", "hawkes", "--model", "poisson", "--data", tmp_path / "ties.csv", "--output", tmp_path / "run"
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith("Warning: ")]
    assert len(lines) == 1
    assert "Warning" not in result.stdout


def test_warnings_are_as_before_after_a_command():
    before = (warnings.showwarning, list(warnings.filters))
    run("datasets", "show", "taxi")
    assert (warnings.showwarning, list(warnings.filters)) == before


# -- datasets and doctor ---------------------------------------------------------------------------------------


def test_datasets_are_listed_with_their_place(monkeypatch, tmp_path):
    monkeypatch.setenv("SEQATTN_DATA", "")
    text = run("datasets", "list").stdout
    assert next(line for line in text.splitlines() if line.startswith("taxi ")).split()[1:6] == [
        "10",
        "1,400",
        "200",
        "400",
        "embedded",
    ]
    found = {fact["name"]: fact for fact in json.loads(run("datasets", "list", "--json").stdout)["datasets"]}
    assert found["taxi"]["found"] == "embedded"
    assert found["hawkes2d"]["found"] is None


def test_a_dataset_is_shown_with_licence_sizes_and_the_way_to_it(monkeypatch):
    monkeypatch.setenv("SEQATTN_DATA", "")
    text = run("datasets", "show", "taobao").stdout
    for word in ("licence: Apache-2.0", "sequences: 1,300", "seqattn datasets get taobao"):
        assert word in text
    assert json.loads(run("datasets", "show", "taxi", "--json").stdout)["sizes"]["dev"]["events"] == 7404


def test_a_dataset_that_is_there_is_not_downloaded_again(monkeypatch):
    monkeypatch.setenv("SEQATTN_DATA", "")
    monkeypatch.setattr("urllib.request.urlopen", None)
    result = run("datasets", "get", "taxi")
    assert "is there already (embedded)" in result.stderr
    assert Path(result.stdout.strip()).joinpath("train.parquet").is_file()


def test_the_doctor_tells_versions_devices_and_places(monkeypatch):
    monkeypatch.setenv("SEQATTN_DATA", "")
    facts = json.loads(run("doctor", "--json").stdout)
    assert facts["versions"]["seqattn"] == seqattn.__version__
    assert facts["devices"][0] == "cpu"
    assert facts["data"]["taxi"] == "embedded"
    assert Path(facts["folders"]["tpp"]["embedded"]).joinpath("index.toml").is_file()
    assert f"seqattn: {seqattn.__version__}" in run("doctor").stdout


def test_the_doctor_reports_a_wrong_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SEQATTN_DATA", str(tmp_path / "none"))
    assert "not a folder" in json.loads(run("doctor", "--json").stdout)["data"]


def every_command(group: Any = cli, path: Sequence[str] = ()) -> list[list[str]]:
    found = []
    for name, command in group.commands.items():
        words = [*path, name]
        found += every_command(command, words) if hasattr(command, "commands") else [words]
    return found


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_has_help_with_an_example_and_the_shared_options(words):
    text = run(*words, "--help").stdout
    assert f"seqattn {' '.join(words)}" in text.partition("Example:")[2]
    for option in ("--json", "--quiet", "-v, --verbose"):
        assert option in text
