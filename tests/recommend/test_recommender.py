from __future__ import annotations

import datetime as dt
import pickle
import re
from typing import Any

import numpy as np
import polars as pl
import pytest
from recommend.tables import Given, random_table, table
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import seqattn
from seqattn import MarkovRecommender, PopularityRecommender
from seqattn.data.interactions import Interactions, leave_one_out
from seqattn.errors import ArtifactError, DataError, ParameterError, SeqattnWarning, UnknownIdError
from seqattn.recommend.ranking import Scorer
from seqattn.recommend.recommender import Recommender

KINDS = [PopularityRecommender, MarkovRecommender]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def lists(frame: Any) -> list[tuple[Any, ...]]:
    return pl.DataFrame(frame).rows()


# -- what comes out ------------------------------------------------------------------------------------------------


def test_lists_have_the_agreed_columns_and_no_item_of_the_history(kind):
    rows = random_table(0)
    model = kind().fit(rows, validation=None)
    found = model.recommend(k=7)
    assert found.columns == ["user_id", "item_id", "rank", "score"]
    had = set(rows.select("user_id", "item_id").iter_rows())
    assert not had & set(found.select("user_id", "item_id").iter_rows())
    for (_user,), group in found.group_by("user_id", maintain_order=True):
        assert group["rank"].to_list() == list(range(1, 8))
        assert group["score"].is_sorted(descending=True)
    again = model.recommend([3, 1], k=2)
    assert lists(again) == lists(found.filter(pl.col("user_id") == 3).head(2)) + lists(
        found.filter(pl.col("user_id") == 1).head(2)
    )


def test_new_users_with_the_history_of_a_known_one_get_the_same_list(kind):
    rows = random_table(0)
    model = kind().fit(rows, validation=None)
    known = model.recommend([5], k=6)
    history = rows.filter(pl.col("user_id") == 5)
    renamed = history.with_columns(user_id=pl.lit(987654))
    assert lists(model.recommend_for(renamed, k=6).drop("user_id")) == lists(known.drop("user_id"))
    assert lists(model.recommend_for([history["item_id"].to_list()], k=6).drop("user_id")) == lists(
        known.drop("user_id")
    )


def test_scores_of_pairs_are_those_of_the_lists(kind):
    model = kind().fit(random_table(0), validation=None)
    found = model.recommend(k=5).sample(fraction=1.0, shuffle=True, seed=1)
    np.testing.assert_array_equal(
        model.predict(found.select("user_id", "item_id")), found["score"].to_numpy()
    )


def test_the_score_is_ndcg_at_ten(kind):
    data = Interactions.of(random_table(0))
    test = leave_one_out(data).test
    model = kind().fit(data.without_last()[0])
    assert model.score(test) == model.evaluate(test)["ndcg@10"]
    assert model.score(test.to_table()) == model.score(test)


def test_every_evaluation_is_printed_beside_the_baselines(kind):
    data = Interactions.of(random_table(0))
    test = leave_one_out(data).test
    found = kind().fit(data.without_last()[0]).evaluate(test)
    keys = {
        f"{name}@{k}" for name in ("hr", "ndcg", "mrr", "coverage", "gini", "tail_share") for k in (5, 10, 20)
    }
    assert keys | {"mrr", "n_users", "protocol", "baselines"} <= set(found)
    assert set(found["baselines"]) == {"popularity", "markov"}
    own = found["baselines"]["popularity" if kind is PopularityRecommender else "markov"]
    assert own == {name: value for name, value in found.items() if name != "baselines"}


def test_similar_items_are_those_that_came_next():
    rows = table(["a", "b", "c"], ["x", "a", "b"], ["a", "c"], ["a", "b"])
    model = MarkovRecommender().fit(rows, validation=None)
    found = model.similar_items(["a"], k=2)
    assert found.columns == ["item_id", "similar_id", "rank", "score"]
    assert found["similar_id"].to_list() == ["b", "c"]
    with pytest.raises(UnknownIdError, match="Item 'q' was not in the fit"):
        model.similar_items(["q"])


def test_pandas_comes_back_as_pandas(kind):
    import pandas as pd

    rows = random_table(0)
    frame = pd.DataFrame(rows.to_dict(as_series=False))
    model, other = kind().fit(frame), kind().fit(rows)
    assert isinstance(model.recommend([1], k=3), pd.DataFrame)
    assert isinstance(model.recommend_for(frame, k=3), pd.DataFrame)
    assert isinstance(model.recommend_for(rows, k=3), pl.DataFrame)
    assert lists(model.recommend(k=3)) == lists(other.recommend(k=3))


IDS: dict[str, tuple[list[Any], pl.DataType | None]] = {
    "text": (["u", "v", "w"], pl.String()),
    "small integers": ([3, 1, 2], pl.UInt8()),
    "large integers": ([2**62, 1, -5], pl.Int64()),
    "categories": (["u", "v", "w"], pl.Categorical()),
    "dates": ([dt.date(2024, 1, day) for day in (1, 2, 3)], pl.Date()),
    "Booleans and text": ([True, "a", 2.5], pl.Object()),
    "tuples": ([("a", 1), ("a", 2), ("b", 1)], pl.Object()),
}


@pytest.mark.parametrize("ids", IDS)
def test_ids_of_any_kind_come_back_as_they_were(kind, ids, tmp_path):
    names, dtype = IDS[ids]
    who, what = [0, 0, 1, 1, 2], [0, 1, 1, 2, 0]
    rows = pl.DataFrame(
        [
            pl.Series("user_id", [names[i] for i in who], dtype=dtype),
            pl.Series("item_id", [names[i] for i in what], dtype=dtype),
            pl.Series("timestamp", range(5)),
        ]
    )
    model = kind().fit(rows, validation=None)
    opened = seqattn.load(model.save(tmp_path))
    for one in (model, opened):
        found = one.recommend([names[1]], k=3)
        assert found["user_id"].to_list() == [names[1]]
        assert found["item_id"].to_list() == [names[0]]
        assert (found["user_id"].dtype, found["item_id"].dtype) == (dtype, dtype)
        assert one.recommend_for([[names[0], names[1]]], k=3)["item_id"].to_list() == [names[2]]
    assert opened.digest() == model.digest()


# -- cold, unknown and odd ------------------------------------------------------------------------------------------


@pytest.fixture
def small() -> MarkovRecommender:
    """Items by training popularity: a 3, b 2, c 2, d 1; the catalogue also has z."""
    rows = table(["a", "b", "c"], ["a", "b"], ["c", "a", "d"], users=["u", "v", "w"])
    return MarkovRecommender().fit(rows, validation=None, items=["z"])


def test_unknown_users_are_named_up_to_five(small):
    with pytest.raises(KeyError) as caught:
        small.recommend([*range(7), "u"])
    assert str(caught.value).startswith(
        "Users 0, 1, 2, 3, 4 and 2 more were not in the fit. Pass on_unknown='popular'"
    )
    assert isinstance(caught.value, DataError)
    with pytest.raises(UnknownIdError, match="User 'x' was not in the fit"):
        small.predict({"user_id": ["x"], "item_id": ["a"]})
    with pytest.raises(UnknownIdError, match="Item 'x' was not in the fit"):
        small.predict({"user_id": ["u"], "item_id": ["x"]})
    with pytest.raises(ParameterError, match="on_unknown='no'"):
        small.recommend(["u"], on_unknown="no")


def test_unknown_users_may_get_what_is_popular_and_it_is_flagged(small):
    found = small.recommend(["x", "u"], k=2, on_unknown="popular")
    assert found.filter(pl.col("user_id") == "x").rows() == [
        ("x", "a", 1, 3.0, True),
        ("x", "b", 2, 2.0, True),
    ]
    assert found.filter(pl.col("user_id") == "u")["fallback"].to_list() == [False]


def test_unknown_items_of_a_history_are_dropped_and_counted(small):
    with pytest.warns(
        SeqattnWarning, match="2 of 4 rows have items that were not in the fit, and were dropped; 1 of 2"
    ):
        found = small.recommend_for([["q", "a", "b"], ["q"]], k=2)
    assert found.filter(pl.col("user_id") == 0)["item_id"].to_list() == ["c", "d"]
    assert found.filter(pl.col("user_id") == 1)["item_id"].to_list() == ["a", "b"]
    assert found["fallback"].to_list() == [False, False, True, True]
    with pytest.raises(UnknownIdError, match="Item 'q' was not in the fit"):
        small.set_params(unknown_items="error").recommend_for([["q"]])


def test_an_empty_history_gets_what_is_popular_and_is_flagged(small):
    found = small.recommend_for([[], ["a"]], k=1)
    assert found.rows() == [(0, "a", 1, 3.0, True), (1, "b", 1, found["score"][1], False)]


def test_items_that_nobody_had_are_recommended_only_on_request(small):
    assert "z" not in small.recommend_for([["a"]], k=9)["item_id"]
    assert small.recommend_for([["a"]], k=9, candidates=["z", "q"]).is_empty()
    small.set_params(cold_items="keep")
    assert small.recommend_for([["a"]], k=9)["item_id"].to_list()[-1] == "z"
    with pytest.raises(UnknownIdError, match="Item 'q'"):
        small.recommend_for([["a"]], candidates=["z", "q"])


def test_lists_are_short_where_candidates_are_few(small):
    assert small.recommend(["u"], k=50)["item_id"].to_list() == ["d"]
    assert small.recommend(["u"], k=50, exclude=["d", "q"]).is_empty()
    assert small.recommend(["v"], k=50, candidates=["a", "c"])["item_id"].to_list() == ["c"]
    assert set(small.recommend(["u"], k=50, exclude_seen=False)["item_id"]) == {"a", "b", "c", "d"}


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        (table(["a"], ["a", "a"]), DataError),
        (table(["a"], ["b"], ["c"]), DataError),
        (table(["a", "b"]).with_columns(user_id=pl.lit(None, pl.Int64)), DataError),
        (table(["a", "b"]).with_columns(timestamp=pl.lit(float("nan"))), DataError),
        (table(["a", "b"]).with_columns(timestamp=pl.lit(float("inf"))), DataError),
        (table(["a", "b"]).drop("timestamp"), DataError),
        (3, TypeError),
    ],
    ids=["one item", "no pair", "null user", "NaN time", "infinite time", "no time", "a number"],
)
def test_data_that_cannot_be_learned_from_are_refused(kind, rows, error):
    with pytest.raises(error):
        kind().fit(rows, validation=None)


def test_rows_that_come_twice_and_equal_times_are_counted(kind):
    rows = table(["a", "b", "c"], ["b", "c"])
    with pytest.warns(SeqattnWarning) as caught:
        kind().fit(pl.concat([rows, rows]), validation=None)
    texts = " ".join(str(entry.message) for entry in caught)
    assert re.search("5 rows (that )?repeat user, item and time", texts)
    assert "5 rows have the time of the user's row before" in texts


def test_no_row_for_validation_is_told(kind):
    with pytest.warns(SeqattnWarning, match="No user has a row for validation"):
        kind().fit(table(["a", "b"], ["b", "a"]))
    with pytest.raises(ParameterError, match="validation='leave_two_out'"):
        kind().fit(table(["a", "b"]), validation="leave_two_out")


@pytest.mark.parametrize("name", ["unknown_items", "cold_items", "duplicates"])
def test_settings_that_are_not_known_are_refused_by_fit(kind, name):
    with pytest.raises(ParameterError, match=f"{name}='what'"):
        kind(**{name: "what"}).fit(table(["a", "b"]), validation=None)


def test_later_rows_serve_for_validation_and_then_as_history(kind):
    first, later = table(["a", "b"], ["b", "a"]), table(["c"], ["a"], ["b"])
    with pytest.warns(SeqattnWarning, match="1 of 3 rows for validation are of users without"):
        model = kind().fit(first, validation=later)
    assert [model.item_ids_[int(i)] for i in model.history_.items_of(0)] == ["a", "b", "c"]
    assert model.held_out_.tolist() == [False, False, True] * 2
    assert dict(zip(model.item_ids_, model.popularity_.tolist(), strict=True)) == {"a": 2, "b": 2, "c": 0}


def test_targets_are_looked_up_by_user_whatever_their_order(kind):
    data = Interactions.of(random_table(0))
    model, test = kind().fit(data.without_last()[0]), leave_one_out(data).test.to_table()
    assert model.score(test.reverse()) == model.score(test)
    strangers = test.head(2).with_columns(user_id=pl.Series([9999, 9998]))
    with pytest.warns(SeqattnWarning, match="2 of .* rows are of users that were not in the fit"):
        assert model.score(pl.concat([strangers, test])) == model.score(test)
    with pytest.raises(DataError, match="None of the rows is of a user of the fit"):
        model.evaluate(strangers)
    outside = test.with_columns(item_id=pl.lit(777))
    with pytest.warns(SeqattnWarning, match="Every target"):
        found = model.evaluate(outside, baselines=False)
    assert (found["hr@20"], found["n_unreachable"]) == (0.0, len(test))


def test_targets_that_are_known_already_are_told(kind):
    rows = random_table(0)
    model = kind().fit(rows)
    with pytest.warns(SeqattnWarning, match="Every target is in the history"):
        assert model.evaluate(rows, baselines=False)["hr@20"] == 0.0


# -- names must not matter -------------------------------------------------------------------------------------------


def test_renaming_users_and_items_renames_the_results(kind):
    rows = random_table(6)
    order = np.random.default_rng(0).permutation(1000)
    new = rows.with_columns(
        user_id=pl.col("user_id").map_elements(lambda u: f"name {order[u]}", return_dtype=pl.String),
        item_id=pl.col("item_id").map_elements(lambda i: int(order[i]), return_dtype=pl.Int64),
    )
    one, two = Interactions.of(rows), Interactions.of(new)
    a, b = kind().fit(one.without_last()[0]), kind().fit(two.without_last()[0])
    first, second = (model.evaluate(leave_one_out(data).test) for model, data in ((a, one), (b, two)))
    for name in ("hr@5", "ndcg@10", "mrr"):
        assert first[name] == pytest.approx(second[name], abs=1e-12)
    pairs = a.recommend(k=8)
    renamed = pl.DataFrame(
        {
            "user_id": [f"name {order[u]}" for u in pairs["user_id"]],
            "item_id": [int(order[i]) for i in pairs["item_id"]],
        }
    )
    np.testing.assert_array_equal(b.predict(renamed), pairs["score"])
    best = b.recommend(k=8).sort("user_id", "rank")["score"]
    np.testing.assert_array_equal(
        best, pairs.with_columns(user_id=renamed["user_id"]).sort("user_id", "rank")["score"]
    )


# -- files and copies -------------------------------------------------------------------------------------------------


def test_a_fresh_process_gives_the_same_bits(kind, tmp_path, run_python):
    model = kind(cold_items="keep").fit(random_table(1))
    model.save(tmp_path / "model.safetensors")
    code = "import seqattn; m = seqattn.load('model.safetensors'); m.recommend(k=6).write_ipc('lists.arrow')"
    done = run_python(code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert pl.read_ipc(tmp_path / "lists.arrow").equals(model.recommend(k=6))
    opened = seqattn.load(tmp_path)
    assert opened.get_params() == model.get_params()
    assert (
        opened.save(tmp_path / "again.safetensors").read_bytes()
        == (tmp_path / "model.safetensors").read_bytes()
    )


def test_dates_and_further_learning_survive_a_file(kind, tmp_path):
    start = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    rows = random_table(1).with_columns(
        timestamp=pl.col("timestamp").map_elements(
            lambda day: start + dt.timedelta(days=day), return_dtype=pl.Datetime("us", "UTC")
        )
    )
    model = kind().fit(rows)
    opened = seqattn.load(model.save(tmp_path))
    assert opened.history_.to_table().equals(model.history_.to_table())
    more = table([0, 39], users=[500]).with_columns(
        timestamp=pl.Series([start, start + dt.timedelta(hours=1)])
    )
    assert lists(opened.partial_fit(more).recommend(k=4)) == lists(model.partial_fit(more).recommend(k=4))


def test_a_file_whose_parts_do_not_fit_is_refused(kind, tmp_path):
    from seqattn.train.artifact import load_artifact, save_artifact

    place = kind().fit(random_table(1)).save(tmp_path)
    found = load_artifact(place)
    found.tensors["offsets"] = found.tensors["offsets"][:-1]
    save_artifact(place, found.kind, found.tensors, found.metadata)
    with pytest.raises(ArtifactError, match="do not fit together"):
        seqattn.load(place)


def test_learning_more_equals_learning_all_at_once(kind):
    rows = random_table(2)
    first, later = rows.filter(pl.col("timestamp") < 3), rows.filter(pl.col("timestamp") >= 3)
    newcomers = table([0, 1, 77], users=[900])
    later = pl.concat([later, newcomers])
    whole = kind().fit(pl.concat([first, later]), validation=None)
    parts = kind().fit(first, validation=None).partial_fit(later)
    assert sorted(parts.item_ids_) == sorted(whole.item_ids_)
    pairs = pl.DataFrame({"user_id": [900, 3, 5], "item_id": [4, 77, 2]})
    np.testing.assert_array_equal(parts.predict(pairs), whole.predict(pairs))
    alone = kind().partial_fit(first)
    assert lists(alone.recommend(k=3)) == lists(kind().fit(first, validation=None).recommend(k=3))


def test_clones_and_copies_behave_as_in_scikit_learn(kind):
    model = kind(cold_items="keep")
    assert vars(model) == model.get_params(deep=False)
    assert clone(model).get_params() == pickle.loads(pickle.dumps(model)).get_params() == model.get_params()
    fitted = model.fit(random_table(1))
    assert lists(pickle.loads(pickle.dumps(fitted)).recommend(k=3)) == lists(fitted.recommend(k=3))
    again = lists(kind(cold_items="keep").fit(random_table(1)).recommend(k=3))
    assert again == lists(fitted.recommend(k=3))
    for use in ("recommend", "digest"):
        with pytest.raises(NotFittedError):
            getattr(clone(fitted), use)()
    for use in ("recommend_for", "predict", "evaluate", "score", "similar_items"):
        with pytest.raises(NotFittedError):
            getattr(clone(fitted), use)([["a"]])
    for use in ("save", "export_topk"):
        with pytest.raises(NotFittedError):
            getattr(clone(fitted), use)("nothing.parquet")


# -- export -----------------------------------------------------------------------------------------------------------


def test_exported_lists_are_those_of_recommend_for_both_readers(kind, tmp_path):
    import pyarrow.parquet as pq

    model = kind().fit(random_table(1), validation=None)
    place = model.export_topk(tmp_path / "lists.parquet", k=6, user_batch=10)
    found, expected = pl.read_parquet(place), model.recommend(k=6)
    assert dict(found.schema) == {
        "user_id": pl.Int64(),
        "rank": pl.Int16(),
        "item_id": pl.Int64(),
        "score": pl.Float32(),
        "fallback": pl.Boolean(),
    }
    columns = ["user_id", "item_id", "rank", "score"]
    assert lists(found.select(columns)) == lists(expected)
    assert not found["fallback"].any()
    table_of_arrow = pq.read_table(place)
    assert table_of_arrow.to_pydict() == found.to_dict(as_series=False)
    file = pq.ParquetFile(place)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    assert sizes[:-1] == [60] * (len(expected) // 60)
    told = {name.decode(): value.decode() for name, value in file.metadata.metadata.items()}
    assert told["model_hash"] == model.digest()
    assert (told["k"], told["exclude_seen"], told["model"]) == ("6", "true", kind.__name__)
    assert float(told["training_until"]) == model.history_.times.max()
    some = pl.read_parquet(model.export_topk(tmp_path / "some.parquet", k=2, users=[7, 3]))
    assert some["user_id"].to_list() == [3, 3, 7, 7]


def test_what_cannot_be_exported_is_refused(kind, tmp_path):
    model = kind().fit(random_table(1))
    for settings, text in (
        ({"path": "x.csv"}, "ends in '.csv'"),
        ({"path": "x.parquet", "k": 0}, "k=0"),
        ({"path": "x.parquet", "user_batch": 0}, "user_batch=0"),
    ):
        with pytest.raises(ParameterError, match=text):
            model.export_topk(tmp_path / settings.pop("path"), **settings)
    with pytest.raises(UnknownIdError, match="User 'who'"):
        model.export_topk(tmp_path / "x.parquet", users=["who"])
    assert list(tmp_path.iterdir()) == []


# -- the base class with a scorer that is given -------------------------------------------------------------------


class Oracle(Recommender):
    """Knows the scores of each user beforehand."""

    def __init__(self, matrix: Any = None) -> None:
        self.matrix = matrix

    def _learn(self, train: Any, validation: Any, **options: Any) -> None:
        self.given_ = (train, validation, options)

    def _scorer(self) -> Scorer:
        return Given(self.matrix)


def test_a_subclass_is_given_the_rows_and_the_targets_of_validation():
    data = Interactions.of(random_table(0))
    model = Oracle(np.zeros((data.n_users, data.n_items))).fit(data)
    train, validation, options = model.given_
    rest, last = data.without_last()
    assert train.to_table().equals(rest.to_table())
    assert validation.items.tolist() == last.tolist()
    assert options == {"checkpoint": None, "observers": ()}


def test_perfect_scores_give_perfect_figures():
    data = Interactions.of(random_table(0))
    rest, last = data.without_last()
    matrix = np.zeros((data.n_users, data.n_items))
    matrix[np.arange(data.n_users), last] = 1.0
    found = Oracle(matrix).fit(rest).evaluate(leave_one_out(data).test)
    assert {found[name] for name in ("hr@5", "ndcg@5", "mrr@5", "mrr", "ndcg@20")} == {1.0}
    assert found.estimates["hr@5"].standard_error == 0.0
    assert found["baselines"]["popularity"]["hr@5"] < 1.0
