"""What is learnt before the network: nothing of it from test data, within its bounds, and it comes back from a file."""

from __future__ import annotations

import numpy as np
import pytest
from planted import noise, ragged, with_level
from sklearn.model_selection import StratifiedKFold

from seqattn.classify import tokens
from seqattn.classify.estimator import VSFormerClassifier
from seqattn.classify.recipe import Recipe
from seqattn.classify.tokens import Tokeniser, Tokens
from seqattn.data.panels import Panel

RECIPE = {
    "shapes": "dilated",
    "window_fractions": (0.2, 0.4),
    "motifs_per_cell": 2,
    "match": "znorm",
    "locality": 0.15,
    "profile_cap": 4000,
    "derivatives": True,
    "granularities": (1, 2, 4),
    "shape_tokens": 12,
    "value_tokens": 8,
    "tokens": "both",
    "readout_shapes": 40,
    "max_length": 1024,
    "n_jobs": None,
}
QUICK = {
    "shape_tokens": 8,
    "value_tokens": 8,
    "readout_shapes": 32,
    "d_model": 8,
    "n_heads": 2,
    "n_layers": 1,
    "epochs": 2,
    "random_state": 0,
    "device": "cpu",
}
PANELS = {
    "equal": noise(0, n_cases=16),
    "ragged": ragged(1, [30, 41, 22, 35, 18, 50, 29, 33]),
    "gappy": ragged(2, [30, 41, 22, 35, 18, 50, 29, 33], gaps=0.3),
}


def learn(panel: Panel, seed: int = 0, **changes) -> tuple[Tokeniser, Tokens]:
    """Return a tokeniser of a panel whose labels are numbers."""
    return Tokeniser.learn(panel, np.asarray(panel.labels), Recipe(**{**RECIPE, **changes}), seed)


def assert_same(one: Tokens, other: Tokens) -> None:
    for name, value in vars(one).items():
        if name == "families":
            for left, right in zip(value, other.families, strict=True):
                assert np.array_equal(left, right)
        else:
            assert np.array_equal(value, getattr(other, name)), name


# -- nothing from test data ------------------------------------------------------------------------------------


def test_test_data_leave_everything_that_is_learnt_as_it_is():
    train, test = with_level(0), with_level(1)
    plain = VSFormerClassifier(**QUICK).fit(train)
    wanted, learnt = plain.predict_proba(test), plain.fit_report_["learnt"]
    rng = np.random.default_rng(2)
    others = {
        "permuted labels": Panel(test.series, rng.permutation(test.labels)),
        "other values": Panel(
            [case * 100 + rng.normal(size=case.shape) for case in test.series], test.labels
        ),
        "fewer": test.select([3]),
    }
    for watch in others.values():
        model = VSFormerClassifier(**QUICK).fit(train, watch=watch)
        model.predict(watch)
        model.explain(watch)
        assert model.fit_report_["learnt"] == learnt
        assert np.array_equal(model.predict_proba(test), wanted)


def test_held_out_cases_choose_the_epoch_and_nothing_else():
    train, test = with_level(0), with_level(1)
    learnt = VSFormerClassifier(**QUICK).fit(train).fit_report_["learnt"]
    for labels in (test.labels, 1 - test.labels):
        model = VSFormerClassifier(**QUICK).fit(train, validation=(list(test.series), labels))
        assert model.fit_report_["learnt"] == learnt
        assert model.history_.best_epoch is not None


@pytest.mark.parametrize("way", ["validation", "calibration"])
def test_tokens_for_the_choice_are_learnt_without_the_cases_that_are_held_out(way, monkeypatch):
    train, seen = with_level(0), []
    real = Tokeniser.learn

    def spy(panel, labels, *rest):
        seen.append({case.tobytes() for case in panel.series})
        return real(panel, labels, *rest)

    monkeypatch.setattr(Tokeniser, "learn", spy)
    VSFormerClassifier(**QUICK, **{way: 0.25}).fit(train)
    assert [len(cases) for cases in seen] == [30, 40]
    assert seen[0] < seen[1]


def test_the_hash_tells_of_training_data_and_labels():
    train = with_level(0)
    hashes = [
        VSFormerClassifier(**{**QUICK, "epochs": 1}).fit(X).fit_report_["learnt"]
        for X in (
            train,
            # Not 1 - labels: other names for the same classes teach the same.
            Panel(train.series, [*train.labels[[1, 0]], *train.labels[2:]]),
            Panel([*train.series[:-1], train.series[-1] + 1e-6], train.labels),
            train.select(range(39)),
        )
    ]
    assert len(set(hashes)) == 4


def accuracies(monkeypatch, n_permutations: int, is_leaky: bool) -> np.ndarray:
    """Return cross-validated accuracies on noise with permuted labels, one per permutation."""
    setting = {**QUICK, "tokens": "value", "readout_shapes": 0, "derivatives": False, "label_smoothing": 0.0}
    setting |= {"epochs": 20, "batch_size": 30, "learning_rate": 0.02, "dropout": 0.0, "value_tokens": 10}
    setting["n_members"] = 1
    real, found = Tokeniser.learn, []
    for seed in range(n_permutations):
        X = noise(seed, n_cases=40, n_channels=30, time=24, n_classes=2)
        y = np.random.default_rng(seed).permutation(X.labels)

        def leaky(panel, labels, recipe, seed, report=None, X=X, y=y):
            """Choose the tokens with the labels of all cases, as if they were no part of what is judged."""
            tokeniser, _ = real(X, y, recipe, seed, report)
            return tokeniser, tokeniser(panel)

        monkeypatch.setattr(Tokeniser, "learn", leaky if is_leaky else real)
        right = []
        for learned, judged in StratifiedKFold(3, shuffle=True, random_state=seed).split(y, y):
            model = VSFormerClassifier(**setting).fit(X.select(learned), y[learned])
            right.extend(model.predict(X.select(judged)) == y[judged])
        found.append(np.mean(right))
    return np.array(found)


def is_at_chance(found: np.ndarray) -> bool:
    """Return whether the mean lies within three standard errors of one half."""
    return abs(found.mean() - 0.5) < 3 * found.std(ddof=1) / np.sqrt(len(found))


@pytest.mark.slow
def test_labels_that_mean_nothing_stay_at_chance_in_cross_validation(monkeypatch):
    assert is_at_chance(accuracies(monkeypatch, 20, is_leaky=False))
    # The same with tokens that are learnt outside the folds is found out.
    leaky = accuracies(monkeypatch, 6, is_leaky=True)
    assert not is_at_chance(leaky)
    assert leaky.mean() > 0.6


@pytest.mark.slow
def test_defaults_stay_at_chance_on_labels_that_mean_nothing():
    found = []
    for seed in range(6):
        X = noise(seed, n_cases=40, n_channels=3, time=30, n_classes=2)
        y = np.random.default_rng(seed).permutation(X.labels)
        right = []
        for learned, judged in StratifiedKFold(2, shuffle=True, random_state=seed).split(y, y):
            model = VSFormerClassifier(epochs=1, random_state=0, device="cpu").fit(
                X.select(learned), y[learned]
            )
            right.extend(model.predict(X.select(judged)) == y[judged])
        found.append(np.mean(right))
    assert is_at_chance(np.array(found))


# -- sizes, bounds, files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PANELS)
@pytest.mark.parametrize("shapes", ["dilated", "motif"])
def test_tokens_of_training_cases_are_those_of_any_cases(name, shapes):
    tokeniser, found = learn(PANELS[name], shapes=shapes)
    assert_same(tokeniser(PANELS[name]), found)
    for case in range(len(PANELS[name])):
        alone = tokeniser(PANELS[name].select([case]))
        np.testing.assert_allclose(alone.shape[0], found.shape[case], rtol=0, atol=1e-9)
        assert np.array_equal(alone.value[0], found.value[case])


@pytest.mark.parametrize("name", PANELS)
@pytest.mark.parametrize("shapes", ["dilated", "motif"])
def test_a_tokeniser_comes_back_from_its_arrays(name, shapes):
    tokeniser, found = learn(PANELS[name], shapes=shapes)
    again = Tokeniser.from_arrays(tokeniser.to_arrays())
    assert_same(again(PANELS[name]), found)
    assert again.digest() == tokeniser.digest()
    assert again.report() == tokeniser.report()
    assert np.array_equal(again.prior, tokeniser.prior)


def test_equal_seeds_give_equal_hashes_and_others_do_not():
    assert learn(PANELS["gappy"])[0].digest() == learn(PANELS["gappy"])[0].digest()
    assert learn(PANELS["gappy"])[0].digest() != learn(PANELS["gappy"], seed=1)[0].digest()


@pytest.mark.parametrize(
    ("kinds", "n_shapes", "n_values"), [("both", 12, 8), ("shape", 12, 0), ("value", 0, 8)]
)
def test_kinds_that_are_not_wanted_are_not_there(kinds, n_shapes, n_values):
    tokeniser, found = learn(PANELS["equal"], tokens=kinds)
    assert found.shape.shape[1] == n_shapes == len(tokeniser.shapes)
    assert found.value.shape[1] == n_values
    assert found.observed.shape == (16, n_shapes + n_values)
    assert len(tokeniser.banks) == (4 if n_shapes else 0)
    assert len(found.families) == len(tokeniser.banks) + (2 if n_values else 0)
    assert sum(map(len, tokeniser.banks)) == (40 if n_shapes else 0)


def test_statistics_of_shapes_are_in_units_of_the_training_data():
    _, found = learn(PANELS["equal"])
    statistics = found.shape[..., -3:]
    np.testing.assert_allclose(statistics.mean(axis=0), 0, atol=1e-9)
    spread = statistics.std(axis=0)
    np.testing.assert_allclose(spread[spread > 0], 1, atol=1e-9)
    assert (spread > 0).mean() > 0.9


@pytest.mark.parametrize("name", PANELS)
def test_everything_is_finite_and_priors_are_shares_of_the_largest(name):
    tokeniser, found = learn(PANELS[name])
    for value in (found.shape, found.shape_span, found.value, found.share, *found.families):
        assert np.isfinite(value).all()
    assert ((tokeniser.prior >= 0) & (tokeniser.prior <= 1)).all()
    assert tokeniser.prior[:12].max() == 1
    assert found.share.min() >= 0
    assert found.share.max() <= 1


def test_the_readout_holds_no_more_numbers_than_it_may(monkeypatch):
    n_cases = len(PANELS["equal"])
    monkeypatch.setattr(tokens, "_MOST_NUMBERS", 3 * n_cases * 20)
    tokeniser, found = learn(PANELS["equal"], readout_shapes=4000)
    assert sum(family.size for family in found.families[:4]) <= 3 * n_cases * 20
    assert sum(map(len, tokeniser.banks)) == 20
    # Many cases: the equation that is solved has as many unknowns as a family has features.
    monkeypatch.setattr(tokens, "_MOST_NUMBERS", 2**25)
    monkeypatch.setattr(tokens, "_LARGEST_SYSTEM", n_cases - 1)
    tokeniser, found = learn(PANELS["equal"], readout_shapes=4000)
    assert {family.shape[1] <= n_cases - 1 for family in found.families[:4]} == {True}


def test_long_series_are_shortened_and_the_report_says_so():
    tokeniser, found = learn(ragged(3, [100, 80, 40, 90]), max_length=30)
    assert tokeniser.report()["points_per_mean"] == 4
    assert tokeniser.series(ragged(3, [100, 80, 40, 90])).lengths.tolist() == [25, 20, 10, 23]
    assert found.shape_span.max() <= 1


def test_channels_that_never_change_have_no_shapes_and_no_prior():
    values = np.random.default_rng(4).normal(size=(12, 3, 30))
    values[:, 1] = 7.0
    tokeniser, found = learn(Panel(values, np.arange(12) % 2), readout_shapes=100)
    assert not np.isin(tokeniser.shapes.channels, [1, 4]).any()
    for bank in tokeniser.banks:
        assert not np.isin(bank.channels, [1, 4]).any()
    own = np.isin(tokeniser.intervals.channel, [1, 4])
    assert not tokeniser.intervals.prior[own].any()
    still = Panel(np.ones((12, 3, 30)), np.arange(12) % 2)
    tokeniser, found = learn(still)
    assert found.shape.shape[1] == 0
    assert np.isfinite(found.value).all()


def test_what_is_missing_in_a_case_has_the_training_mean_in_the_readout():
    panel = PANELS["equal"]
    tokeniser, found = learn(panel, readout_shapes=8000)
    empty = panel.series[0].copy()
    empty[1] = np.nan
    new = tokeniser(Panel([empty]))
    gone = np.isin(tokeniser.channel, [1, 3])
    assert not new.observed[0, gone].any()
    assert new.observed[0, ~gone].all()
    assert not new.shape[0, gone[:12]].any()
    for bank, family, trained in zip(tokeniser.banks, new.families, found.families, strict=False):
        alone = np.isin(bank.channels, [-1, 1, 3]).all(axis=1)
        assert alone.any()
        means = trained.mean(axis=0).reshape(-1, 3)
        np.testing.assert_allclose(family.reshape(-1, 3)[alone], means[alone], atol=1e-12)
