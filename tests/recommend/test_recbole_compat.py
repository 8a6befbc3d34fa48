"""Each thing that RecBole breaks at today, without its repair and with it; and that nothing else is touched."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seqattn.errors import MissingDependencyError, ParameterError
from seqattn.recommend import recbole_compat
from seqattn.recommend.recbole_compat import engine_of

ROOT = Path(__file__).resolve().parents[2]
needs_recbole = pytest.mark.skipif(
    importlib.util.find_spec("recbole") is None,
    reason="RecBole is not installed: pip install 'seqattn[recbole]'",
)

# One process imports RecBole; a child of it per case leaves one repair out, so that nothing is imported twice.
CASES = r"""
import json, os, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import numpy, pandas, scipy.sparse, scipy.sparse.csgraph, scipy.sparse.linalg, torch
# Parts of torch that it imports by itself on first use.
import torch._dynamo, torch._inductor, torch._numpy, torch.onnx
before = [{name: id(value) for name, value in vars(module).items()} for module in (numpy, pandas, torch, scipy.sparse)]
place, arguments, files = os.getcwd(), list(sys.argv), sorted(os.listdir("."))
import recbole.config, recbole.data, recbole.evaluator, recbole.trainer
import recbole.model.general_recommender, recbole.model.sequential_recommender
from seqattn.recommend import recbole_compat as compat

folder = Path(sys.argv[1]) / "small"
folder.mkdir()
rows = [f"u{u}\ti{(u + step * (u % 3 + 1)) % 9}\t{step}" for u in range(12) for step in range(6)]
(folder / "small.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n")
cells = [f"i{i}\t{'' if i % 2 else i}\t{'' if i == 4 else 'a b c'[: 1 + 2 * (i % 3)]}" for i in range(9)]
(folder / "small.item").write_text("\n".join(["item_id:token\tprice:float\tkinds:token_seq", *cells]) + "\n")

def prepared(model, **more):
    engine = compat.engine_of("recbole")
    kind = engine.model(model)
    settings = {
        "data_path": str(folder.parent), "checkpoint_dir": str(folder / f"saved{os.getpid()}"), "epochs": 1,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "use_gpu": False, "gpu_id": "",
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
        "train_neg_sample_args": None, "show_progress": False, **more,
    }
    config = engine.config(kind, "small", settings)
    dataset = engine.module("data").create_dataset(config)
    train, valid, test = engine.module("data").data_preparation(config, dataset)
    network = kind(config, train.dataset)
    return engine, config, dataset, network, train, valid, test

def trained(model, load_best=False, **more):
    engine, config, dataset, network, train, valid, test = prepared(model, **more)
    trainer = engine.trainer(config, network)
    trainer.fit(train, valid, verbose=False, saved=load_best)
    return network, trainer.evaluate(test, load_best_model=load_best), train

def config():
    compat.engine_of("recbole").config("SASRec", "small", {"train_neg_sample_args": None})

def learns():
    assert trained("SASRec")[1]["ndcg@10"] > 0

def best():
    trained("SASRec", load_best=True)

ITEMS = {"load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "price", "kinds"]}}

def features():
    prices = prepared("SASRec", **ITEMS)[2].item_feat["price"]
    assert not torch.isnan(torch.as_tensor(prices)).any(), "prices are missing"

def lists():
    kinds = prepared("SASRec", **ITEMS)[2].item_feat["kinds"]
    assert sorted(set((kinds > 0).sum(dim=1).tolist())) == [0, 1, 2, 3], "lists have other lengths"

def graph():
    trained("LightGCN", train_neg_sample_args={"distribution": "uniform", "sample_num": 1})

def coverage():
    assert 0 < trained("SASRec", metrics=["ItemCoverage"], valid_metric="ItemCoverage@10")[1]["itemcoverage@10"] <= 1

def popularity():
    network, _, train = trained("Pop")
    counted = {item: int(n) for item, n in enumerate(network.item_cnt.flatten()) if n}
    assert counted == dict(train.dataset.item_counter), "counts are others"

ACTIONS = {
    "aliases": config, "numpy": learns, "checkpoints": best, "missing": features, "lists": lists, "sparse": graph,
    "counts": coverage, "popularity": popularity,
}

def outcome(action, without):
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        compat.REPAIRS.pop(without, None)
        os.chdir(sys.argv[1])
        try:
            action()
            told = "fine"
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(writer, told.encode()[:4000])
        os._exit(0)
    os.close(writer)
    told = open(reader).read()
    os.waitpid(child, 0)
    return told

found = {name: [outcome(action, name), outcome(action, None)] for name, action in ACTIONS.items()}
sys.argv.append("--epochs=7")
learns()
sys.argv.pop()
after = [{name: id(value) for name, value in vars(module).items()} for module in (numpy, pandas, torch, scipy.sparse)]
found["changed"] = [
    name for old, new in zip(before, after) for name in old.keys() | new.keys() if old.get(name) != new.get(name)
]
found["same"] = [place == os.getcwd(), arguments == sys.argv, files == sorted(os.listdir("."))]
found["not imported"] = [name not in sys.modules for name in ("ray", "recbole.quick_start")]
print(json.dumps(found))
"""

# What RecBole does without each repair.
BROKEN = {
    "aliases": "AttributeError: `np.float_`",
    "numpy": "has no attribute 'float'",
    "checkpoints": "UnpicklingError",
    "missing": "",
    "lists": "",
    "sparse": "_update",
    "counts": "'int' object has no attribute 'cpu'",
    "popularity": "AssertionError: counts are others",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    place, there = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("data")
    done = subprocess.run(
        [sys.executable, "-c", CASES, str(there)],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@needs_recbole
@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_each_repair_is_needed_and_enough(found, name):
    without, repaired = found[name]
    assert repaired == "fine"
    assert without != "fine"
    assert BROKEN[name] in without


@needs_recbole
@pytest.mark.slow
def test_libraries_arguments_and_folder_are_as_they_were(found):
    assert found["changed"] == []
    assert found["same"] == [True, True, True]
    assert found["not imported"] == [True, True]


def test_every_repair_has_a_case():
    assert set(recbole_compat.REPAIRS) == set(BROKEN)


@needs_recbole
def test_no_text_is_evaluated_and_the_command_line_is_not_read(monkeypatch):
    engine = engine_of("recbole")
    monkeypatch.setattr(sys, "argv", ["program", "--learning_rate=7", "--hidden_size=8"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    settings = {"train_neg_sample_args": None, "note": "[].append(1) or 2 + 2", "gpu_id": ""}
    config = engine.config(engine.model("SASRec"), "small", settings)
    assert (config["learning_rate"], config["hidden_size"]) == (0.001, 64)
    assert config["note"] == "[].append(1) or 2 + 2"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    # RecBole by itself does all three.
    monkeypatch.setattr(
        recbole_compat, "_changed", lambda module, changes: __import__("contextlib").nullcontext()
    )
    config = engine.config(engine.model("SASRec"), "small", settings)
    assert (config["learning_rate"], config["hidden_size"], config["note"]) == (7, 8, 4)
    assert os.environ.pop("CUDA_VISIBLE_DEVICES") == ""


@needs_recbole
def test_settings_of_other_kinds_are_refused():
    with pytest.raises(ParameterError, match="is of type object"):
        engine_of("recbole").config("SASRec", "small", {"epochs": object()})


@needs_recbole
def test_importing_the_models_leaves_the_anomaly_detection_of_torch_as_it_was(run_python):
    code = """
import torch
from seqattn.recommend.recbole_compat import engine_of
engine_of("recbole").model("SINE")
print(torch.is_anomaly_enabled())
import importlib, sys
importlib.reload(sys.modules["recbole.model.sequential_recommender.sine"])
print(torch.is_anomaly_enabled())
"""
    done = run_python(code)
    assert done.stdout.split() == ["False", "True"], done.stderr


@needs_recbole
def test_an_unknown_model_is_refused_with_the_nearest_one():
    with pytest.raises(
        ParameterError, match="no general or sequential model 'SASREC'. Did you mean 'SASRec'"
    ):
        engine_of("recbole").model("SASREC")


@needs_recbole
def test_checkpoints_from_elsewhere_run_nothing(tmp_path):
    import pickle

    import torch

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"config": Evil()}, tmp_path / "model.pth")
    engine = engine_of("recbole")
    with pytest.raises(pickle.UnpicklingError):
        engine.module("trainer.trainer").torch.load(tmp_path / "model.pth")
    assert not (tmp_path / "touched").exists()


def test_an_absent_engine_names_what_to_install(monkeypatch):
    usual = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "recbole" else usual(name, *rest)
    )
    with pytest.raises(MissingDependencyError, match=r"pip install 'seqattn\[recbole\]'") as refused:
        engine_of("recbole")
    assert isinstance(refused.value, ImportError)
    from seqattn.recommend import recbole

    recbole.mqsa_ted_of.cache_clear()
    with pytest.raises(ImportError, match=r"seqattn\[recbole\]"):
        _ = recbole.MQSATED


def test_an_unknown_engine_is_refused():
    with pytest.raises(ParameterError, match="engine='recbowl' is not known.*Did you mean 'recbole'"):
        engine_of("recbowl")
