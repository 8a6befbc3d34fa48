"""Seconds to fit and to predict: VSFormer and TSTPlus of tsai, on the same cases, threads and machine.

Each side is fitted in a fresh process, tokens and loading of batches included and imports not. tsai has no default
number of epochs; 100 (``--epochs``), a rate of 3e-4 and scaling by channel are our choice, and a batch of 64 is its
default; validation is left out on its side. A fit of tsai that would take longer than
``--cap`` seconds is measured for as many epochs as fit in and scaled up: ``measured_epochs`` says for how many. Ours
has its own defaults and is never scaled.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from processes import RESULTS, Memory, alternating, clocks, measure, named, paired, spread, told, write

DATA = ["BasicMotions", "NATOPS", "UWaveGestureLibrary", "Handwriting", "LSST", "PenDigits"]


def export(name: str, folder: Path) -> Path:
    """Write training and test cases to a file that both sides can read, once; return its path."""
    path = folder / f"{name}.npz"
    if not path.exists():
        from seqattn import load_dataset

        parts = {split: load_dataset(name, split=split) for split in ("train", "test")}
        classes = np.unique(parts["train"].labels)
        arrays = {split: panel.to_array() for split, panel in parts.items()}
        labels = {f"{split}_y": np.searchsorted(classes, panel.labels) for split, panel in parts.items()}
        np.savez(path, **arrays, **labels)
    return path


# --- one process ---------------------------------------------------------------------------------------------------


def fit_tsai(job: dict[str, Any], data: Any) -> dict[str, Any]:
    """Fit TSTPlus for as many epochs as the cap allows; return its figures, scaled up to all."""
    import importlib.metadata

    import torch

    # tsai imports torchvision, and uses none of its compiled operators; a torchvision built for another device than
    # torch cannot be imported unless these have names.
    for name in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor"
        )
    from tsai.data.core import TSClassification
    from tsai.data.preprocessing import TSStandardize
    from tsai.models.TSTPlus import TSTPlus
    from tsai.tslearner import TSClassifier

    importlib.import_module("tsai.inference")  # gives learners their method for new cases

    torch.set_num_threads(job["threads"])
    memory, began = Memory(), clocks()
    learner = TSClassifier(
        data["train"].astype(np.float32),
        data["train_y"].astype(str),
        splits=(list(range(len(data["train"]))), []),
        tfms=[None, TSClassification()],
        arch=TSTPlus,
        batch_tfms=TSStandardize(by_var=True),
        bs=64,
        seed=job["seed"],
    )
    with learner.no_bar(), learner.no_logging():
        ready = clocks()
        learner.fit(1, 3e-4)  # the first epoch, slower than the rest, tells how many fit in
        first = clocks() - ready
        rest = job["epochs"] - 1
        chosen = min(rest, max(2, int(job["cap"] / first[1])))
        start = clocks()
        learner.fit_one_cycle(chosen, 3e-4)
        spent = clocks() - start
    fitted = ready - began + first + spent * rest / chosen
    begin = clocks()
    probabilities = learner.get_X_preds(data["test"].astype(np.float32), with_decoded=False)[0]
    predicted = clocks() - begin
    codes = learner.dls.vocab
    answers = np.asarray(codes).astype(int)[probabilities.argmax(1).numpy()]
    versions = f"tsai {importlib.metadata.version('tsai')}, torch {torch.__version__}"
    return (
        named(fitted, "fit_")
        | named(predicted, "predict_")
        | {
            "epochs": job["epochs"],
            "measured_epochs": chosen + 1,
            "memory_mb": round(memory.above_start(), 1),
        }
        | {"accuracy": float(np.mean(answers == data["test_y"])), "versions": versions}
    )


def fit_ours(job: dict[str, Any], data: Any) -> dict[str, Any]:
    """Fit VSFormer with its defaults and the given settings; return its figures."""
    import torch

    from seqattn import VSFormerClassifier, __version__

    torch.set_num_threads(job["threads"])
    memory, began = Memory(), clocks()
    model = VSFormerClassifier(random_state=job["seed"], n_jobs=job["threads"], **job["settings"])
    model.fit(data["train"], data["train_y"])
    fitted = clocks() - began
    begin = clocks()
    answers = model.predict(data["test"])
    predicted = clocks() - begin
    n_epochs = len(model.history_.records)
    return (
        named(fitted, "fit_")
        | named(predicted, "predict_")
        | {"epochs": n_epochs, "measured_epochs": n_epochs, "memory_mb": round(memory.above_start(), 1)}
        | {"accuracy": float(np.mean(answers == data["test_y"]))}
        | {"versions": f"seqattn {__version__}, torch {torch.__version__}"}
    )


SIDES = {"tsai": fit_tsai, "ours": fit_ours}


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    with np.load(job["path"]) as file:
        data = {name: file[name] for name in file.files}
    return SIDES[job["side"]](job, data)


# --- the driver ----------------------------------------------------------------------------------------------------


def compare(name: str, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    path, records = export(name, folder), []
    for number, side in alternating(options.sides, options.rounds):
        job = {"side": side, "path": str(path), "seed": number, "threads": options.threads}
        job |= {"epochs": options.epochs, "cap": options.cap, "settings": options.settings}
        python = options.peer_python if side == "tsai" else sys.executable
        found = measure(__file__, python, job, options.threads)
        records.append({"data": name, "side": side, "round": number} | found)
        told(
            f"{name}, {side}, round {number}: fit {found['fit_wall_s']:.1f} s, predict {found['predict_wall_s']:.2f} s"
        )
    return records


def summary(records: list[dict[str, Any]]) -> list[str]:
    """Return a Markdown table of tsai's seconds over ours, by data set."""
    rows = ["| data | fit, tsai / ours | predict, tsai / ours |", "| --- | --- | --- |"]
    for name in dict.fromkeys(record["data"] for record in records):
        sides = {
            side: [record for record in records if (record["data"], record["side"]) == (name, side)]
            for side in SIDES
        }
        if sides["tsai"] and sides["ours"]:
            ratios = [
                spread(paired(sides["tsai"], sides["ours"], lambda record, what=what: record[what]))
                for what in ("fit_wall_s", "predict_wall_s")
            ]
            rows.append(f"| {name} | {' | '.join(ratios)} |")
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", help="interpreter of an environment with tsai")
    parser.add_argument("--data", nargs="+", default=DATA)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument(
        "--settings", type=json.loads, default={}, help="JSON of parameters of VSFormerClassifier"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=100, help="of tsai")
    parser.add_argument(
        "--cap", type=float, default=60, help="seconds of a fit of tsai before it is scaled up"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keeps the exported cases")
    parser.add_argument("--results", type=Path, default=RESULTS / "classify_peers.csv")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.job and "tsai" in options.sides and not options.peer_python:
        parser.error("--peer-python is needed: the interpreter of an environment with tsai")
    return options


def main() -> None:
    options = arguments()
    if options.job:
        print(json.dumps(run_job(options.job)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = options.folder or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        records = [record for name in options.data for record in compare(name, options, folder)]
    write(records, options.results)
    print("\n".join(summary(records)))


if __name__ == "__main__":
    main()
