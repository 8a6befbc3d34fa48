from __future__ import annotations

import copy
import pickle

import polars as pl
import pytest

from seqattn.data.ids import ids_of, joined_ids
from seqattn.data.interactions import Interactions

TUPLES = [("a", 1), ("a", 2), ("b", 1)]


@pytest.mark.parametrize("twin", [lambda X: pickle.loads(pickle.dumps(X)), copy.deepcopy])
@pytest.mark.parametrize("names", [TUPLES, ["u", 2, 3.5], ["u", "v", "w"]])
def test_interactions_with_ids_of_any_kind_can_be_pickled(names, twin):
    rows = pl.DataFrame(
        {
            "user_id": pl.Series([0, 0, 1]),
            "item_id": pl.Series(names, dtype=None if names[1] == "v" else pl.Object),
            "timestamp": [0, 1, 2],
        }
    )
    data = Interactions.of(rows)
    again = twin(data)
    assert again.digest() == data.digest()
    assert again.item_ids.to_list() == data.item_ids.to_list() == [names[i] for i in range(3)]
    assert (again.item_ids.dtype, again.item_ids.name) == (data.item_ids.dtype, data.item_ids.name)


@pytest.mark.parametrize("names", [["c", "a", "c"], [7, 2, 7], [("a", 1), "x", ("a", 1)]])
def test_a_known_id_that_is_named_twice_is_one(names):
    assert ids_of(names, is_once=True).to_list() == names[:2]
    item = names[0]
    rows = {"user_id": [1, 1], "item_id": [item, item], "timestamp": [0, 1]}
    if isinstance(item, tuple):
        rows = pl.DataFrame({**rows, "item_id": pl.Series([item, item], dtype=pl.Object)})
    data = Interactions.of(rows, items=names)
    assert data.item_ids.to_list() == names[:2]
    assert data.items.tolist() == [0, 0]


def test_enumerations_stay_such_and_grow_where_they_must():
    known = pl.Series(["v", "u"], dtype=pl.Enum(["w", "v", "u"]))
    inside, outside = pl.Series(["w", "u"]), pl.Series(["q"], dtype=pl.Categorical)
    assert joined_ids(known, inside, "Items").dtype == known.dtype
    assert joined_ids(known, inside, "Items").to_list() == ["v", "u", "w"]
    assert joined_ids(known, outside, "Items").dtype == pl.Enum(["w", "v", "u", "q"])
