"""One epoch and one evaluation of the recommenders beside RecBole's SASRec: processor time and memory.

Run from the project's environment, with the extra ``recbole``::

    python benchmarks/recommend_peers.py

Each side is a process of its own on one thread; the order of the sides turns round from round to round, and ratios are
formed inside a round.

Data
    ``--data``, amazon-beauty by default: the last row of each user is for testing, the one before for validation.
Sides
    ``recbole:SASRec`` as RecBole trains it, one row per prefix, 2,048 rows a step; ``sasrec`` and ``mqsa-ted`` as they
    come. Equal on all sides: width 64, histories of 50, a softmax over all items, float32, one epoch, no early end.
    RecBole's SASRec has its defaults otherwise: two layers of two heads where ours has one layer of one head;
    ``recbole:SASRec, 1 layer`` has one layer of one head.
Clock
    Epoch: from the first step to the end of the last one, without reading data and without validation. Evaluation: the
    ranks of all test items by the side's own evaluation. Ours removes what the user had, RecBole's does not.
Memory
    ``peak_mb`` is the highest resident size of the process, ``start_mb`` what it had when all was imported;
    ``epoch_mb`` and ``evaluation_mb`` are what came on top in the course of each.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from processes import (
    RESULTS,
    Memory,
    alternating,
    clocks,
    measure,
    named,
    paired,
    spread,
    status,
    told,
    write,
)

WIDTH, LENGTH = 64, 50
SIDES = ("recbole:SASRec", "recbole:SASRec, 1 layer", "sasrec", "mqsa-ted")
LAYERS = {"recbole:SASRec": (2, 2), "recbole:SASRec, 1 layer": (1, 1)}


class Epoch:
    """Notes when the first epoch begins and ends; both kinds of training tell of it."""

    def __init__(self) -> None:
        self.first = self.last = clocks()

    def begin(self, settings: Any) -> None:
        """Start the clock: data are ready, and the first step comes next."""
        self.first = clocks()

    def batch(self, batch: Any) -> None:
        """Nothing to do."""

    def epoch(self, record: Any) -> None:
        """Stop the clock; the first epoch is the only one."""
        self.last = clocks()

    def end(self, history: Any) -> None:
        """Nothing to do."""


def side(name: str) -> Any:
    """Return the recommender of a side."""
    from seqattn import MQSATEDRecommender, SASRecRecommender
    from seqattn.recommend.peers import PeerRecommender

    shared: dict[str, Any] = {"max_len": LENGTH, "epochs": 1, "patience": None, "random_state": 0}
    shared["device"] = "cpu"
    if name in LAYERS:
        n_layers, n_heads = LAYERS[name]
        options = {"hidden_size": WIDTH, "inner_size": 4 * WIDTH, "n_layers": n_layers, "n_heads": n_heads}
        return PeerRecommender(model="SASRec", options={**options, "loss_type": "CE"}, **shared)
    kind = {"sasrec": SASRecRecommender, "mqsa-ted": MQSATEDRecommender}[name]
    return kind(d_model=WIDTH, loss="full", **shared)


def run(job: dict[str, Any]) -> None:
    """Train and evaluate one side in this process, and print its figures as one line."""
    from seqattn import __version__, load_dataset
    from seqattn.recommend.recbole_compat import engine_of

    warnings.simplefilter("ignore")
    engine_of("recbole").model("SASRec")  # so that imports are not measured, on any side
    start, watched, data = status("VmRSS"), Epoch(), load_dataset(job["data"])
    model, memory = side(job["side"]), Memory()
    model.fit(data["train"], validation=None, observers=[watched])
    epoch_mb, memory, begin = memory.above_start(), Memory(), clocks()
    n_users = data["test"].n_rows
    if job["side"] in LAYERS:
        figure = model.engine_figures(data["test"])["engine_ndcg@10"]
    else:
        figure = model.evaluate(data["test"], baselines=False)["ndcg@10"]
    asked = clocks() - begin
    print(
        json.dumps(
            {
                **named(watched.last - watched.first, "epoch_"),
                **named(asked, "evaluation_"),
                "users_per_cpu_s": n_users / asked[0],
                "ndcg@10": figure,
                "start_mb": start,
                "epoch_mb": epoch_mb,
                "evaluation_mb": memory.above_start(),
                "peak_mb": start + max(epoch_mb, memory.above_start()),
                "version": __version__,
            }
        )
    )


def told_ratios(records: list[dict[str, Any]]) -> None:
    """Show each of our sides against each of RecBole's."""
    for theirs in LAYERS:
        below = [record for record in records if record["side"] == theirs]
        for ours in SIDES[2:]:
            above = [record for record in records if record["side"] == ours]
            if not below or not above:
                continue
            faster = paired(below, above, lambda record: record["epoch_cpu_s"])
            smaller = paired(below, above, lambda record: record["epoch_mb"])
            ranked = paired(above, below, lambda record: record["users_per_cpu_s"])
            print(
                f"{ours} against {theirs}: an epoch {spread(faster, 1)} times faster, "
                f"{spread(smaller, 1)} times less memory, {spread(ranked, 1)} times the users a second"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="amazon-beauty")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS / "recommend_peers.csv")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job:
        run(json.loads(chosen.job))
        return
    records: list[dict[str, Any]] = []
    for number, name in alternating(chosen.sides, chosen.rounds):
        told(f"{time.strftime('%H:%M:%S')} round {number + 1}: {name}")
        found = measure(__file__, sys.executable, {"side": name, "data": chosen.data}, 1)
        told(json.dumps(found))
        records.append({"round": number, "side": name, "data": chosen.data, **found})
        write(records, chosen.results)
    told_ratios(records)


if __name__ == "__main__":
    main()
