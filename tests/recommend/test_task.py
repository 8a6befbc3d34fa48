"""What the command line and the tuner are told of recommendation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result

import seqattn
from seqattn.cli import cli
from seqattn.data.catalog import resource
from seqattn.data.interactions import Interactions, leave_one_out
from seqattn.errors import DataError, MissingDependencyError, ParameterError
from seqattn.recommend import task
from seqattn.reproduce.grid import Grid
from seqattn.train.config import read_toml
from seqattn.train.history import History, history_of
from seqattn.train.space import Space

HEAD = "user_id:token\titem_id:token\ttimestamp:float\n"
SMALL = ("epochs=3", "d_model=8", "batch_size=32")
KEYS = ("hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr", "coverage@10", "n_users", "protocol")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with one table, in which most items have one follower."""
    place, rng, lines = tmp_path_factory.mktemp("data") / "walks", np.random.default_rng(0), []
    for user in range(60):
        item = int(rng.integers(0, 31))
        for time in range(int(rng.integers(4, 9))):
            lines.append(f"u{user:02d}\t{item}\t{time}\n")
            item = (2 * item + 1 + int(rng.random() < 0.3)) % 31
    place.mkdir()
    (place / "walks.inter").write_text(HEAD + "".join(lines))
    return place


@pytest.fixture(scope="module")
def parts(folder):
    return task.splits(folder, task.SPLITS)


@pytest.fixture(scope="module")
def fitted(parts):
    return task.fit(task.build({}, "markov"), parts["train"], parts["dev"])


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "run"
    settings = [word for setting in SMALL for word in ("--set", setting)]
    run("fit", "recommend", "--data", folder, *settings, "--output", place, "--seed", "1")
    return place


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    assert result.exit_code == code, f"{result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


# -- data ------------------------------------------------------------------------------------------------------


def test_one_table_is_cut_by_the_last_rows_of_each_user(folder, parts):
    whole = Interactions.of(folder / "walks.inter")
    cut = leave_one_out(whole)
    expected = {"train": cut.train, "dev": cut.validation, "test": cut.test}
    for found in (parts, task.splits(folder / "walks.inter", task.SPLITS)):
        assert {role: X.digest() for role, X in found.items()} == {
            role: X.digest() for role, X in expected.items()
        }
    assert list(task.splits(folder)) == ["train", "dev"]


def test_without_a_test_part_a_file_has_its_last_rows_for_development(folder):
    found = task.splits(folder / "walks.inter")
    assert list(found) == ["train", "dev"]
    assert found["dev"].lengths.tolist() == [1] * 60
    whole = Interactions.of(folder / "walks.inter")
    assert found["train"].joined(found["dev"]).digest() == whole.digest()
    assert task.splits(folder / "walks.inter", share=None)["train"].digest() == whole.digest()


def test_a_folder_without_development_data_has_the_last_rows_of_training_for_it(tmp_path):
    (tmp_path / "train.inter").write_text(HEAD + "1\t5\t0\n1\t6\t1\n1\t7\t2\n2\t5\t0\n")
    (tmp_path / "test.inter").write_text(HEAD + "1\t5\t9\n")
    found = task.splits(tmp_path, task.SPLITS)
    assert {role: X.n_rows for role, X in found.items()} == {"train": 3, "dev": 1, "test": 1}
    assert found["dev"].item_ids[int(found["dev"].items[0])] == 7


def test_reading_options_are_checked_and_used(folder, tmp_path):
    (tmp_path / "log.csv").write_text("who,what\n1,a\n1,b\n")
    found = task.load_split(tmp_path / "log.csv", "train", user="who", item="what", time="none")
    assert found.to_table().rows() == [(1, "a"), (1, "b")]
    with pytest.raises(ParameterError, match=r"'itemm' is not a reading option.*Did you mean 'item'"):
        task.load_split(folder, "train", itemm="what")


def test_the_usual_set_says_what_to_do_where_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("SEQATTN_DATA", str(tmp_path))
    monkeypatch.setenv("SEQATTN_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'seqattn\[recbole\]'"):
        task.load_split("ml-100k", "train")
    with pytest.raises(DataError, match="seqattn datasets get yelp"):
        task.load_split("yelp", "train")
    told = run("fit", "recommend", "--output", tmp_path / "run", code=4)
    assert "No --data: using 'ml-100k'" in told.stderr


def test_new_data_have_the_ids_of_the_model(folder, fitted, tmp_path):
    (tmp_path / "new.inter").write_text(HEAD + "u03\t5\t0\nx\t7\t0\nx\tnew\t1\n")
    X = task.load_new(fitted, tmp_path / "new.inter", "test")
    assert X.user_ids.to_list() == ["u03", "x"]
    assert X.item_ids.to_list()[:31] == fitted.item_ids_.to_list()
    assert X.item_ids.to_list()[31:] == ["new"]
    assert task.reading(fitted) == {}


def test_the_size_is_told_in_words(parts):
    assert task.describe(parts["dev"]) == "60 users, 31 items, 60 interactions"


# -- models ----------------------------------------------------------------------------------------------------


def test_models_are_built_by_name_and_give_their_settings():
    model = task.build({"window": 2, "l2": 1}, seed=3)
    assert (type(model).__name__, model.window, model.l2, model.random_state) == (
        "MQSATEDRecommender",
        2,
        1.0,
        3,
    )
    assert task.build(task.settings(model)).get_params() == {**model.get_params(), "random_state": None}
    for name, kind in task.MODELS.items():
        assert type(task.build({}, name)) is getattr(seqattn, kind)
    with pytest.raises(ParameterError, match=r"'windov' is not a setting.*Did you mean 'window'"):
        task.build({"windov": 2})


def test_what_chooses_the_epoch_is_not_learned_from_but_known_afterwards(parts, fitted):
    assert fitted.training_.digest() == parts["train"].digest()
    assert fitted.history_.n_rows == parts["train"].n_rows + parts["dev"].n_rows


# -- figures ---------------------------------------------------------------------------------------------------


def test_test_items_are_ranked_after_all_that_came_before(parts, fitted):
    figures = task.evaluate(fitted, parts["test"])
    expected = fitted.evaluate(parts["test"], baselines=False)
    assert {name: figures[name] for name in expected} == dict(expected)
    assert set(KEYS) <= set(figures)
    assert figures["ndcg@10"] == pytest.approx(fitted.score(parts["test"]))
    assert figures["standard_errors"]["hr@5"] == expected.estimates["hr@5"].standard_error
    assert figures["slices"] == expected.slices.to_dicts()
    with pytest.raises(ParameterError, match="'tie' is not an option of evaluate"):
        task.evaluate(fitted, parts["test"], tie="average")


def test_validation_items_are_ranked_as_if_they_had_not_happened_yet(parts, fitted):
    alone = task.build({}, "markov").fit(parts["train"], validation=None)
    assert task.evaluate(fitted, parts["dev"])["ndcg@20"] == alone.evaluate(parts["dev"])["ndcg@20"] > 0.1
    assert task.objective(fitted, parts["dev"]) == task.evaluate(fitted, parts["dev"])["ndcg@20"]
    assert task.held_out(fitted, parts["dev"]) == task.held_out(fitted, None)
    assert task.held_out(alone, None) is None


def test_baselines_learn_from_the_rows_of_the_model(folder, parts, fitted):
    assert task.beside(folder, "test") == {"baselines": True}
    figures = task.evaluate(fitted, parts["test"], baselines=True)
    assert list(figures["baselines"]) == ["popularity", "markov"]
    assert figures["baselines"]["markov"]["ndcg@10"] == figures["ndcg@10"]
    headers, rows = task.summary_rows(figures, "mine")
    assert [row[0] for row in rows] == ["mine", "popularity", "markov"]
    assert rows[0][headers.index("NDCG@5")] == figures["ndcg@5"]
    assert {len(row) for row in rows} == {len(headers)}
    headers, rows = task.detail_rows(figures)
    assert sum(row[headers.index("targets")] for row in rows if row[0] == "history length") == 60
    assert task.caption(figures).startswith("Full ranking over all 31 items")


def test_cases_add_up_to_the_first_metric_of_the_table(parts, fitted):
    totals, counts = task.cases(fitted, parts["test"])
    first = Grid.of("rec").metrics[0].name
    assert sum(totals) / sum(counts) == pytest.approx(task.evaluate(fitted, parts["test"])[first])


def test_lists_follow_the_history_of_known_users_and_the_rows_of_others(parts, fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(task, "_USERS", 7)
    frames = list(task.predict(fitted, parts["test"]))
    assert len(frames) == 9
    assert (
        pl.concat(frames).drop("score").rows()
        == fitted.recommend(k=10).select("user_id", "item_id", "rank").rows()
    )
    (tmp_path / "new.inter").write_text(HEAD + "x\t3\t0\nx\t7\t1\nu00\t1\t9\n")
    X = task.load_new(fitted, tmp_path / "new.inter", "test")
    known, others = task.predict(fitted, X)
    assert known["item_id"].to_list() == fitted.recommend(["u00"], k=10)["item_id"].to_list()
    assert others["item_id"].to_list() == fitted.recommend_for(X.select([1]), k=10)["item_id"].to_list()
    assert set(others["user_id"]) == {"x"}


def test_a_picture_shows_the_groups_of_targets(parts, fitted, tmp_path):
    (path,) = task.plots(fitted, parts["test"], tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_an_epoch_without_validation_is_worse_than_any():
    assert task.epoch_objective(None, {"valid_loss": -0.25}) == 0.25
    assert task.epoch_objective(None, {"valid_loss": None}) == -math.inf


# -- the command line ------------------------------------------------------------------------------------------


def test_fit_and_evaluate_through_the_command_line(folder, parts, trained, tmp_path):
    model = seqattn.load(trained)
    history = history_of(model)
    assert isinstance(history, History)
    assert len(history.records) == 3
    figures = json.loads((trained / "figures.json").read_text())
    assert figures["best_epoch"] == history.best_epoch
    assert figures["validation"]["ndcg@20"] == pytest.approx(model.best_score_)
    told = run("evaluate", trained, "--json", "--output", tmp_path)
    found = json.loads(told.stdout)
    assert found["ndcg@10"] == pytest.approx(model.score(parts["test"]))
    assert set(KEYS) <= set(found)
    assert set(KEYS) <= set(found["baselines"]["popularity"])
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.csv", "evaluation.json", "slices.png"}
    text = run("evaluate", trained, "--data", folder, "--split", "dev").stdout
    assert "last transition" in text
    assert f"{figures['validation']['hr@10']:.4f}" in text


def test_another_recommender_of_the_same_rows_is_printed_beside(parts, trained, tmp_path):
    other = task.fit(task.build({}, "popularity"), parts["train"], parts["dev"])
    place = other.save(tmp_path / "other.safetensors")
    found = json.loads(run("evaluate", trained, "--beside", place, "--json").stdout)
    assert list(found["baselines"]) == ["popularity", "markov", str(place)]
    assert found["baselines"][str(place)] == found["baselines"]["popularity"]


def test_predict_writes_the_lists(folder, trained, tmp_path):
    run("predict", trained, "--output", tmp_path / "lists.parquet")
    expected = seqattn.load(trained).recommend(k=10).select("user_id", "item_id", "rank")
    assert pl.read_parquet(tmp_path / "lists.parquet").drop("score").rows() == expected.rows()


@pytest.mark.slow
def test_a_search_tries_the_published_setting_first(folder, tmp_path):
    settings = [word for setting in SMALL for word in ("--set", setting)]
    line = (
        "tune",
        "recommend",
        "--data",
        folder,
        "--trials",
        "2",
        *settings,
        "--output",
        tmp_path / "study",
        "--json",
    )
    found = json.loads(run(*line).stdout)
    assert (found["n_trials"], found["n_complete"]) == (2, 2)
    assert set(KEYS) <= set(found["test"])
    trials = pl.read_csv(tmp_path / "study" / "trials.csv")
    assert trials["tau_teacher"].to_list()[0] == "0.1"


@pytest.mark.slow
def test_reproduce_puts_models_beside_published_figures(folder, parts, fitted, tmp_path, monkeypatch):
    place = tmp_path / "data" / "rec" / "amazon-beauty"
    place.mkdir(parents=True)
    (place / "amazon-beauty.inter").write_text((folder / "walks.inter").read_text())
    monkeypatch.setenv("SEQATTN_DATA", str(tmp_path / "data"))
    line = (
        "--datasets",
        "amazon-beauty",
        "--models",
        "Markov chain,Popularity",
        "--output",
        tmp_path / "out",
        "--json",
    )
    table = json.loads(run("reproduce", "rec", *line).stdout)["table"]
    found = {(row["model"], row["metric"]): row["mean"] for row in table}
    figures = task.evaluate(fitted, parts["test"], baselines=True)
    assert found["Markov chain", "ndcg@10"] == pytest.approx(figures["ndcg@10"], abs=1e-9)
    assert found["Popularity", "hr@5"] == pytest.approx(figures["baselines"]["popularity"]["hr@5"], abs=1e-9)


# -- spaces and grids ------------------------------------------------------------------------------------------


def test_the_space_holds_the_published_setting_and_every_choice_can_be_built():
    space = Space.load(resource("tuning", "recommend.toml"))
    paper = read_toml(resource("tuning", "recommend-paper.toml"))["settings"]
    assert next(iter(space.starts)) == "published"
    assert {name: paper[name] for name in space.starts["published"]} == space.starts["published"]
    for name, rule in space.rules.items():
        for choice in rule["choices"]:
            task.build(space.decoded({name: choice}))
    assert task.build(paper).mode == "paper"


@pytest.mark.parametrize(
    ("params", "moot"),
    [
        ({"alpha": 0.5, "kd_weight": 0.1, "tau_teacher": "none"}, set()),
        ({"alpha": 1.0, "kd_weight": 0.1, "tau_teacher": "none"}, {"window"}),
        ({"alpha": 0.5, "kd_weight": 0.1, "tau_teacher": 0.1}, {"teacher_mass"}),
        ({"kd_weight": 0.0, "tau_teacher": None}, {"tau_teacher", "teacher_mass", "tau_student", "span"}),
    ],
)
def test_settings_that_mean_nothing_beside_others_are_known(params, moot):
    space = Space.load(resource("tuning", "recommend.toml"))
    assert {name for name in space.rules if space.is_moot(name, params)} == moot
    fixed = space.with_settings(params)
    assert set(fixed.rules) == set(space.rules) - moot - set(params)


def test_the_grids_name_what_there_is():
    for name in ("reproduce", "ablation"):
        grid = Grid.of("rec", name)
        for model in grid.models:
            path = f"recommend-{model.preset}.toml"
            preset = read_toml(resource("tuning", path))["settings"] if model.preset else {}
            if not model.model.startswith(
                "hopwise:"
            ):  # known where it is installed, as the tests of RecBole say
                task.build({**preset, **model.settings}, model.model)
        assert {known.name for known in grid.datasets} <= {
            known.name for known in seqattn.data.catalog.entries("rec")
        }
    assert grid.reference == "MQSA-TED"
    assert Grid.of("rec").figure("amazon-beauty", "MQSA-TED", "ndcg@5")[0] == 0.0534
    assert Grid.of("rec").figure("amazon-beauty", "SASRec, sampled softmax", "hr@10")[0] == 0.0921
