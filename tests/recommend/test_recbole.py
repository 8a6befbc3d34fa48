"""RecBole both ways: our model in its trainer, its models on our split, its data sets and files as ours."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner
from recommend.tables import random_table, table

import seqattn
from seqattn.cli import cli
from seqattn.data.interactions import Interactions, leave_one_out
from seqattn.errors import DataError, MissingDependencyError, ParameterError
from seqattn.recommend import task
from seqattn.recommend.losses import distillation_loss, ranking_loss
from seqattn.recommend.metrics import mean_over_users, user_metrics
from seqattn.recommend.model import HistoryBatch
from seqattn.recommend.peers import PeerRecommender
from seqattn.recommend.ranking import target_ranks
from seqattn.recommend.recbole import dataset_to_frame, frame_to_inter, mqsa_ted_of, run_baseline
from seqattn.recommend.recbole_compat import engine_of
from seqattn.recommend.shared_random import apart
from seqattn.recommend.transitions import Teacher, Transitions, temperature_of
from seqattn.reproduce.grid import Grid

needs_recbole = pytest.mark.skipif(
    importlib.util.find_spec("recbole") is None,
    reason="RecBole is not installed: pip install 'seqattn[recbole]'",
)
AUTHORS = ("amazon-beauty", "amazon-sports", "amazon-toys", "yelp")
SMALL = {"epochs": 2, "batch_size": 256, "max_len": 8, "options": {"hidden_size": 8, "inner_size": 8}}


def settings_of(folder: Path, **more: object) -> dict[str, object]:
    return {
        "data_path": str(folder.parent),
        "checkpoint_dir": str(folder / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
        "train_neg_sample_args": None,
        "metric_decimal_place": 12,
        "MAX_ITEM_LIST_LENGTH": 8,
        "epochs": 1,
        "show_progress": False,
        "use_gpu": False,
        "gpu_id": "",
        **more,
    }


def in_recbole(frame: object, folder: Path, model: object = "SASRec", **more: object) -> tuple:
    """Return the configuration, the whole data set and its three parts of a log, with the engine."""
    engine = engine_of("recbole")
    kind = engine.model(model) if isinstance(model, str) else model
    frame_to_inter(frame, folder)
    config = engine.config(kind, folder.name, settings_of(folder, **more))
    dataset = engine.module("data").create_dataset(config)
    return engine, config, dataset


def histories(frame: pl.DataFrame) -> dict[str, list[str]]:
    found = frame.with_columns(pl.col("user_id", "item_id").cast(pl.String))
    return dict(found.group_by("user_id").agg("item_id").iter_rows())


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    """Histories of four rows or more: of three, RecBole's own division leaves no row for validation."""
    return random_table(0).filter(pl.len().over("user_id") >= 4)


# -- files and data sets -----------------------------------------------------------------------------------------


def test_a_written_file_is_read_back_with_the_same_rows(log, tmp_path):
    path = frame_to_inter(log.sample(fraction=1, shuffle=True, seed=1), tmp_path / "small")
    assert path == tmp_path / "small" / "small.inter"
    assert Interactions.of(path).digest() == Interactions.of(log).digest()


def test_what_is_no_data_set_of_recbole_is_refused():
    with pytest.raises(DataError, match="dict is no data set of RecBole"):
        dataset_to_frame({})


@needs_recbole
def test_a_whole_data_set_comes_back_with_its_own_ids(log, tmp_path):
    _, _, dataset = in_recbole(
        log.with_columns(pl.format("u{}", "user_id").alias("user_id")), tmp_path / "small"
    )
    found = dataset_to_frame(dataset)
    expected = Interactions.of(log.with_columns(pl.format("u{}", "user_id").alias("user_id")))
    assert Interactions.of(found).digest() == expected.digest()
    assert found.schema["item_id"] == pl.Int64


@needs_recbole
def test_the_parts_of_a_data_set_are_our_parts(log, tmp_path):
    for model in ("SASRec", "Pop"):
        with apart(0):
            parts = in_recbole(log, tmp_path / model, model)[2].build()
        ours = leave_one_out(Interactions.of(log))
        for part, expected in zip(parts, (ours.train, ours.validation, ours.test), strict=True):
            kept = {user: rows for user, rows in histories(expected.to_table()).items() if rows}
            assert histories(dataset_to_frame(part)) == kept


@needs_recbole
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", AUTHORS)
@pytest.mark.skipif("SEQATTN_DATA" not in os.environ, reason="needs the authors' sets: set SEQATTN_DATA")
def test_the_authors_split_is_recovered_exactly(name, tmp_path):
    parts = task.splits(name, task.SPLITS)
    whole = parts["train"].joined(parts["dev"]).joined(parts["test"])
    # Pop keeps one row per interaction; the prefixes of sequential models would take gigabytes.
    with apart(0):
        found = in_recbole(whole, tmp_path / "log", "Pop")[2].build()
    for part, role in zip(found, ("train", "dev", "test"), strict=True):
        assert histories(dataset_to_frame(part)) == histories(parts[role].to_table())


@needs_recbole
def test_a_fit_takes_a_data_set_of_recbole(log, tmp_path):
    _, _, dataset = in_recbole(log, tmp_path / "small")
    assert (
        seqattn.MarkovRecommender().fit(dataset).history_.digest()
        == seqattn.MarkovRecommender().fit(log).history_.digest()
    )


# -- our model in their trainer ----------------------------------------------------------------------------------


def trained(log: pl.DataFrame, folder: Path, **more: object) -> tuple:
    engine, config, dataset = in_recbole(log, folder, mqsa_ted_of("recbole"), **more)
    train, valid, test = engine.module("data").data_preparation(config, dataset)
    network = config.model_class(config, train.dataset)
    return engine, config, network, (train, valid, test)


@needs_recbole
def test_our_model_learns_in_their_trainer_with_every_default(tmp_path):
    walks = table(*[[(start + step) % 12 for step in range(7)] for start in range(12)] * 4)
    with apart(0):
        engine, config, network, (train, valid, test) = trained(
            walks, tmp_path / "walks", epochs=30, learning_rate=0.02, train_batch_size=64, dropout=0.1
        )
        trainer = engine.trainer(config, network)
        trainer.fit(train, valid, verbose=False)
        found = trainer.evaluate(test, load_best_model=True)
    assert found["ndcg@10"] > 0.9
    batch = next(iter(test))[0]
    scores = network.full_sort_predict(batch)
    assert torch.isneginf(scores[:, 0]).all()
    assert torch.isfinite(scores[:, 1:]).all()
    wanted = batch["item_id"]
    torch.testing.assert_close(network.predict(batch), scores[torch.arange(len(wanted)), wanted])


@needs_recbole
@pytest.mark.parametrize(("learner", "kind"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_one_step_in_their_trainer_is_our_own_step_on_the_same_prefixes(log, tmp_path, learner, kind):
    with apart(3):
        engine, config, network, (train, _, _) = trained(
            log, tmp_path / "log", dropout=0.0, train_batch_size=100_000, d_model=8, span=2, learner=learner
        )
        mine = network.network
        before = {name: value.clone() for name, value in mine.state_dict().items()}
        engine.trainer(config, network).fit(train, None, verbose=False, saved=False)
        after = {name: value.clone() for name, value in mine.state_dict().items()}
    assert any(not torch.equal(before[name], after[name]) for name in before)
    # The same prefixes from our own split, in the engine's numbers of items.
    split = leave_one_out(Interactions.of(log)).train
    number = {int(token): code - 1 for token, code in train.dataset.field2token_id["item_id"].items() if code}
    codes = np.array([number[item] for item in split.item_ids.to_list()])
    lists = [codes[split.items_of(user)] for user in range(split.n_users)]
    rows = [(one[max(0, end - 8) : end], one[end]) for one in lists for end in range(1, len(one))]
    mine.load_state_dict(before)
    optimiser = kind(mine.parameters(), 1e-3, weight_decay=1e-4)
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in lists])])
    n_items = len(mine.table)
    teacher = Teacher(
        Transitions.of(offsets, np.concatenate(lists), n_items, span=2), temperature_of(0.65, n_items)
    )
    batch = HistoryBatch.of([row for row, _ in rows])
    last = torch.tensor([row[-1] for row, _ in rows])
    targets = torch.tensor([target for _, target in rows])
    heads = mine.table.index_select(0, last) * 8**0.5 / 0.1
    rec = ranking_loss(mine.last_states(batch), targets, mine.table)
    loss = (rec + 0.1 * distillation_loss(heads, last, mine.table, teacher)) / len(rows)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    for name, value in mine.state_dict().items():
        torch.testing.assert_close(
            value, after[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@needs_recbole
def test_our_model_refuses_negatives_and_bad_parameters(log, tmp_path):
    with apart(0), pytest.raises(ParameterError, match="Set train_neg_sample_args to None"):
        trained(log, tmp_path / "one", train_neg_sample_args={"distribution": "uniform", "sample_num": 1})
    with apart(0), pytest.raises(ParameterError, match="alpha"):
        trained(log, tmp_path / "two", alpha=2.0)


# -- their models, our split and evaluation ----------------------------------------------------------------------


@needs_recbole
def test_popularity_of_theirs_ranks_as_ours(log):
    split = leave_one_out(Interactions.of(log))
    theirs = PeerRecommender(model="Pop", batch_size=32).fit(split.train, validation=split.validation)
    ours = seqattn.PopularityRecommender().fit(split.train, validation=split.validation)
    expected = ours.evaluate(split.test, baselines=False)
    found = theirs.evaluate(split.test, baselines=False)
    assert {name: found[name] for name in expected} == dict(expected)


@needs_recbole
def test_figures_of_both_evaluations_agree_on_the_same_scores(log):
    split = leave_one_out(Interactions.of(log))
    peer = PeerRecommender(random_state=0, **SMALL).fit(split.train, validation=split.validation)
    theirs = peer.engine_figures(split.test)
    ranks = target_ranks(peer._ranker(), peer.history_, split.test, exclude_seen=False)
    assert (ranks.ranks % 1 == 0).all(), "there are ties"
    ours = mean_over_users(user_metrics(ranks, (5, 10, 20)))
    for name in ("hr", "ndcg", "mrr"):
        for k in (5, 10, 20):
            assert theirs[f"engine_{name}@{k}"] == pytest.approx(ours[f"{name}@{k}"].value, abs=1e-6)


@needs_recbole
def test_their_evaluator_gives_our_figures_of_2000_random_users():
    engine = engine_of("recbole")
    config = engine.config(engine.model("SASRec"), "none", settings_of(Path("none"), topk=[5, 10, 20]))
    draw = torch.Generator().manual_seed(0)
    scores, wanted = torch.rand(2000, 301, generator=draw), torch.randint(1, 301, (2000,), generator=draw)
    scores[:, 0] = -torch.inf
    module = engine.module("evaluator")
    collector = module.Collector(config)
    collector.eval_batch_collect(scores, None, torch.arange(2000), wanted)
    theirs = module.Evaluator(config).evaluate(collector.get_data_struct())
    ranks = 1 + (scores > scores.gather(1, wanted[:, None])).sum(dim=1).double().numpy()
    found = seqattn.recommend.metrics.target_metrics(ranks, (5, 10, 20))
    for ours, name in (("hr", "hit"), ("ndcg", "ndcg"), ("mrr", "mrr")):
        for k in (5, 10, 20):
            assert theirs[f"{name}@{k}"] == pytest.approx(found[f"{ours}@{k}"].mean(), abs=1e-6)


@needs_recbole
def test_changing_test_items_changes_no_weight(log):
    split = leave_one_out(Interactions.of(log))
    first = PeerRecommender(random_state=0, **SMALL).fit(split.train, validation=split.validation)
    again = PeerRecommender(random_state=0, **SMALL).fit(split.train, validation=split.validation)
    other = PeerRecommender(random_state=1, **SMALL).fit(split.train, validation=split.validation)
    weights = [peer.network_.state_dict()["item_embedding.weight"] for peer in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@needs_recbole
def test_an_interrupted_fit_goes_on_to_the_same_weights(log, tmp_path):
    split = leave_one_out(Interactions.of(log))
    whole = PeerRecommender(random_state=0, **{**SMALL, "epochs": 4})
    whole.fit(split.train, validation=split.validation)

    class Stop:
        def begin(self, settings):
            pass

        def epoch(self, record):
            if record["epoch"] == 3:
                raise KeyboardInterrupt

        def end(self, history):
            pass

    part = PeerRecommender(random_state=0, **{**SMALL, "epochs": 4})
    place = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        part.fit(split.train, validation=split.validation, checkpoint=place, observers=[Stop()])
    part.fit(split.train, validation=split.validation, checkpoint=place)
    assert [record["epoch"] for record in part.fit_history_.records] == [1, 2, 3, 4]
    for name, value in whole.network_.state_dict().items():
        assert torch.equal(value, part.network_.state_dict()[name]), name


@needs_recbole
def test_a_saved_peer_recommends_the_same_and_touches_no_shared_generator(log, tmp_path):
    state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    peer = PeerRecommender(random_state=0, **SMALL).fit(log)
    again = seqattn.load(peer.save(tmp_path))
    assert again.recommend(k=5).equals(peer.recommend(k=5))
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


@needs_recbole
def test_a_model_with_weights_of_users_refuses_strangers(log):
    peer = PeerRecommender(model="FPMC", epochs=1).fit(log)
    assert len(peer.recommend([0], k=3)) == 3
    with pytest.raises(ParameterError, match="FPMC has weights for each user"):
        peer.recommend_for([[1, 2]], k=3)
    strangers = PeerRecommender(random_state=0, **SMALL).fit(log).recommend_for([[1, 2]], k=3)
    assert len(strangers) == 3


@needs_recbole
def test_epochs_without_validation_are_told_of_and_the_last_is_kept(log):
    peer = PeerRecommender(random_state=0, **SMALL).fit(log, validation=None)
    records = peer.fit_history_.records
    assert [record["epoch"] for record in records] == list(range(1, SMALL["epochs"] + 1))
    assert all(record["valid_loss"] is None and record["train_loss"] > 0 for record in records)
    assert peer.fit_history_.best_epoch == SMALL["epochs"]


@needs_recbole
def test_unknown_options_are_refused_with_the_nearest_one(log):
    with pytest.raises(
        ParameterError, match="'hidden_sise' is no option of SASRec. Did you mean 'hidden_size'"
    ):
        PeerRecommender(options={"hidden_sise": 3}).fit(log)
    with pytest.raises(ParameterError, match="The option 'epochs' follows from parameters"):
        PeerRecommender(options={"epochs": 3}).fit(log)


@needs_recbole
@pytest.mark.slow
def test_a_baseline_runs_apart_and_writes_nothing_here(log, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run_baseline(
        "SASRec", log, 2, **{name: SMALL[name] for name in ("batch_size", "max_len", "options")}
    )
    here = run_baseline("SASRec", log, is_apart=False, **SMALL)
    for name in ("ndcg@10", "engine_ndcg@10", "best_epoch"):
        assert found[name] == here[name]
    assert found["n_epochs"] == 2
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ParameterError, match="no general or sequential model"):
        run_baseline("Nothing", log)


# -- the table ---------------------------------------------------------------------------------------------------


def test_models_on_request_run_only_where_they_are_named():
    grid = Grid.of("rec")
    assert not any(":" in model.name for model in grid.select().models)
    assert [model.name for model in grid.select(models=["recbole:Pop"]).models] == ["recbole:Pop"]


def test_a_missing_engine_ends_the_table_with_what_to_install(monkeypatch, tmp_path, log):
    usual = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "recbole" else usual(name, *rest)
    )
    with pytest.raises(MissingDependencyError):
        task.build({}, "recbole:SASRec")
    config = _grid(tmp_path, log)
    done = CliRunner().invoke(cli, ["reproduce", "rec", "--config", str(config), "--models", "recbole:Pop"])
    assert done.exit_code == 4
    assert "pip install 'seqattn[recbole]'" in done.stderr


@needs_recbole
@pytest.mark.slow
def test_the_table_has_their_figures_beside_ours_and_is_resumable(tmp_path, log):
    config = _grid(tmp_path, log)
    call = [
        "reproduce",
        "rec",
        "--json",
        "--config",
        str(config),
        "--seeds",
        "1",
        "--output",
        str(tmp_path / "out"),
    ]
    call += ["--models", "recbole:Pop,popularity"]
    done = CliRunner().invoke(cli, call)
    assert done.exit_code == 0, done.stderr
    rows = {(row["model"], row["metric"]): row["mean"] for row in json.loads(done.stdout)["table"]}
    assert rows["recbole:Pop", "ndcg@10"] == pytest.approx(rows["popularity", "ndcg@10"])
    assert rows["recbole:Pop", "engine_ndcg@10"] > 0
    assert rows["popularity", "engine_ndcg@10"] is None
    again = CliRunner().invoke(cli, call)
    assert "2 complete, 0 failed before, 0 to run" in again.stderr
    record = json.loads((tmp_path / "out" / "results.jsonl").read_text().splitlines()[-1])
    assert record["metrics"].keys() >= {"ndcg@10"}


def _grid(folder: Path, log: pl.DataFrame) -> Path:
    """Write a grid with one small data set of our own."""
    data = frame_to_inter(log, folder / "small").parent
    metrics = [("ndcg@10", "NDCG@10"), ("engine_ndcg@10", "theirs")]
    models = [("popularity", "popularity", "false"), ("recbole:Pop", "recbole:Pop", "true")]
    text = 'title = "t"\ntask = "recommend"\nreference = "popularity"\nprotocol = "p"\nprotocol_text = "p"\n'
    text += "evaluation = {}\n"
    text += "".join(
        f'[[metrics]]\nname = "{name}"\ntitle = "{title}"\nunit = "share"\n' for name, title in metrics
    )
    text += "".join(
        f'[[models]]\nname = "{name}"\nmodel = "{model}"\nis_baseline = true\non_request = {asked}\n'
        for name, model, asked in models
    )
    text += f'[[datasets]]\nname = "{data}"\n'
    (folder / "grid.toml").write_text(text)
    return folder / "grid.toml"
