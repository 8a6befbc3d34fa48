"""Explanations: they add up exactly, lie where the classes differ, and name what the decision rests on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from planted import ragged, with_level, with_pattern
from scipy.stats import wilcoxon

from seqattn.classify.cases import case_batch
from seqattn.classify.estimator import VSFormerClassifier
from seqattn.classify.reading import number_of_case, require_count
from seqattn.data.catalog import load_dataset
from seqattn.data.panels import Panel
from seqattn.errors import DataError, ParameterError, SeqattnWarning

QUICK = {
    "shape_tokens": 24,
    "value_tokens": 16,
    "readout_shapes": 64,
    "d_model": 16,
    "n_heads": 2,
    "epochs": 2,
    "batch_size": 16,
    "random_state": 0,
    "device": "cpu",
}
RAGGED = ragged(0, [40, 33, 52, 28, 47, 39, 61, 30, 44, 36, 50, 41], gaps=0.1)
WAYS = {
    "defaults": {},
    "paper": {"shapes": "motif", "readout_shapes": 0, "derivatives": False},
    "readout only": {"network_weight": 0, "readout_shapes": 600},
    "members": {"n_members": 2},
    "mean": {"head": "mean", "fusion": "joint"},
    "shortened": {"max_length": 25},
    "values": {"tokens": "value"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("panel", [RAGGED, with_level(0)], ids=["ragged", "equal"])
def test_contributions_and_map_sum_to_the_logit_difference(panel, way):
    model = VSFormerClassifier(**{**QUICK, **WAYS[way]}).fit(panel)
    for target in (None, panel.labels[0].item()):
        found = model.explain(panel, target)
        total = sum(found.contribution(piece).sum(axis=1) for piece in found.pieces)
        np.testing.assert_allclose(total, found.difference, atol=1e-5)
        np.testing.assert_allclose(found.map.sum(axis=(1, 2)), found.difference, atol=1e-5)
        for case, values in enumerate(panel.series):
            assert not found.map[case, :, values.shape[1] :].any()
    # The logits are those of the probabilities, and "as usual" is the mean over the training cases.
    np.testing.assert_allclose(found.logits.mean(axis=0), found.usual, atol=1e-5)
    probability = torch.from_numpy(found.logits).softmax(dim=1).numpy()
    np.testing.assert_allclose(probability, model.predict_proba(panel), atol=1e-6)
    assert np.array_equal(found.target, np.full(len(panel), panel.labels[0]))


@pytest.mark.parametrize("way", ["defaults", "paper", "shortened"])
def test_missing_points_at_the_end_move_no_explanation(way):
    model = VSFormerClassifier(**{**QUICK, **WAYS[way]}).fit(RAGGED)
    padded = Panel([np.pad(case, ((0, 0), (0, 30)), constant_values=np.nan) for case in RAGGED.series])
    plain, found = model.explain(RAGGED), model.explain(padded)
    np.testing.assert_allclose(found.map[..., : plain.map.shape[2]], plain.map, atol=1e-9)
    assert not found.map[..., plain.map.shape[2] :].any()
    assert found.top(5).equals(plain.top(5))


def test_a_panel_that_is_padded_is_learnt_like_shorter_series():
    padded = Panel(
        [np.pad(case, ((0, 0), (0, 30)), constant_values=np.nan) for case in RAGGED.series], RAGGED.labels
    )
    plain, found = (VSFormerClassifier(**QUICK).fit(panel) for panel in (RAGGED, padded))
    assert found.fit_report_["learnt"] == plain.fit_report_["learnt"]
    assert np.array_equal(found.predict_proba(padded), plain.predict_proba(RAGGED))


def test_pieces_lie_in_the_channels_and_spans_of_their_tokens():
    model = VSFormerClassifier(**QUICK, n_members=2).fit(RAGGED)
    tokens, tables = model.tokenise(RAGGED), {"shape": model.shapes_, "value": model.intervals_}
    pieces = [piece for piece in model.explain(RAGGED).pieces if piece.kind in tables]
    assert [piece.kind for piece in pieces] == ["shape", "value"] * 2
    assert set(pieces[0].number).isdisjoint(pieces[2].number)
    for piece in pieces:
        rows = tables[piece.kind][piece.number]
        assert piece.channels[:, 0].tolist() == rows["channel"].to_list()
        assert piece.is_difference.tolist() == rows["is_difference"].to_list()
        if piece.kind == "shape":
            assert np.array_equal(piece.spans, tokens.shape_span[:, piece.number])
        else:
            assert np.array_equal(piece.spans[3], rows.select("start", "end").to_numpy())


def test_the_map_is_the_sum_over_pieces_point_by_point():
    model = VSFormerClassifier(**{**QUICK, "readout_shapes": 600}).fit(RAGGED)
    found = model.explain(RAGGED)
    assert max((piece.channels >= 0).sum(axis=1).max() for piece in found.pieces) > 1
    for case in (0, 3):
        length = RAGGED.series[case].shape[1]
        expected = np.zeros(found.map.shape[1:])
        for piece in found.pieces:
            for number, share in enumerate(found.contribution(piece)[case]):
                own = [channel for channel in piece.channels[number] if channel >= 0]
                start, end = piece.spans[case, number] * length
                points = [t for t in range(length) if t + 1 > start + 1e-9 and t < end - 1e-9]
                for channel in own:
                    expected[channel, points] += share / (len(own) * len(points))
        np.testing.assert_allclose(found.map[case], expected, atol=1e-7)


def test_the_table_holds_the_largest_contributions():
    model = VSFormerClassifier(**QUICK).fit(RAGGED)
    found = model.explain(RAGGED)
    everything = np.concatenate([found.contribution(piece)[2] for piece in found.pieces])
    table = found.top(7, case=2)
    np.testing.assert_allclose(table["contribution"].abs(), np.sort(np.abs(everything))[::-1][:7])
    assert table["case"].unique().to_list() == [2]
    assert set(table["target"]) == {found.classes[found.target[2]].item()}
    assert (table["start"] >= 0).all()
    assert (table["end"] <= RAGGED.series[2].shape[1]).all()
    assert found.top(3).height == 3 * len(RAGGED)


def test_what_cannot_be_explained_is_refused():
    model = VSFormerClassifier(**QUICK).fit(RAGGED)
    with pytest.raises(DataError, match="target=7 is no class. Classes: \\[0, 1\\]"):
        model.explain(RAGGED, target=7)


def test_labels_of_any_kind_are_told_as_they_were_given():
    names = np.array(["down", "up"], dtype=object)[RAGGED.labels]
    model = VSFormerClassifier(**QUICK).fit(list(RAGGED.series), names)
    assert set(model.shapes_["class"]) == {"down", "up"}
    assert set(model.explain(list(RAGGED.series), target="up").top(1)["target"]) == {"up"}


def test_cases_that_never_change_are_explained_by_nothing():
    still = Panel(np.ones((6, 2, 20)), np.arange(6) % 2)
    found = VSFormerClassifier(**QUICK).fit(still).explain(still)
    np.testing.assert_allclose(found.map, 0, atol=1e-9)


# -- faithful --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_pattern():
    """Return a network fitted on cases with and without a pattern, new cases, and where the pattern is."""
    train, _ = with_pattern(0, n_cases=60)
    test, starts = with_pattern(1, n_cases=60)
    settings = {**QUICK, "readout_shapes": 0, "tokens": "shape", "epochs": 40, "shape_tokens": 64}
    settings["n_members"] = 1
    return VSFormerClassifier(**settings, derivatives=False).fit(train), test, starts


@pytest.fixture(scope="module")
def of_motions():
    """Return a network fitted on BasicMotions, and the test cases."""
    settings = {**QUICK, "readout_shapes": 0, "epochs": 30, "shape_tokens": 48, "value_tokens": 32}
    settings["n_members"] = 1
    model = VSFormerClassifier(**settings).fit(load_dataset("BasicMotions", "train"))
    return model, load_dataset("BasicMotions", "test")


@pytest.fixture(scope="module")
def of_level():
    """Return a network fitted on cases whose level in one interval tells the class, and new cases."""
    settings = {**QUICK, "readout_shapes": 0, "tokens": "value", "derivatives": False, "epochs": 30}
    settings["value_tokens"] = 45
    model = VSFormerClassifier(**settings, n_members=1).fit(with_level(0, height=1.5))
    return model, with_level(1, height=1.5)


def lost(model: VSFormerClassifier, panel: Panel, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return what the target's logit loses without the ten tokens of largest contribution, and without ten others.

    The network is run again with the tokens gone, so that attention and all layers feel it.
    """
    tokens, found = model.tokenise(panel), model.explain(panel)
    shares = np.concatenate([found.contribution(piece) for piece in found.pieces], axis=1)
    rows, rng = np.arange(len(panel)), np.random.default_rng(seed)
    batch = case_batch(tokens)
    assert shares.shape == batch.observed.shape

    def logits(gone: np.ndarray) -> np.ndarray:
        observed = batch.observed.clone()
        observed[torch.from_numpy(rows)[:, None], torch.from_numpy(gone)] = False
        with torch.inference_mode():
            return model.modules_[0](replace(batch, observed=observed)).numpy()[rows, found.target]

    whole = logits(np.zeros((len(panel), 0), dtype=np.int64))
    np.testing.assert_allclose(whole, found.logits[rows, found.target], atol=1e-5)
    largest = np.argsort(-shares, axis=1)[:, :10]
    # The mean of several draws of ten tokens: one draw of ten is noise of its own.
    draws = [np.argsort(rng.random(shares.shape), axis=1)[:, :10] for _ in range(10)]
    return whole - logits(largest), whole - np.mean([logits(gone) for gone in draws], axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["of_pattern", "of_level", "of_motions"])
def test_tokens_with_large_contributions_are_missed_more_than_others(data, request):
    model, panel, *_ = request.getfixturevalue(data)
    assert model.score(panel, panel.labels) > 0.9
    without_largest, without_others = lost(model, panel)
    assert wilcoxon(without_largest, without_others, alternative="greater").pvalue < 0.01
    assert without_largest.mean() > 2 * without_others.mean()


@pytest.mark.slow
def test_the_explanation_lies_on_the_pattern(of_pattern):
    model, panel, starts = of_pattern
    found, hits, shares = model.explain(panel, target="with"), [], []
    for case in np.flatnonzero(panel.labels == "with"):
        own = np.maximum(found.map[case], 0)
        channel, point = np.unravel_index(own.argmax(), own.shape)
        hits.append(channel == 2 and starts[case] <= point < starts[case] + 30)
        shares.append(own[2, starts[case] : starts[case] + 30].sum() / own.sum())
    # The pattern covers a tenth of all points.
    assert np.mean(hits) > 0.8
    assert np.mean(shares) > 0.3


@pytest.mark.slow
def test_the_explanation_lies_on_the_level():
    train, test = with_level(0, height=1.5), with_level(1, height=1.5)
    settings = {**QUICK, "readout_shapes": 0, "tokens": "value", "derivatives": False, "epochs": 30}
    model = VSFormerClassifier(**settings).fit(train)
    found = model.explain(test, target=1).map[test.labels == 1].mean(axis=0)
    assert found[1, 20:40].sum() > 3 * np.abs(found[[0, 2]]).sum()
    assert found[1, 20:40].mean() > 3 * np.abs(found[1, 40:]).mean()


# -- tables ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["defaults", "paper", "shortened"])
def test_the_table_of_shapes_tells_where_they_come_from(way):
    model = VSFormerClassifier(**{**QUICK, **WAYS[way]}).fit(RAGGED)
    table, longest = model.shapes_, max(RAGGED.lengths)
    tokeniser = model.tokeniser_
    names = "id class channel is_difference source start end prior inside outside weight"
    assert table.columns == names.split()
    assert table.height == len(tokeniser.shapes) > 0
    assert set(table["class"]) <= {0, 1}
    assert table["channel"].is_between(0, 2).all()
    assert (table["start"] < table["end"]).all()
    # The last mean of neighbours may be one of fewer points.
    assert table["end"].max() <= longest + tokeniser.scaling.factor
    assert (table["weight"] > 0).any()
    # The source is a case of that class, in the order of the fit.
    _, codes = model._prepared(RAGGED)
    assert codes[table["source"].to_numpy()].tolist() == table["class"].to_list()


def test_the_table_of_intervals_names_the_level():
    panel = with_level(0, n_cases=300, height=0.6)
    model = VSFormerClassifier(**{**QUICK, "epochs": 1, "derivatives": False, "n_members": 1}).fit(panel)
    table = model.intervals_
    best = table.row(0, named=True)
    assert (best["channel"], best["is_difference"], best["start"], best["end"]) == (1, False, 0.25, 0.5)
    assert best["gain_mean"] == best["prior"] > 0.4
    assert table["is_token"].sum() == 16
    assert table["weight"].is_nan().sum() == table.height - 16
    assert table["prior"].to_list() == sorted(table["prior"], reverse=True)
    gains = table.select("gain_mean", "gain_deviation", "gain_slope").to_numpy()
    assert np.array_equal(table["prior"].to_numpy(), gains.max(axis=1))


def test_of_a_case_without_values_the_explanation_says_that_nothing_is_known():
    model = VSFormerClassifier(**QUICK).fit(RAGGED)
    cases = [RAGGED.series[0], np.full((RAGGED.n_channels, 20), np.nan), RAGGED.series[1]]
    with pytest.warns(
        SeqattnWarning, match=r"1 case\(s\) without any value, the first is case 1: nothing is"
    ):
        found = model.explain(cases)
    with pytest.warns(SeqattnWarning, match="get the class shares"):
        assert model.classes_[found.target].tolist() == model.predict(cases).tolist()
    assert np.array_equal(found.logits[1], found.usual)
    assert not found.map[1].any()
    assert [found.top(4, case).height for case in range(3)] == [4, 0, 4]
    assert found.top(4).equals(pl.concat([found.top(4, case) for case in (0, 2)]))
    alone = model.explain([cases[0], cases[2]])
    np.testing.assert_allclose(found.map[[0, 2]][..., : alone.map.shape[2]], alone.map, atol=1e-9)


@pytest.mark.parametrize(
    ("k", "case", "kind", "text"),
    [
        (2, 99, DataError, "There is no case 99: The explanation has 12, counted from 0"),
        (2, -1, DataError, "There is no case -1"),
        (0, None, ParameterError, "k=0 is not allowed. Give a whole number, at least 1"),
        (-1, 0, ParameterError, "k=-1 is not allowed"),
    ],
)
def test_the_largest_contributions_of_no_case_or_number_are_refused(k, case, kind, text, explained):
    with pytest.raises(kind, match=text):
        explained.top(k, case)


def test_parts_of_cases_and_of_rows_are_refused():
    with pytest.raises(DataError, match="There is no case 1.5: X has 3, counted from 0"):
        number_of_case(1.5, 3, "X")
    with pytest.raises(ParameterError, match="k=2.5 is not allowed"):
        require_count(2.5)


@pytest.fixture(scope="module")
def explained():
    return VSFormerClassifier(**{**QUICK, "network_weight": 0}).fit(RAGGED).explain(RAGGED)
