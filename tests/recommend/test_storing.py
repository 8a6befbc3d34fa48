from __future__ import annotations

import polars as pl
from recommend.tables import table

import seqattn
from seqattn import PopularityRecommender


def test_enumerations_come_back_from_a_file_with_their_order(tmp_path):
    kind = pl.Enum(["w", "v", "u"])
    rows = table(["u", "v"], ["v", "w"], ["w", "u"]).with_columns(pl.col("item_id").cast(kind))
    model = PopularityRecommender().fit(rows, validation=None)
    opened = seqattn.load(model.save(tmp_path))
    assert opened.item_ids_.dtype == model.item_ids_.dtype == kind
    assert opened.recommend(k=2).equals(model.recommend(k=2))
    assert opened.digest() == model.digest()
    assert opened.partial_fit(rows).item_ids_.dtype == kind
