"""Time one-step prediction at every position by SAHP here and in EasyTPP 0.3.0: same data, batches, width and layers.

Run from the project's environment, with the interpreter of an environment that holds EasyTPP::

    python benchmarks/hawkes_prediction.py --peer-python PATH --data taxi hawkes --rounds 5

Every side is first trained for ``--epochs`` epochs (default 1) in a process of its own, so that states are not
trivial. Each measurement then is a fresh process that opens the trained model and predicts the test split; the order
of the sides alternates from round to round, and ratios are formed inside a round. Waiting threads sleep
(OMP_WAIT_POLICY=PASSIVE).

Sides
    ``easytpp draw``: its ``predict_one_step_at_every_event`` as shipped, on batches of its collator: one random draw
    of the time by thinning (500 proposals) and the most probable type at the drawn time.
    ``paper law``, ``defaults law``: mean, median and the probabilities of all types from ``next_event`` on the tokens
    of the same batches of 32 sequences; packing and encoder included.
    ``paper predict``, ``defaults predict``: the public call ``SAHP.predict`` on the whole split with the batches it
    chooses itself, from reading the sequences to the finished table.
    ``paper prefixes``, ``defaults prefixes``: a loop that calls ``SAHP.predict_next`` on one prefix at a time, for
    ``--prefixes`` positions drawn evenly from all; seconds are scaled up to all positions. The making of the prefixes
    is not timed.

What is timed
    Everything from stored sequences to answers, ``--passes`` times over the split after one batch that is not timed,
    without gradients. Seconds are per 1,000 positions; positions are the events 2..N of each sequence on all sides.
    Memory is the highest resident size from the opening of the model on, less the size at that point.

What is checked
    In the process of ``prefixes``, mean, median, type and its probability of each prefix are compared with those of
    ``predict`` on the whole split: the largest difference, relative to the larger of value and mean gap for times,
    must be below 1e-4, and the types must agree.

What is not equal
    EasyTPP's encoder has attention alone, see ``hawkes_training.py``. It leaves out the first event of a sequence,
    which ours predicts too (from the window's beginning) without being credited for it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from processes import (
    RESULTS,
    Data,
    Memory,
    alternating,
    clocks,
    cut,
    export,
    measure,
    named,
    paired,
    spread,
    told,
    write,
)

LARGEST_DIFFERENCE = 1e-4
METHODS = ("law", "predict", "prefixes")


# --- EasyTPP -------------------------------------------------------------------------------------------------------


def prepare_easytpp(job: dict[str, Any]) -> dict[str, Any]:
    """Train for a short while and write the weights to a file."""
    import easytpp_side as peer

    peer.load_package()
    data, draws = Data.read(job["train"]), np.random.default_rng(job["seed"])
    wrapper, make_batch = peer.build(data.n_types, job["seed"], training=True), peer.collator(data)
    for _ in range(job["epochs"]):
        totals = sum(
            peer.train_batch(wrapper, make_batch(rows)) for rows in cut(draws.permutation(len(data)))
        )
    wrapper.save(job["weights"])
    return {"loss": float(totals[0] / totals[1])}


def predict_easytpp(job: dict[str, Any]) -> dict[str, Any]:
    """Draw the next event at every position, as its wrapper does when it validates."""
    import easytpp_side as peer
    import torch

    peer.load_package()
    data = Data.read(job["test"])
    make_batch, batches = peer.collator(data), cut(np.arange(len(data)))
    memory = Memory()
    wrapper = peer.build(data.n_types, job["seed"], training=False)
    wrapper.restore(job["weights"])
    model = wrapper.model.eval()

    def predicted(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        batch = make_batch(rows)
        with torch.no_grad():
            gap, kind = model.predict_one_step_at_every_event(**batch)
        labels = (batch[name][:, 1:].numpy() for name in ("time_delta_seqs", "type_seqs"))
        real = batch["seq_non_pad_mask"][:, 1:].numpy().astype(bool)
        return tuple(value[real] for value in (gap.numpy(), kind.numpy(), *labels))

    predicted(batches[0])
    begun = clocks()
    for _ in range(job["passes"]):
        found = [predicted(rows) for rows in batches]
    seconds = (clocks() - begun) / job["passes"]
    answers = (np.concatenate(part) for part in zip(*found, strict=True))
    return figures(seconds, memory) | quality(*answers) | {"version": peer.version()}


# --- seqattn -------------------------------------------------------------------------------------------------------


def predict_seqattn(job: dict[str, Any]) -> dict[str, Any]:
    """Answer for every position, in one of three ways."""
    import seqattn_side as ours

    import seqattn

    sequences = ours.sequences_of(Data.read(job["test"]))
    memory = Memory()
    model = seqattn.load(job["weights"])
    way = {"law": by_law, "predict": by_table, "prefixes": by_prefixes}[job["method"]]
    return way(model, sequences, job, memory) | {"version": ours.version()}


def by_law(model: Any, sequences: Any, job: dict[str, Any], memory: Memory) -> dict[str, Any]:
    """Mean, median and type probabilities on the same batches as the other package."""
    import torch

    from seqattn.data.batches import pack
    from seqattn.hawkes.forecast import next_event

    module, batches = model.module_, cut(np.arange(len(sequences)))

    def predicted(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        batch = pack(sequences, rows, scale=model.scale_, recency=module.needs_recency)
        tokens = (batch.target >= 0).nonzero()[:, 0]
        with torch.no_grad():
            answer = next_event(module(batch).select(tokens))
        kinds, scored = answer.type_probability.argmax(1), batch.scored[tokens]
        values = (answer.mean * model.scale_, kinds, batch.until[tokens] * model.scale_, batch.target[tokens])
        return tuple(value[scored].numpy() for value in values)

    predicted(batches[0])
    begun = clocks()
    for _ in range(job["passes"]):
        found = [predicted(rows) for rows in batches]
    seconds = (clocks() - begun) / job["passes"]
    answers = (np.concatenate(part) for part in zip(*found, strict=True))
    return figures(seconds, memory) | quality(*answers)


def by_table(model: Any, sequences: Any, job: dict[str, Any], memory: Memory) -> dict[str, Any]:
    """The public call on the whole split."""
    model.predict(sequences.select(np.arange(min(32, len(sequences)))))
    begun = clocks()
    for _ in range(job["passes"]):
        table = model.predict(sequences)
    seconds = (clocks() - begun) / job["passes"]
    answers = columns(table)
    scored, since = answers["scored"], previous(sequences)
    gap, seen = answers["t_mean"] - since, sequences.times - since
    values = (gap, answers["k"], seen, sequences.types)
    return figures(seconds, memory) | quality(*(value[scored] for value in values))


def by_prefixes(model: Any, sequences: Any, job: dict[str, Any], memory: Memory) -> dict[str, Any]:
    """One call per prefix, on a sample; scaled up to all positions."""
    import seqattn
    from seqattn.hawkes.counting import scored_events

    scored = np.flatnonzero(scored_events(sequences))
    chosen = scored[np.linspace(0, len(scored) - 1, job["prefixes"] + 1).astype(int)]
    rows = np.searchsorted(sequences.offsets, chosen, side="right") - 1
    prefixes = []
    for event, row in zip(chosen, rows, strict=True):
        known = slice(sequences.offsets[row], event)
        pair = (sequences.times[known], sequences.types[known])
        prefixes.append(seqattn.Sequences.from_lists([pair], labels=sequences.labels))
    model.predict_next(prefixes[0])
    begun = clocks()
    tables = [model.predict_next(prefix) for prefix in prefixes[1:]]
    seconds = (clocks() - begun) * len(scored) / job["prefixes"]
    return figures(seconds, memory) | {"difference": difference(model, sequences, tables, chosen[1:])}


def difference(model: Any, sequences: Any, tables: list[Any], events: np.ndarray) -> float:
    """Return the largest difference of the loop from the whole split in one call; refuse a real one."""
    whole, since = columns(model.predict(sequences)), previous(sequences)[events]
    parts = [columns(table) for table in tables]
    single = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if (single["k"] != whole["k"][events]).any():
        raise SystemExit("The loop over prefixes predicts other types than the call on whole sequences.")
    largest = float(np.abs(single["p"] - whole["p"][events]).max())
    for name in ("t_mean", "t_median"):
        one, other = single[name] - since, whole[name][events] - since
        largest = max(largest, float((np.abs(one - other) / np.maximum(other, model.scale_)).max()))
    if not largest < LARGEST_DIFFERENCE:
        raise SystemExit(f"The loop over prefixes differs by {largest} from the call on whole sequences.")
    return largest


def columns(table: Any) -> dict[str, np.ndarray]:
    return {name: table[name].to_numpy() for name in table.columns}


def previous(sequences: Any) -> np.ndarray:
    """Return the time of the event before each event, or of the window's beginning."""
    before = np.concatenate([[0.0], sequences.times[:-1]])
    before[sequences.offsets[:-1]] = sequences.start
    return before


# --- one process ---------------------------------------------------------------------------------------------------


def figures(seconds: np.ndarray, memory: Memory) -> dict[str, float]:
    return named(seconds) | {"memory_mb": memory.above_start()}


def quality(gap: np.ndarray, kind: np.ndarray, seen: np.ndarray, seen_kind: np.ndarray) -> dict[str, float]:
    """Return how good the predictions of events 2..N were, after so little training."""
    error = np.asarray(gap, dtype=float) - np.asarray(seen, dtype=float)
    return {
        "predicted": len(error),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "accuracy": float(np.mean(np.asarray(kind) == np.asarray(seen_kind))),
    }


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Train one side, or measure it, in this process."""
    if job["side"] == "easytpp":
        return prepare_easytpp(job) if job["method"] == "train" else predict_easytpp(job)
    if job["method"] == "train":
        from seqattn_side import fit_and_save

        return fit_and_save(job)
    return predict_seqattn(job)


# --- the driver ----------------------------------------------------------------------------------------------------


def compare(name: str, options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Train every side once, then run all rounds on one data set; give one record per process."""
    train, test = (export(name, split, folder, options.seed) for split in ("train", "test"))
    data = Data.read(str(test))
    positions = len(data.times) - len(data)
    shared = {"train": str(train), "test": str(test), "seed": options.seed, "epochs": options.epochs}
    shared |= {"passes": options.passes, "prefixes": options.prefixes}

    def run(side: str, method: str) -> dict[str, Any]:
        python = options.peer_python if side == "easytpp" else sys.executable
        own = {"side": side, "method": method, "parameters": options.sides.get(side, {})}
        weights = str(folder / f"{name}.{side}.weights")
        return measure(__file__, python, shared | own | {"weights": weights}, options.threads)

    for side in ("easytpp", *options.sides):
        told(f"{name}, {side}: trained to {run(side, 'train')['loss']:.3f}")
    ways = [("easytpp", "draw"), *((side, method) for side in options.sides for method in METHODS)]
    for number, (side, method) in alternating(ways, options.rounds):
        about = {"data": name, "round": number, "side": side, "method": method, "positions": positions}
        about |= {"passes": options.passes, "prefixes": options.prefixes if method == "prefixes" else ""}
        record = about | {"ours": json.dumps(options.sides.get(side, {}))} | run(side, method)
        told(line(record))
        yield record


def per_thousand(record: dict[str, Any], clock: str) -> float:
    """Return seconds per 1,000 positions."""
    return float(1000 * record[f"{clock}_s"] / record["positions"])


def line(record: dict[str, Any]) -> str:
    """Return one process's figures in words."""
    words = f"{record['data']:>14} round {record['round']} {record['side']:>8} {record['method']:>8}: "
    words += f"{per_thousand(record, 'cpu'):8.4f} s per 1,000 processor, {per_thousand(record, 'wall'):8.4f} wall, "
    words += f"{record['memory_mb']:5.0f} MB"
    if "rmse" in record:
        return words + f", RMSE {record['rmse']:.3f}, accuracy {record['accuracy']:.3f}"
    return words + f", largest difference {record['difference']:.1e}"


def summary(records: list[dict[str, Any]]) -> Iterator[str]:
    """Give lines with seconds and, over the rounds, how many times faster our answers for all positions are."""
    yield (
        "| data, side | s per 1,000, processor | wall | times faster than one draw of EasyTPP, processor | wall "
        "| times faster than our loop over prefixes, processor | memory / EasyTPP's |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, side, method in dict.fromkeys((r["data"], r["side"], r["method"]) for r in records):
        own, peer, loop = (
            [r for r in records if (r["data"], r["side"], r["method"]) == (name, *which)]
            for which in ((side, method), ("easytpp", "draw"), (side, "prefixes"))
        )
        cells = [spread([per_thousand(r, clock) for r in own], 4) for clock in ("cpu", "wall")]
        cells += [
            spread(paired(peer, own, lambda r, clock=clock: r[f"{clock}_s"])) for clock in ("cpu", "wall")
        ]
        one_call = method in ("law", "predict")
        cells.append(spread(paired(loop, own, lambda r: r["cpu_s"]), 0) if one_call else "")
        cells.append(spread(paired(own, peer, lambda r: r["memory_mb"])))
        yield f"| {name}, {side} {method} | " + " | ".join(cells) + " |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare the speed of prediction by SAHP with EasyTPP's.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--peer-python", help="interpreter of an environment with easy-tpp 0.3.0")
    parser.add_argument("--data", nargs="+", default=["taxi"], help="names of data sets, or 'hawkes'")
    parser.add_argument("--settings", nargs="*", default=["paper", "defaults"], help="'paper', 'defaults'")
    parser.add_argument(
        "--ours", type=json.loads, help="JSON of parameters of SAHP for one more side, named 'given'"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--epochs", type=int, default=1, help="epochs of training before anything is measured"
    )
    parser.add_argument("--passes", type=int, default=3, help="timed passes over the test split per process")
    parser.add_argument("--prefixes", type=int, default=200, help="positions of the loop over prefixes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS / "hawkes_prediction.csv")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.job and not options.peer_python:
        parser.error("--peer-python is needed: the interpreter of an environment with easy-tpp 0.3.0")
    return options


def main() -> None:
    options = arguments()
    if options.job:
        print(json.dumps(run_job(options.job)))
        return
    from seqattn_side import sides

    options.sides = sides(options.settings, options.ours)
    with tempfile.TemporaryDirectory() as folder:
        records = [record for name in options.data for record in compare(name, options, Path(folder))]
    write(records, options.results)
    print("\n".join(summary(records)))


if __name__ == "__main__":
    main()
