"""Time and memory of reading a large log of interactions from Parquet: make, read, split by last rows.

Run from the project's environment::

    python benchmarks/recommend_data.py --rows 1000000 20000000

Each step is a process of its own. Memory as in ``large_data.py``: ``peak_mb`` is the highest resident size,
``anonymous_mb`` its part that the system cannot take back, ``start_mb`` what Python, torch and polars take.

Data
    A twentieth as many users as rows and 200,000 items (fewer for small logs), drawn by a power of their rank; ids are
    text of 11 and 13 characters (``--ids text``) or whole numbers; rows in the order of time, as a log is written, or
    shuffled.
Steps
    ``make`` writes the file by pieces; ``read`` is ``Interactions.of``; ``split`` is reading and ``leave_one_out``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from large_data import Watch
from processes import RESULTS, clocks, measure, named, told, write

STEPS = ("make", "read", "split")
PIECE = 1_000_000


def simulated(job: dict[str, Any]) -> Iterator[Any]:
    """Give tables of a million rows each, the last one shorter."""
    import polars as pl

    rng = np.random.default_rng(job["seed"])
    n_users, n_items = max(job["n"] // 20, 2), min(200_000, max(job["n"] // 20, 2))
    for first in range(0, job["n"], PIECE):
        rows = min(PIECE, job["n"] - first)
        user = rng.integers(0, n_users, rows)
        item = (n_items * rng.random(rows) ** 2).astype(np.int64)
        at = np.arange(first, first + rows)
        at = rng.integers(0, job["n"], rows) if job["order"] == "shuffled" else at
        table = pl.DataFrame({"user_id": user, "item_id": item, "timestamp": at})
        if job["ids"] == "text":
            texts = [pl.format("user{}", pl.col("user_id").cast(pl.String).str.zfill(7)).alias("user_id")]
            texts.append(
                pl.format("product{}", pl.col("item_id").cast(pl.String).str.zfill(6)).alias("item_id")
            )
            table = table.with_columns(texts)
        yield table


def step(job: dict[str, Any]) -> None:
    """Do one step."""
    from seqattn.data.interactions import Interactions, leave_one_out
    from seqattn.data.table import write_frames

    path = Path(job["folder"]) / "log.parquet"
    if job["step"] == "make":
        told(f"{write_frames(path, simulated(job)):,} rows")
        return
    warnings.simplefilter("ignore")
    data = Interactions.of(path)
    told(repr(data))
    if job["step"] == "split":
        told(repr(leave_one_out(data).train))


def run(job: dict[str, Any]) -> None:
    """Do one step in this process, and print its figures as one line."""
    from seqattn import __version__
    from seqattn.data import interactions  # noqa: F401 - so that imports are not measured

    watch = Watch()
    watch.start()
    begin = clocks()
    step(job)
    seconds = clocks() - begin
    print(json.dumps({**named(seconds), **watch.figures(), "version": __version__}))


def table(records: list[dict[str, Any]]) -> str:
    """Return the figures as a Markdown table."""
    titles = ["step", "rows", "ids", "order", "seconds", "rows/s", "peak MB", "anonymous MB", "start MB"]
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for row in records:
        cells = [row["step"], f"{row['n_rows']:,}", row["ids"], row["order"], f"{row['wall_s']:.1f}"]
        cells += [f"{row['n_rows'] / row['wall_s']:,.0f}"]
        cells += [f"{row[name]:,.0f}" for name in ("peak_mb", "anonymous_mb", "start_mb")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 20_000_000])
    parser.add_argument("--ids", nargs="+", choices=["text", "numbers"], default=["text"])
    parser.add_argument("--order", nargs="+", choices=["time", "shuffled"], default=["time", "shuffled"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, default=Path("recommend-data"), help="Where the data go, for a while."
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "recommend_data.csv")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job:
        run(json.loads(chosen.job))
        return
    records: list[dict[str, Any]] = []
    chosen.folder.mkdir(parents=True, exist_ok=True)
    for n, ids, order in (
        (n, ids, order) for n in chosen.rows for ids in chosen.ids for order in chosen.order
    ):
        for name in STEPS:
            sizes = {"step": name, "n": n, "ids": ids, "order": order, "seed": chosen.seed}
            told(f"{time.strftime('%H:%M:%S')} {n:,} rows, {ids}, {order}: {name}")
            job = {**sizes, "folder": str(chosen.folder.resolve())}
            found = measure(__file__, sys.executable, job, chosen.threads)
            records.append({"step": name, "n_rows": n, "ids": ids, "order": order, **found})
            write(records, chosen.results)
        (chosen.folder / "log.parquet").unlink()
    chosen.folder.rmdir()
    print(table(records))
    chosen.results.with_suffix(".md").write_text(table(records), encoding="utf-8")


if __name__ == "__main__":
    main()
