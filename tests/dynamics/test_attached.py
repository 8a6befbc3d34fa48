"""The recorder of attention in the fits of other estimators."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from seqattn import SAHP, MQSATEDRecommender, VSFormerClassifier
from seqattn.attention import Layout
from seqattn.dynamics.attached import QUANTITIES, AttentionRecorder
from seqattn.errors import ParameterError
from seqattn.hawkes.attended import attention_weights
from seqattn.nn.blocks import Encoder
from seqattn.train.history import History

LENGTHS = [9, 3, 6]
KINDS = ["common", "distinct", "unknown"]


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(8, 2, 2, 0.0).eval()


def looked_at(net: Encoder, numbers: torch.Tensor, kinds: list[str] | None = KINDS) -> pl.DataFrame:
    recorder = AttentionRecorder(kinds=kinds)
    recorder.attach(net)
    recorder.begin_epoch(3)
    recorder.batch(SimpleNamespace(items=numbers))
    x = torch.randn(18, 8, generator=torch.Generator().manual_seed(1))
    net(x, Layout.of(LENGTHS), causal=True)
    net(2 * x, Layout.of(LENGTHS), causal=True)  # a second batch is not looked at
    recorder.epoch({})
    recorder.end(History())
    assert not any(part._forward_pre_hooks for part in net.modules())
    return recorder.table


def value(table: pl.DataFrame, layer: int, head: int, quantity: str) -> float:
    found = table.filter(
        (pl.col("layer") == layer) & (pl.col("head") == head) & (pl.col("quantity") == quantity)
    )
    assert len(found) == 1, found
    return found["value"][0]


def test_values_are_those_of_the_whole_weights():
    net, numbers = encoder(), torch.arange(18) % 4  # the fourth number has no kind
    table = looked_at(net, numbers)
    x = torch.randn(18, 8, generator=torch.Generator().manual_seed(1))
    for layer, weights in enumerate(attention_weights(net, x, Layout.of(LENGTHS))):
        for head in range(2):
            rows = [
                (weights.detach()[s, head, i, : i + 1].double(), numbers[sum(LENGTHS[:s]) :][: i + 1])
                for s, length in enumerate(LENGTHS)
                for i in range(length)
            ]
            late = [torch.special.entr(row).sum() / np.log(len(row)) for row, _ in rows if len(row) >= 4]
            assert value(table, layer, head, "entropy_share") == pytest.approx(
                float(sum(late)) / len(late), abs=1e-6
            )
            for kind in (0, 1):
                mass = float(sum(row[own == kind].sum() for row, own in rows)) / len(rows)
                assert value(table, layer, head, f"{KINDS[kind]}_mass") == pytest.approx(mass, abs=1e-6)
    assert set(table["epoch"].to_list()) == {3}
    assert set(table["phase"].to_list()) == {"eval"}


def test_even_attention_has_all_of_its_entropy():
    net = encoder()
    for block in net.blocks:
        with torch.no_grad():
            block.attention.inputs.weight[:16] = 0
            block.attention.inputs.bias[:16] = 0
    table = looked_at(net, torch.zeros(18, dtype=torch.int64))
    shares = table.filter(pl.col("quantity") == "entropy_share")["value"].to_list()
    assert shares == pytest.approx([1.0] * 4, abs=1e-6)
    keys = [i for length in LENGTHS for i in range(4, length + 1)]
    assert value(table, 0, 1, "entropy") == pytest.approx(np.log(keys).mean(), abs=1e-6)
    assert value(table, 1, 0, "common_mass") == pytest.approx(1.0, abs=1e-6)


def test_a_silent_head_has_no_importance():
    net = encoder()
    with torch.no_grad():
        net.blocks[0].attention.inputs.weight[20:] = 0
        net.blocks[0].attention.inputs.bias[20:] = 0
    table = looked_at(net, torch.zeros(18, dtype=torch.int64), kinds=None)
    assert value(table, 0, 0, "head_importance") == pytest.approx(1.0)
    assert value(table, 0, 1, "head_importance") == 0.0
    both = [value(table, 1, head, "head_importance") for head in range(2)]
    assert sum(both) == pytest.approx(1.0)
    assert "common_mass" not in table["quantity"].to_list()


def events(n: int = 12) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(np.sort(rng.uniform(0, 20, 12)), rng.integers(0, 3, 12)) for _ in range(n)]


def test_a_fit_of_a_point_process_is_followed_and_not_changed(tmp_path):
    settings = {"epochs": 2, "d_model": 8, "n_layers": 2, "random_state": 0, "device": "cpu", "dropout": 0.1}
    recorder = AttentionRecorder(tmp_path / "run" / "seen.parquet", kinds=["common", "distinct", "distinct"])
    watched = SAHP(**settings).fit(events(), observers=[recorder])
    alone = SAHP(**settings).fit(events())
    assert watched.score(events()) == alone.score(events())
    table = pl.read_parquet(tmp_path / "run" / "seen.parquet")
    assert table.equals(recorder.table)
    places = table.select("epoch", "phase").unique().rows()
    assert set(places) == {(0, "train"), (1, "train"), (1, "eval"), (2, "eval")}
    assert set(table["quantity"].to_list()) == set(QUANTITIES)
    masses = table.filter(pl.col("quantity").cast(pl.String).str.ends_with("mass"))["value"]
    assert masses.is_between(0, 1).all()
    assert not any(part._forward_pre_hooks for part in watched.module_.modules())


def test_an_interrupted_fit_keeps_its_records(tmp_path):
    class Stop(Exception):
        pass

    class Stopping(AttentionRecorder):
        def epoch(self, record):
            super().epoch(record)
            if record["epoch"] == 2 and not self.is_second:
                raise Stop

    settings = {"epochs": 3, "d_model": 8, "random_state": 0, "device": "cpu"}
    whole, first, second = AttentionRecorder(), Stopping(), Stopping()
    first.is_second, second.is_second = False, True
    SAHP(**settings).fit(events(), observers=[whole])
    with pytest.raises(Stop):
        SAHP(**settings).fit(events(), observers=[first], checkpoint=tmp_path / "fit.safetensors")
    SAHP(**settings).fit(events(), observers=[second], checkpoint=tmp_path / "fit.safetensors")
    assert second.table.equals(whole.table)


def test_a_fit_of_a_recommender_is_followed():
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(30), 9),
            "item_id": rng.integers(0, 12, 270),
            "timestamp": np.arange(270),
        }
    )
    recorder = AttentionRecorder(min_keys=2)
    MQSATEDRecommender(epochs=1, d_model=8, random_state=0, device="cpu").fit(frame, observers=[recorder])
    table = recorder.table.filter(pl.col("quantity") == "entropy_share")
    assert {"train"} <= set(table["phase"].to_list())
    assert table["value"].is_between(0, 1).all()


def test_the_members_of_a_classifier_are_told_apart():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(12, 1, 40)), np.arange(12) % 2
    recorder = AttentionRecorder()
    model = VSFormerClassifier(epochs=1, n_members=2, d_model=8, random_state=0, device="cpu")
    model.fit(X, y, observers=[recorder])
    assert sorted(set(recorder.table["member"].to_list())) == [0, 1]


def test_a_module_without_attention_is_refused():
    with pytest.raises(ParameterError, match="Linear has no layer"):
        AttentionRecorder().attach(torch.nn.Linear(2, 2))
    with pytest.raises(ParameterError, match="min_keys"):
        AttentionRecorder(min_keys=1)
