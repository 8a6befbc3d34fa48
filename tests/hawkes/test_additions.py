from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hawkes.random_models import ADDITIONS, LOCAL, PLAIN, random_histories, random_model
from scipy import stats

import seqattn
from seqattn import SAHP, Sequences
from seqattn.data.batches import pack
from seqattn.errors import DataError, ParameterError
from seqattn.hawkes.estimator import MAX_EVENTS

ALL = {**ADDITIONS, "n_decays": 2, "d_model": 8, "device": "cpu", "baselines": False, "random_state": 0}
# Nats per event of gaps from an equal mixture of two normal laws that do not overlap.
MIXTURE = -(np.log(2) + np.log(2 * np.pi * np.e * 0.05**2) / 2)


def mixture_gaps(seed: int, n: int) -> Sequences:
    rng = np.random.default_rng(seed)
    gaps = np.where(rng.random((n, 60)) < 0.5, 1.0, 5.0) + 0.05 * rng.standard_normal((n, 60))
    return Sequences.from_lists([(times, np.zeros(60, int)) for times in gaps.cumsum(1)], labels=1)


def log_density(gaps: np.ndarray) -> np.ndarray:
    z = (gaps[:, None] - np.array([1.0, 5.0])) / 0.05
    return np.log(np.exp(-(z**2) / 2).mean(1) / (0.05 * np.sqrt(2 * np.pi)))


@pytest.mark.slow
def test_two_peaks_of_gaps_are_learned_with_gap_kernels_only():
    """The exact value is the most that any honest model can reach."""
    assert pytest.approx(0.884, abs=5e-4) == MIXTURE
    train, test = mixture_gaps(0, 240), mixture_gaps(1, 100)
    common = {
        **PLAIN,
        "d_model": 16,
        "n_layers": 1,
        "baselines": False,
        "random_state": 0,
        "device": "cpu",
        "dropout": 0.0,
    }
    model = SAHP(**{**common, "gap_kernels": 8, "epochs": 20}).fit(train)
    scores = model._scores(test)
    counted = scores.counted("from_first") & scores.ends
    mine = (scores.log_total + scores.log_type - scores.compensator)[counted]
    gaps = np.diff(test.times.reshape(100, 60), axis=1).ravel()
    order = np.lexsort((scores.position[counted], scores.row[counted]))
    gain = mine[order] - log_density(gaps)
    assert -0.02 < gain.mean() < 3 * gain.std() / np.sqrt(len(gain))
    plain = SAHP(**{**common, "epochs": 4}).fit(train)
    assert plain.log_likelihood(test, "from_first").per_event < -1


def recurrences(seed: int, n: int) -> Sequences:
    """Type a comes back after N(40, 0.003^2), while type b is a Poisson process of rate 0.5; windows of length 120."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(n):
        a = np.cumsum(np.concatenate([rng.uniform(0, 40, 1), rng.normal(40, 0.003, 3)]))
        a, b = a[a < 120], rng.uniform(0, 120, rng.poisson(60))
        order = np.argsort(np.concatenate([a, b]))
        rows.append((np.concatenate([a, b])[order], np.repeat([0, 1], [len(a), len(b)])[order]))
    return Sequences.from_lists(rows, labels=2, window=(0.0, 120.0))


def exact_log_likelihood(data: Sequences) -> float:
    """The first a is uniform on (0, 40), gaps are normal, and the last one is censored."""
    total, law = 0.0, stats.norm(40, 0.003)
    for times, kinds in (data.sequence(row) for row in range(len(data))):
        a = times[kinds == 0]
        total += (kinds == 1).sum() * np.log(0.5) - 60 - np.log(40)
        total += law.logpdf(np.diff(a)).sum() + law.logsf(120 - a[-1])
    return total / data.n_events


@pytest.mark.slow
def test_narrow_peaks_far_from_zero_are_kept_by_training():
    """A step of the optimiser must be small beside the kernel's width: one in ten thousand of its distance here."""
    test = recurrences(1, 100)
    options = {"own_kernels": 4, "d_model": 8, "n_heads": 1, "n_layers": 1, "batch_size": 512, "epochs": 10}
    options |= {"validation": None, "baselines": False, "random_state": 0, "device": "cpu", "dropout": 0.0}
    model = SAHP(**{**PLAIN, **options}).fit(recurrences(0, 150))
    exact = exact_log_likelihood(test)
    assert exact - 0.06 < model.log_likelihood(test).per_event < exact + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("form", ["mark", "hidden"])
def test_kernels_without_amplitude_change_no_bit_of_scores_and_forecasts(form):
    plain = random_model(form=form, n_decays=2)
    model = random_model(form=form, n_decays=2, own_kernels=3, gap_kernels=2)
    model.module_.load_state_dict(plain.module_.state_dict(), strict=False)
    for bank in (model.module_.own, model.module_.gap):
        bank.amplitude.weight.data.zero_()
        bank.amplitude.bias.data.fill_(-torch.inf)
    data = random_histories(0, (10, 0, 30, 1))
    mine, theirs = model._scores(data), plain._scores(data)
    for name in ("log_total", "log_type", "compensator"):
        assert getattr(mine, name).tolist() == getattr(theirs, name).tolist(), name
    assert model.predict(data).equals(plain.predict(data))
    streams = [one.stream(start=0.0).push([1.0, 2.0], [0, 2]).tolist() for one in (model, plain)]
    assert streams[0] == streams[1]
    for method in ("thinning", "inverse"):
        paths = [one.sample(5, 5.0, method=method, random_state=0).times.tolist() for one in (model, plain)]
        assert paths[0] == paths[1]


@pytest.fixture(scope="module")
def fitted() -> SAHP:
    return SAHP(epochs=2, window=(0.0, 21.0), validation=None, **ALL).fit(random_histories(1, (20,) * 20))


def test_saved_models_with_all_additions_give_the_same_bits(fitted, tmp_path):
    opened = seqattn.load(fitted.save(tmp_path / "model"))
    data = random_histories(2, (12, 30, 0, 1))
    assert opened.evaluate(data) == fitted.evaluate(data)
    assert opened.predict(data).equals(fitted.predict(data))
    assert float(opened.module_.own.narrowest) == float(fitted.module_.own.narrowest)
    times = [one.sample(3, 30.0, history=data, random_state=0).times.tolist() for one in (opened, fitted)]
    assert times[0] == times[1]


@pytest.mark.parametrize("context", [None, 4])
def test_unit_of_time_does_not_matter(context):
    hours = random_histories(3, (20,) * 12)
    factor = 3_600.0
    seconds = replace(hours, times=hours.times * factor, start=hours.start * factor, end=hours.end * factor)
    options = {**ALL, "epochs": 2, "max_context": context, "validation": None}
    short, long = SAHP(**options).fit(hours), SAHP(**options).fit(seconds)
    assert long.scale_ == pytest.approx(factor * short.scale_, rel=1e-12)
    for (name, one), other in zip(short.module_.named_parameters(), long.module_.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)
    shift = long.score(seconds) + np.log(factor)
    assert short.score(hours) == pytest.approx(shift, abs=1e-5)


@pytest.mark.parametrize("options", [ADDITIONS, LOCAL], ids=["all", "local"])
@pytest.mark.parametrize("form", ["mark", "hidden"])
def test_company_of_a_sequence_does_not_matter(form, options):
    model = random_model(dtype=torch.float64, form=form, **options)
    data = random_histories(4, (3, 40, 0, 17, 1))
    together = model._scores(data).per_sequence("full", 5)
    alone = [model._scores(data.select([i])).per_sequence("full", 1)[0] for i in range(5)]
    np.testing.assert_allclose(together, alone, rtol=1e-10)


@pytest.mark.parametrize("options", [{}, ADDITIONS, LOCAL], ids=["plain", "all", "local"])
@pytest.mark.parametrize("clock", ["gap", "log_gap"])
def test_shift_of_all_times_does_not_matter(clock, options):
    model = random_model(clock=clock, dtype=torch.float64, **options)
    data = random_histories(5, (12, 30))
    moved = replace(data, times=data.times + 1e4, start=data.start + 1e4, end=data.end + 1e4)
    np.testing.assert_allclose(
        model._scores(moved).per_sequence("full", 2), model._scores(data).per_sequence("full", 2), rtol=1e-7
    )


@pytest.mark.parametrize("options", [{}, ADDITIONS, LOCAL], ids=["plain", "all", "local"])
@pytest.mark.parametrize("cut", [0.0, 0.05, 7.3, 19.99, 21.0])
def test_windows_add_up(cut, options):
    """The likelihood of a window is that of its beginning plus that of the rest given the beginning."""
    model = random_model(dtype=torch.float64, nodes=24, **options)
    data = random_histories(6, (25, 3, 0))
    whole = model._scores(data).per_sequence("full", 3)
    for row in range(3):
        times, kinds = data.sequence(row)
        early = times <= cut
        first = replace(
            data.select([row]),
            times=times[early],
            types=kinds[early],
            offsets=np.array([0, early.sum()]),
            end=np.array([cut]),
        )
        begin = model._scores(first).per_sequence("full", 1)[0]
        # The rest: events after the cut under the states that the whole history gives, waited until the cut.
        batch = pack(data, np.array([row]), dtype=torch.float64, recency=model.module_.needs_recency)
        with torch.no_grad():
            state = model.module_(batch)
        held = int(early.sum())
        rest = 0.0
        for token in range(held, batch.n_tokens):
            one = state.select(torch.tensor([token]))
            until = batch.until[token : token + 1]
            if token == held:
                waited = cut - (times[held - 1] if held else 0.0)
                one, until = one.shift(torch.tensor([waited])), until - waited
            if batch.target[token] >= 0:
                rest += float(one.log_rate(until, batch.target[token : token + 1]))
            rest -= float(one.compensator(until))
        assert begin + rest == pytest.approx(whole[row], rel=1e-6, abs=1e-6)


def test_events_of_a_left_context_are_seen_and_not_scored():
    """Chunks with all events before them as context add up to the whole."""
    model = random_model(dtype=torch.float64, **ADDITIONS)
    data = random_histories(7, (20,))
    given = replace(data, context=np.array([8]))
    whole, rest = model._scores(data), model._scores(given)
    terms = whole.log_total + whole.log_type - whole.compensator
    order = np.argsort(whole.position)
    assert rest.per_sequence("full", 1)[0] == pytest.approx(terms[order][8:].sum(), rel=1e-12)


def test_own_kernels_begin_with_the_first_event_of_their_type():
    model = random_model(dtype=torch.float64, own_kernels=2, gap_kernels=2)
    times = np.array([0.5, 1.0, 2.0, 3.5, 4.0])
    data = Sequences.from_lists([(times, [0, 1, 0, 2, 1])], labels=3, window=(0.0, 6.0))
    grid = np.arange(0.25, 6.0, 0.25)
    own = model.module_.own.amplitude
    with torch.no_grad():
        own.weight.zero_()
        own.bias.fill_(-torch.inf)
        without = model.intensity(data, grid)[0]
        own.bias.fill_(3.0)
        found = model.intensity(data, grid)[0]
    first = np.array([0.5, 1.0, 3.5])
    has_happened = grid[:, None] > first
    np.testing.assert_array_equal(found[~has_happened], without[~has_happened])
    assert (found[has_happened] > without[has_happened]).mean() > 0.9
    stream = model.stream(start=0.0)
    stream.push(times[:3], [0, 1, 0])
    np.testing.assert_allclose(stream.intensity(3.25), found[grid == 3.25][0], rtol=1e-6)


def test_time_since_the_last_event_of_each_type():
    data = random_histories(14, (9, 0, 1, 6))
    batch = pack(data, np.arange(4), scale=2.0, dtype=torch.float64, recency=True)
    for row, begin in enumerate(batch.offsets[:-1].tolist()):
        times, kinds = data.sequence(row)
        for place in range(len(times) + 1):
            for kind in range(3):
                earlier = [t for t, k in zip(times[:place], kinds[:place], strict=True) if k == kind]
                expected = (times[place - 1] - earlier[-1]) / 2 if earlier else 1e6
                assert float(batch.since[begin + place, kind]) == pytest.approx(expected)


def test_widths_never_fall_below_the_grid():
    rng = np.random.default_rng(0)
    rows = [(np.cumsum(rng.integers(1, 9, 30)).astype(float), rng.integers(0, 3, 30)) for _ in range(12)]
    model = SAHP(epochs=2, validation=None, learning_rate=0.1, **ALL).fit(rows)
    for bank in (model.module_.own, model.module_.gap):
        assert float(bank.narrowest) == pytest.approx(1 / model.scale_, rel=1e-6)
        # However far training would drive them.
        bank.log_width.data.fill_(-30.0)
        width = bank(torch.zeros(1, 8), torch.zeros(1, 1)).width
        assert (width >= 1 / model.scale_ * (1 - 1e-6)).all()
    audit = model.audit_grid(rows)
    assert audit["spacing"] == 1.0
    free = SAHP(epochs=1, validation=None, **ALL).fit(random_histories(8, (30,) * 5))
    assert float(free.module_.gap.narrowest) == 0.0


@pytest.mark.parametrize("gelu", [False, True])
def test_one_decay_is_the_form_of_the_paper(gelu):
    options = {"mu_eta_activation": "gelu", "learn_scale": False} if gelu else {}
    model = random_model(dtype=torch.float64, n_decays=1, **options)
    state = torch.randn(4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = torch.tensor([[0.0, 0.2, 1.0, 30.0]], dtype=torch.float64).expand(4, -1)
    module = model.module_
    with torch.no_grad():
        found = module.intensity(state, None).rates(u)
        shape = torch.nn.functional.gelu if gelu else lambda x: x
        mu, eta = shape(module.mu(state))[:, None], shape(module.eta(state))[:, None]
        gamma = torch.nn.functional.softplus(module.gamma(state))[:, None] + 1e-6
        z = mu + (eta - mu) * torch.exp(-gamma * u[:, :, None])
        scale = module.log_scale.exp()
        torch.testing.assert_close(found, scale * torch.nn.functional.softplus(z / scale), rtol=1e-10, atol=0)
    if gelu:
        assert (found > np.log1p(np.exp(-0.1701))).all()


@pytest.mark.parametrize("options", [{"n_decays": 2, "mu_eta_activation": "gelu"}])
def test_the_printed_activation_has_one_decay(options):
    with pytest.raises(ParameterError, match="one decay"):
        SAHP(epochs=1, **options).fit(random_histories(9, (20, 20, 20)))


@pytest.mark.parametrize("extra", [{}, ADDITIONS], ids=["plain", "all"])
def test_a_context_as_long_as_the_sequence_is_no_cut(extra):
    data = random_histories(10, (30, 12, 0))
    full, local, short = (random_model(dtype=torch.float64, max_context=n, **extra) for n in (None, 30, 2))
    expected = full._scores(data).per_sequence("full", 3)
    np.testing.assert_allclose(local._scores(data).per_sequence("full", 3), expected, rtol=1e-6)
    assert abs(short._scores(data).per_sequence("full", 3)[0] - expected[0]) > 1e-4
    times, kinds = data.sequence(0)
    streams = [one.stream(start=0.0).push(times, kinds) for one in (full, local)]
    np.testing.assert_allclose(*streams, rtol=1e-6)


def test_a_context_reaches_back_one_window_per_layer_and_no_further():
    """Two layers that each see five events back: event 40 knows of events 30 to 40 and of the start alone."""
    model = random_model(dtype=torch.float64, time_features=False, max_context=5, n_decays=2, time_decay=True)
    data = random_histories(11, (40,))
    base = model.intensity(data, [21.0])
    for place, matters in ((29, True), (28, False), (0, False)):
        changed = data.types.copy()
        changed[place] = (changed[place] + 1) % 3
        other = model.intensity(replace(data, types=changed), [21.0])
        assert (np.abs(other - base).max() > 0) == matters


def test_very_long_sequences_are_refused_with_advice_or_read_within_a_context():
    times = np.arange(MAX_EVENTS + 5.0)
    data = Sequences.from_lists([(times, np.zeros(len(times), int))], labels=1, ids=["x"])
    dense = random_model(n_types=1, d_model=4, n_layers=1, n_heads=1)
    with pytest.raises(
        DataError, match=r"Sequence 'x' has 20,005 events; .*20,000.*max_context=.*chunk=1000"
    ):
        dense.log_likelihood(data)
    local = random_model(n_types=1, d_model=4, n_layers=1, n_heads=1, max_context=3)
    assert local.log_likelihood(data).n_events == MAX_EVENTS + 4


def test_gaps_over_many_orders_of_magnitude_are_read():
    rng = np.random.default_rng(0)
    rows = [(np.cumsum(10.0 ** rng.uniform(-6, 6, 15)), rng.integers(0, 3, 15)) for _ in range(6)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", seqattn.errors.SeqattnWarning)
        model = SAHP(epochs=2, validation=None, **ALL).fit(rows)
        found = model.evaluate(rows)
    assert np.isfinite(found["loglik_per_event"])
    assert np.isfinite(found["crps"])
    assert all(torch.isfinite(parameter).all() for parameter in model.module_.parameters())
