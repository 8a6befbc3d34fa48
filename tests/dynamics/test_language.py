"""Models that learn text from windows."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import torch

from seqattn.attention import Entropy
from seqattn.dynamics.figures import compute, memory_of, parts_of
from seqattn.dynamics.language import LanguageModel, TextPlan, follow_free, follow_layers
from seqattn.dynamics.text import Corpus, drawn_starts, windows
from seqattn.errors import ParameterError
from seqattn.train.costs import PeakMemory

PLAN = TextPlan(record_at=(0, 5), window=6, batch_size=4, n_valid=9, d_model=8)


def corpus(n: int = 400, words: int = 12) -> Corpus:
    """Make a text in which one word follows another by a rule, with some noise."""
    rng = np.random.default_rng(0)
    text = np.zeros(n, dtype=np.int32)
    for place in range(1, n):
        text[place] = (3 * text[place - 1] + 1) % words if rng.random() < 0.8 else rng.integers(words)
    return Corpus(text, text[: n // 2].copy(), [str(word) for word in range(words)], 0.0)


def model(plan: TextPlan = PLAN) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(12, plan).eval()


def test_a_layer_computes_what_is_written_of_it():
    net = model().double()
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9]])
    (layer,) = net.layers
    x = net.embedding.weight[tokens[0]] * math.sqrt(8)
    place, wave = torch.arange(6)[:, None], torch.arange(4)
    angle = place / 10_000 ** (2 * wave / 8)
    x[:, 0::2] += angle.sin()
    x[:, 1::2] += angle.cos()
    q, k, v = (x @ part.mT for part in layer.attention.inputs.weight.split(8))
    scores = (q @ k.mT / math.sqrt(8)).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    seen = scores.softmax(-1) @ v @ layer.attention.output.weight.mT
    x = torch.nn.functional.layer_norm(x + seen, (8,))
    first, _, _, second = layer.feed_forward
    x = torch.nn.functional.layer_norm(x + second(first(x).relu()), (8,))
    expected = x @ net.decoder.weight.mT
    assert torch.allclose(net(tokens)[0], expected, atol=1e-6)


def test_no_place_sees_a_later_word():
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9], [3, 1, 4, 1, 5, 2]])
    logits = model(TextPlan(window=6, d_model=8, n_layers=3))(tokens)
    assert torch.equal(logits[0, :5], logits[1, :5])
    assert not torch.allclose(logits[0, 5], logits[1, 5])


def test_records_tell_of_even_attention_as_such():
    net = model()
    with torch.no_grad():
        net.layers[0].attention.inputs.weight[:16] = 0.0
    (spread,) = net.look(torch.zeros(2, 6, dtype=torch.int64), Entropy)
    assert torch.allclose(spread[:, 0], torch.arange(1, 7).repeat(2).double().log(), atol=1e-6)


def test_maps_and_entropies_are_of_the_same_attention():
    *_, last = follow_layers(corpus(), TextPlan(**{**vars(PLAN), "n_valid": 1}), 2.0, 0)
    (weights,) = last.maps
    assert weights.sum(1) == pytest.approx(1.0)
    assert np.all(np.triu(weights, 1) == 0)
    by_place = torch.special.entr(torch.from_numpy(weights)).sum(1).numpy()
    assert last.entropy == pytest.approx(by_place.mean(), abs=1e-6)
    # Places 0 to 2 see fewer than the four keys that count.
    assert last.entropy_share == pytest.approx((by_place[3:] / np.log([4, 5, 6])).mean(), abs=1e-6)


def test_the_loss_is_the_mean_over_all_places_whatever_the_size_of_a_batch():
    plans = [TextPlan(**{**vars(PLAN), "batch_size": size, "record_at": (0,)}) for size in (2, 100)]
    small, large = (next(follow_layers(corpus(), plan, 1.0, 0)) for plan in plans)
    assert small.loss == pytest.approx(large.loss, abs=1e-6)
    assert small.entropy == pytest.approx(large.entropy, abs=1e-9)
    assert large.loss == pytest.approx(math.log(12), abs=0.3)


def test_text_is_learnt_and_seeds_repeat_whatever_happens_between_records():
    plan = TextPlan(**{**vars(PLAN), "record_at": (0, 40, 300)})
    first, runs = None, []
    state = torch.get_rng_state()
    for _ in range(2):
        records = []
        for record in follow_layers(corpus(), plan, 0.5, 3):
            records.append(record)
            torch.rand(5)
        runs.append([(r.loss, r.entropy) for r in records])
        first = first or records
    assert runs[0] == runs[1]
    torch.rand(0)
    assert first[-1].loss < first[0].loss - 0.8
    other = [r.loss for r in follow_layers(corpus(), plan, 0.5, 4)]
    assert other[0] != first[0].loss
    torch.set_rng_state(state)
    next(follow_layers(corpus(), PLAN, 0.5, 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_are_cut_and_the_feed_forward_map_has_its_own_rate():
    text, plan = corpus(), TextPlan(**{**vars(PLAN), "clip": 1e-9})
    start, end = follow_layers(text, plan, 1.0, 0)
    assert end.loss == pytest.approx(start.loss, abs=1e-6)
    plain, fast = (
        list(follow_layers(text, TextPlan(**{**vars(PLAN), "lr_feed_forward": rate}), 0.5, 0))[-1].loss
        for rate in (None, 3.0)
    )
    assert plain != fast


def by_places(seen, labels, Z, Y):
    """Attention key by key, as the definition has it: loss and entropy of each place after the first."""
    losses, spreads = [], []
    for window, following in zip(seen, labels, strict=True):
        for place in range(1, len(window)):
            keys, query = window[:place], window[place]
            b = Z[query, keys].softmax(-1)
            x = torch.zeros(len(Z), dtype=Z.dtype).index_add(0, keys, b)
            losses.append(-(Y.mT @ (x / x.norm())).log_softmax(-1)[following[place]])
            spreads.append(torch.special.entr(b).sum())
    shape = (len(seen), seen.shape[1] - 1)
    return torch.stack(losses).view(shape), torch.stack(spreads).view(shape)


def test_free_logits_follow_windows_place_by_place():
    text = corpus()
    plan = TextPlan(record_at=(0, 3), window=6, batch_size=4, n_valid=7)
    start, end = follow_free(text, plan, [(3.0, 2.0), (3.0, 0.0)], [5])
    assert [each.entropy_share for each in start] == pytest.approx([1.0, 1.0])
    assert end[1].entropy_share == pytest.approx(1.0)
    assert [each.loss for each in start] == pytest.approx([math.log(12)] * 2)
    rng = np.random.default_rng([5, 1])
    Y, Z = (torch.zeros(12, 12, dtype=torch.float64) for _ in range(2))
    for _ in range(3):
        seen, following = map(torch.from_numpy, windows(text.train, drawn_starts(400, 6, 4, rng), 6))
        leaves = [part.clone().requires_grad_() for part in (Z, Y)]
        slopes = torch.autograd.grad(by_places(seen, following, *leaves)[0].mean(), leaves)
        Z, Y = Z - 2.0 * slopes[0], Y - 3.0 * slopes[1]
    starts = np.unique(np.linspace(0, len(text.valid) - 7, 7).astype(int))
    seen, following = map(torch.from_numpy, windows(text.valid, starts, 6))
    loss, spread = by_places(seen, following, Z, Y)
    assert end[0].loss == pytest.approx(float(loss.mean()), abs=1e-5)
    assert end[0].entropy == pytest.approx(float(spread.mean()), abs=1e-5)
    # The places with four keys and five.
    share = (spread[:, 3:] / torch.tensor([4.0, 5.0]).log()).mean()
    assert end[0].entropy_share == pytest.approx(float(share), abs=1e-5)


def test_runs_of_free_logits_are_those_of_single_calls():
    text, plan = corpus(), TextPlan(record_at=(30,), window=6, batch_size=4, n_valid=7)
    rates, seeds = [(3.0, 2.0), (9.0, 1.0)], [0, 1]
    (together,) = follow_free(text, plan, rates, seeds)
    single = [next(follow_free(text, plan, [pair], [seed]))[0] for pair in rates for seed in seeds]
    assert [r.loss for r in together] == pytest.approx([r.loss for r in single], abs=1e-5)
    assert len({round(r.loss, 4) for r in single}) == 4
    assert all(-1 <= r.frequency_order <= 1 for r in together)


@pytest.mark.parametrize(
    "changed",
    [
        {"record_at": ()},
        {"record_at": (5, 0)},
        {"record_at": (-1,)},
        {"window": 1},
        {"d_model": 7},
        {"n_layers": 0},
    ],
)
def test_plans_that_cannot_be_run_are_refused(changed):
    with pytest.raises(ParameterError, match=next(iter(changed))):
        TextPlan(**changed)


def test_a_rate_of_nothing_is_refused():
    with pytest.raises(ParameterError, match="rate"):
        next(follow_layers(corpus(), PLAN, 0.0, 0))


SETTINGS = {
    "figure7": {"n_layers": [1, 2], "rate": 1.0, "lr_feed_forward": 2.0, "record_at": [0, 3]},
    "figure10": {
        "rates": [0.5, 1.0], "n_steps": 5, "record_every": 2, "n_layers": 1, "feed_forward": True,
        "free_rates": [[2.0, 0.0], [2.0, 3.0]], "free_steps": 3, "free_window": 5, "free_batch_size": 4,
        "free_vocab": 6,
    },
}  # fmt: skip
SHARED = {"max_vocab": 8, "d_model": 8, "window": 6, "batch_size": 4, "dropout": 0.1, "clip": 0.5}


@pytest.fixture
def folder(tmp_path):
    text = " ".join(f"w{number}" for number in corpus().train)
    for part in ("train", "valid"):
        (tmp_path / f"{part}.txt").write_text(text)
    return str(tmp_path)


def test_maps_are_told_word_by_word(folder):
    settings = SETTINGS["figure7"] | SHARED | {"text": folder}
    assert parts_of("figure7", settings) == ["1 layer", "2 layers"]
    found = compute("figure7", "2 layers", settings, [0, 1])
    assert found.curves["panel"].unique(maintain_order=True).to_list() == [
        "2 layers, step 0",
        "2 layers, step 3",
    ]
    assert set(found.curves["seed"]) == {0}
    rows = found.curves.filter(panel="2 layers, step 3")
    assert rows.group_by("series").agg(pl.col("y").sum())["y"].to_list() == pytest.approx([1.0] * 6)
    assert rows["series"].unique(maintain_order=True).to_list()[:2] == ["000 w0", "001 w1"]
    assert set(found.values["seed"]) == {0, 1}


def test_entropy_is_told_by_rate_and_step(folder):
    settings = SETTINGS["figure10"] | SHARED | {"text": folder}
    parts = parts_of("figure10", settings)
    assert parts == ["rate 0.5", "rate 1", "free logits"]
    layer = compute("figure10", "rate 0.5", settings, [0, 1])
    assert layer.curves["x"].unique().to_list() == [0.0, 2.0, 4.0, 5.0]
    assert set(layer.values["metric"]) == {"entropy", "entropy_share", "valid_loss", "late_change"}
    free = compute("figure10", "free logits", settings, [0, 1])
    rows = free.values["row"].unique(maintain_order=True).to_list()
    assert rows == ["free logits, rates 2 / 0", "free logits, rates 2 / 3"]
    ends = free.curves.filter(x=3.0)
    assert ends.filter(series="rates 2 / 0")["y"].to_list() == pytest.approx([1.0, 1.0])
    assert (ends.filter(series="rates 2 / 3")["y"] < 1 - 1e-6).all()


def test_the_rates_of_figure_10_without_free_logits():
    assert parts_of("figure10", SETTINGS["figure10"] | {"free_rates": []}) == ["rate 0.5", "rate 1"]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["rate 0.5", "free logits"])
def test_the_memory_stated_before_a_run_is_kept(tmp_path, part):
    rng = np.random.default_rng(0)
    for name, n in (("train", 200_000), ("valid", 20_000)):
        numbers = rng.zipf(1.2, n) % 30_000
        (tmp_path / f"{name}.txt").write_text(
            "\n".join(" ".join(f"w{i}" for i in row) for row in numbers.reshape(-1, 20))
        )
    settings = SETTINGS["figure10"] | SHARED
    settings |= {"text": str(tmp_path), "max_vocab": 2000, "d_model": 64, "window": 35, "batch_size": 20}
    settings |= {"free_vocab": 800, "free_window": 33, "free_batch_size": 32}
    stated = memory_of(part, settings, 3)
    peak = PeakMemory()
    compute("figure10", part, settings, [0, 1, 2])
    assert peak.above_start() * 2**20 < stated


def test_equal_words_share_one_logit():
    """Windows with repeats have the entropy of their places, not of their words."""
    text = Corpus(
        np.array([0, 0, 0, 1, 2, 1] * 9, dtype=np.int32),
        np.array([0, 0, 0, 1, 2], dtype=np.int32),
        list("abc"),
        0,
    )
    (record,) = next(follow_free(text, TextPlan(record_at=(0,), window=4, n_valid=1), [(1.0, 1.0)], [0]))
    assert record.entropy == pytest.approx((math.log(1) + math.log(2) + math.log(3)) / 3)
