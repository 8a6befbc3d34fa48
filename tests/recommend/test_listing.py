from __future__ import annotations

import pickle

import numpy as np
import polars as pl
import pytest
from recommend.tables import Given, plain, random_table, table

from seqattn import MarkovRecommender, PopularityRecommender
from seqattn.errors import ParameterError, UnknownIdError
from seqattn.recommend.ranking import top_items

TUPLES = [("a", 1), ("a", 2), ("b", 1)]


@pytest.fixture
def odd() -> MarkovRecommender:
    """A recommender of tuples to tuples."""
    who, what = [0, 0, 1, 1, 2], [0, 1, 1, 2, 0]
    columns = {
        name: pl.Series([TUPLES[i] for i in codes], dtype=pl.Object)
        for name, codes in (("user_id", who), ("item_id", what))
    }
    return MarkovRecommender().fit(pl.DataFrame(columns | {"timestamp": range(5)}), validation=None)


@pytest.mark.parametrize("k", [0, -1, True])
def test_lengths_that_are_no_positive_number_are_refused(k, tmp_path):
    model = PopularityRecommender().fit(random_table(0))
    uses = (
        lambda: model.recommend([1], k=k),
        lambda: model.recommend_for([[1]], k=k),
        lambda: model.similar_items([1], k=k),
        lambda: model.export_topk(tmp_path / "x.parquet", k=k),
    )
    for use in uses:
        with pytest.raises(ParameterError, match=f"k={k!r}"):
            use()


def test_lengths_that_are_no_whole_number_are_refused(run_python):
    """In a process of its own, without the checks of types that run in the tests."""
    done = run_python(
        """
from seqattn import PopularityRecommender
from seqattn.errors import ParameterError
model = PopularityRecommender().fit({"user_id": [1, 1], "item_id": [1, 2], "timestamp": [1, 2]}, validation=None)
for k in (2.5, "5", None):
    for use in (model.recommend, model.similar_items, model.export_topk):
        try:
            use(*{"recommend": [], "similar_items": [[1]], "export_topk": ["x.parquet"]}[use.__name__], k=k)
        except ParameterError as error:
            print(str(error).split()[0])
"""
    )
    assert done.stdout.split() == ["k=2.5"] * 3 + ["k='5'"] * 3 + ["k=None"] * 3, done.stderr


def test_a_length_beyond_the_catalogue_takes_no_more_memory_than_the_catalogue():
    items, scores = top_items(Given(np.zeros((1, 4))), plain([0, 1], [2], 4), 10**12)
    assert items.tolist() == [[0, 1, 3, -1]]
    assert scores.shape == (1, 4)
    model = PopularityRecommender(cold_items="keep").fit(random_table(0))
    assert model.recommend([1], k=10**12).equals(model.recommend([1], k=40))


def test_only_unknown_items_of_mixed_kinds_are_named():
    model = MarkovRecommender(unknown_items="error").fit(table(["a", "b"], ["b", "a"]), validation=None)
    with pytest.raises(UnknownIdError, match="^Item 3 was not in the fit"):
        model.recommend_for([["a", 3], ["b"]])


def test_a_recommender_of_tuples_can_be_pickled(odd):
    again = pickle.loads(pickle.dumps(odd))
    assert again.recommend(k=3).rows() == odd.recommend(k=3).rows()
    assert again.digest() == odd.digest()


def test_lists_of_tuples_are_exported_as_text_into_a_new_folder(odd, tmp_path):
    place = odd.export_topk(tmp_path / "new" / "lists.parquet", k=2, user_batch=1)
    found, expected = pl.read_parquet(place), odd.recommend(k=2)
    assert found.schema["user_id"] == found.schema["item_id"] == pl.String
    for name in ("user_id", "item_id"):
        assert found[name].to_list() == [str(key) for key in expected[name].to_list()]
