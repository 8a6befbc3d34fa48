"""The commands about attention: which kernel a call takes, and how fast each pattern is here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from seqattn.cli.console import example, flag, note, options, picture, show, stopped
from seqattn.errors import ParameterError

__all__ = ["attention"]


@click.group(epilog=example("attention explain --pattern local --length 4000"))
def attention() -> None:
    """Explain and measure how attention is computed."""


def _numbers(ctx: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    try:
        found = [int(part) for part in value.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        name = (parameter.name or "").removesuffix("s")
        raise ParameterError(f"--{name} must be whole numbers above 0 such as 512,4096, got {value!r}.")
    return found


def _names(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[str]:
    """Return names between commas; a comma inside brackets, as in local(left=8, right=8), belongs to a name."""
    return [name.strip() for name in re.split(r",(?![^(]*\))", value or "") if name.strip()]


_SHAPE = [
    click.option("--heads", type=click.IntRange(1), default=4, show_default=True, help="Number of heads."),
    click.option(
        "--batch", type=click.IntRange(1), default=4, show_default=True, help="Number of sequences."
    ),
    click.option(
        "--causal/--both-sides", default=True, help="Whether later keys are hidden.  [default: causal]"
    ),
    click.option(
        "--backward/--forward", default=True, help="Whether gradients are computed too.  [default: backward]"
    ),
]


def _shape(command: Any) -> Any:
    for option in reversed(_SHAPE):
        command = option(command)
    return command


def _constants() -> Path:
    """Return where the constants of this machine are kept."""
    from seqattn.data.catalog import cache_folder

    return cache_folder() / "attention.json"


@attention.command(epilog=example("attention calibrate"))
@options()
@click.option("--again", is_flag=True, help="Measure even if this machine was measured before.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each call.")
def calibrate(again: bool, rounds: int) -> None:
    """Measure what each kernel costs on this machine, and keep it in the cache folder for explain and bench."""
    from seqattn.attention import calibrate as measure

    path = _constants()
    found = measure(path=path, again=again, rounds=rounds)
    note(f"{'Read from' if found.is_loaded else 'Written to'} {path}.")
    show({"rows": found.rows(), "path": str(path), "is_loaded": found.is_loaded}, str(found))


def _use_constants() -> None:
    """Go by the constants of this machine if they were measured."""
    from seqattn.attention.costs import COSTS, load

    kept = load(_constants())
    if kept is not None:
        COSTS.use(kept)


@attention.command(epilog=example("attention explain --pattern dilated --length 4000"))
@options()
@click.option("--pattern", default="dense", show_default=True, help="Pattern such as local(32).")
@click.option(
    "--length", type=click.IntRange(1, 2**24), default=1024, show_default=True, help="Tokens of a sequence."
)
@click.option("--width", type=click.IntRange(1), default=64, show_default=True, help="Width of a head.")
@_shape
def explain(
    pattern: str, length: int, width: int, heads: int, batch: int, causal: bool, backward: bool
) -> None:
    """Print which kernel a call takes, and what speaks against each other one."""
    from seqattn.attention import explain as explained

    _use_constants()
    shape = (batch, heads, length, width)
    found = explained(shape, shape, shape, pattern=pattern, causal=causal, training=backward)
    candidates = [
        {"kernel": one.kernel, "microseconds": one.cost, "refusals": list(one.refusals)}
        for one in found.candidates
    ]
    show(
        {"kernel": found.kernel, "call": found.call, "candidates": candidates, "costs": found.costs},
        str(found),
    )


@attention.command(
    epilog=example("attention bench --length 512,4096 --patterns local,routing --output runs/bench")
)
@options()
@click.option(
    "--length", "lengths", default="256,1024,4096", show_default=True, metavar="N,N", callback=_numbers,
    help="Tokens of a sequence.",
)  # fmt: skip
@click.option(
    "--width",
    "widths",
    default="64",
    show_default=True,
    metavar="D,D",
    callback=_numbers,
    help="Width of a head.",
)
@click.option(
    "--patterns",
    metavar="A,B",
    callback=_names,
    help="Patterns such as local(32), routing.  [default: all names]",
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each method.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of torch.")
@click.option(
    "--peers", is_flag=True, help="Measure local-attention, routing_transformer and x-transformers too."
)
@click.option("--output", metavar="DIR", help="Folder for bench.csv, bench.md and bench.png.")
@_shape
def bench(
    lengths: list[int], widths: list[int], patterns: list[str], rounds: int, threads: int, peers: bool,
    output: str | None, **shape: Any,
) -> None:  # fmt: skip
    """Measure time, memory and error of patterns on this machine, beside the fused dense call."""
    from seqattn import benchmark
    from seqattn.plots import plot_bench
    from seqattn.report import table, write_table
    from seqattn.train.folder import make_folder

    _use_constants()
    names = benchmark.methods(patterns, peers)
    cases = [benchmark.Case(length, width, **shape) for width in widths for length in lengths]
    if output is not None:
        make_folder(Path(output))
    records = benchmark.bench(cases, names, rounds, threads, note)
    found = benchmark.rows(records)
    headers = list(found[0])
    text = table(headers, [list(row.values()) for row in found])
    if output is not None:
        folder = Path(output)
        write_table(folder / "bench.csv", list(records[0]), [list(record.values()) for record in records])
        (folder / "bench.md").write_text(_markdown(found), encoding="utf-8")
        picture(lambda: plot_bench(found, folder / "bench.png"))
    show({"rows": found, "output": output}, text)


@attention.command(
    epilog=example("attention compare hawkes --data taxi --patterns dense,local --seeds 1 --set epochs=2")
)
@click.argument("task")
@options("training", "machine")
@click.option(
    "--data", "datasets", metavar="A,B", callback=_names,
    help="Known names, files or folders.  [default: that of the task]",
)  # fmt: skip
@click.option(
    "--patterns", metavar="A,B", required=True, callback=_names,
    help="Values of the model's argument attention; the others are compared with the first.",
)  # fmt: skip
@click.option(
    "--seeds", type=click.IntRange(1), default=3, show_default=True, help="How many seeds, from --seed on."
)
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Fits at the same time."
)
@click.option("--retry-failed", is_flag=True, help="Run fits again that failed before.")
@click.option("--output", metavar="DIR", help="Folder of the results.  [default: runs/compare-TASK]")
def compare(
    task: str, datasets: list[str], patterns: list[str], settings: Sequence[str], seed: int | None,
    device: str | None, output: str | None, **given: Any,
) -> None:  # fmt: skip
    """Fit the model of TASK with one pattern after the other, and compare quality, time and memory.

    Each fit has a process of its own. Stop it at any time: the same command goes on with the fits that are left.
    """
    import seqattn
    from seqattn.plots import plot_patterns
    from seqattn.report import table, write_table
    from seqattn.reproduce.page import remarks
    from seqattn.reproduce.patterns import pattern_grid, pattern_rows
    from seqattn.reproduce.run import Plan, reproduce
    from seqattn.reproduce.summary import Summary
    from seqattn.train.config import parse_pairs

    folder = Path(output) if output else Path("runs", f"compare-{task}")
    stopped(f"What was finished is in {str(folder)!r}; the same command goes on.")
    grid = pattern_grid(task, datasets or [seqattn.task(task).DEFAULT_DATA], patterns)
    shared: dict[str, Any] = {
        "seed": seed or 0,
        "device": device or "auto",
        "settings": parse_pairs(settings, "--set"),
    }
    result = reproduce(Plan(task, folder, grid=grid, quiet=flag("quiet"), **shared, **given))
    rows = pattern_rows(result)
    text = [f"{grid.title} in {grid.metrics[0].unit}, protocol {grid.protocol}."]
    if rows:
        text.append(table(list(rows[0]), [list(row.values()) for row in rows]))
        write_table(folder / "patterns.csv", list(rows[0]), [list(row.values()) for row in rows])
        (folder / "patterns.md").write_text(_markdown(rows), encoding="utf-8")
        picture(
            lambda: plot_patterns(
                rows, f"{grid.metrics[0].title}, {grid.metrics[0].unit}", folder / "patterns.png"
            )
        )
    for title, found in remarks(Summary(result)).items():
        text.append("\n".join([f"{title}:", *(f"  {line}" for line in found)]))
    show({"compare": task, "rows": rows, "output": str(folder)}, "\n\n".join(text))
    if result.failed:
        click.get_current_context().exit(1)


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    from seqattn.report import number

    headers = list(rows[0])
    lines = [f"| {' | '.join(headers)} |", f"| {' | '.join('---' for _ in headers)} |"]
    lines += [f"| {' | '.join(number(value) for value in row.values())} |" for row in rows]
    return "\n".join([*lines, ""])
