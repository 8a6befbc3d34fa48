"""The command that makes published tables again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from seqattn.cli.console import example, flag, options, show, stopped
from seqattn.errors import ParameterError

__all__ = ["reproduce"]


def _names(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[str]:
    return [name.strip() for name in (value or "").split(",") if name.strip()]


@click.command(
    epilog=example("reproduce tpp --datasets taxi --models SAHP,EmpiricalMarkov --seeds 1 --workers 2")
)
@click.argument("table")
@options("training", "machine")
@click.option("--datasets", metavar="A,B", callback=_names, help="Data sets.  [default: all of the table]")
@click.option("--models", metavar="A,B", callback=_names, help="Models.  [default: all of the table]")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    help="How many seeds, from --seed on.  [default: 3; figure 6 of dynamics 10]",
)
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Cells at the same time."
)
@click.option(
    "--backend", metavar="B", default="local", show_default=True, help="What hands out cells: local, dask."
)
@click.option(
    "--scheduler", metavar="ADDRESS", help="Of a Dask scheduler that runs already, such as tcp://host:8786."
)
@click.option("--retry-failed", is_flag=True, help="Run cells again that failed before.")
@click.option("--config", metavar="F.toml", help="Another grid: a file, or a name such as ablation.")
@click.option("--output", metavar="DIR", help="Folder of the results.  [default: runs/reproduce-TABLE]")
def reproduce(
    table: str,
    settings: Sequence[str],
    seed: int | None,
    device: str | None,
    config: str | None,
    output: str | None,
    seeds: int | None,
    **given: Any,
) -> None:
    """Run the grid of TABLE, such as tpp, and print its figures beside published ones.

    The table dynamics makes the figures 3 to 10 of the paper on training dynamics; --datasets then names figures, such
    as figure4.

    Each cell, a data set with a model and a seed, has a process of its own. Stop it at any time: the same command
    goes on with the cells that are left. What failed is shown, and runs again only with --retry-failed.
    """
    from seqattn.report import table as as_text
    from seqattn.reproduce.page import introduction, lines, remarks, write
    from seqattn.reproduce.run import Plan
    from seqattn.reproduce.run import reproduce as work_off
    from seqattn.reproduce.summary import Summary
    from seqattn.train.config import parse_pairs

    folder = Path(output) if output else Path("runs", f"reproduce-{table}")
    stopped(f"What was finished is in {str(folder)!r}; the same command goes on.")
    if table == "dynamics":
        _figures(folder, settings, seed or 0, config, seeds=seeds, **given)
        return
    plan = Plan(
        noun=table,
        output=folder,
        seed=seed or 0,
        device=device or "auto",
        settings=parse_pairs(settings, "--set"),
        config=config or "",
        quiet=flag("quiet"),
        seeds=seeds or 3,
        **given,
    )
    result = work_off(plan)
    summary = Summary(result)
    files = write(summary, folder)
    parts = [" ".join(introduction(summary)), as_text(*lines(summary))]
    parts += [
        "\n".join([f"{title}:", *(f"  {line}" for line in found)])
        for title, found in remarks(summary).items()
    ]
    show(summary.to_json(), "\n\n".join([*parts, "\n".join(f"Table: {path}" for path in files)]))
    if result.failed:
        click.get_current_context().exit(1)


def _figures(
    folder: Path,
    settings: Sequence[str],
    seed: int,
    config: str | None,
    datasets: Sequence[str],
    models: Sequence[str],
    **given: Any,
) -> None:
    """Make the figures of the paper on training dynamics."""
    from seqattn.report import table as as_text
    from seqattn.reproduce.figure_pages import figure_lines, figure_remarks, write_figures
    from seqattn.reproduce.figures import FigurePlan, reproduce_figures
    from seqattn.train.config import parse_pairs

    for option, value in (("--models", models), ("--config", config)):
        if value:
            raise ParameterError(
                f"{option} means nothing for dynamics, which has figures. Choose some with --datasets."
            )
    plan = FigurePlan(
        output=folder,
        figures=datasets,
        seed=seed,
        settings=parse_pairs(settings, "--set"),
        quiet=flag("quiet"),
        **given,
    )
    found = reproduce_figures(plan)
    files = write_figures(found, folder)
    parts = [as_text(*figure_lines(found))]
    parts += [
        "\n".join([f"{title}:", *(f"  {line}" for line in lines)])
        for title, lines in figure_remarks(found).items()
    ]
    values = {
        "table": found.rows(),
        "failed": found.failed,
        "skipped": found.skipped,
        "remarks": figure_remarks(found),
        "output": str(folder),
    }
    show(values, "\n\n".join([*parts, "\n".join(f"File: {path}" for path in files)]))
    if found.failed:
        click.get_current_context().exit(1)
