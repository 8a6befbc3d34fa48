"""The command line: ``seqattn VERB NOUN [options]``.

Data go to standard output, progress and notes to standard error. What a task is called and can do comes from its
module, see :func:`seqattn.task`. Everything but click is imported by the command that needs it.
"""

from __future__ import annotations

import math
import os
import signal
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import click

import seqattn
from seqattn.cli.attention import attention
from seqattn.cli.console import (
    Commands,
    example,
    flag,
    is_first,
    note,
    options,
    picture,
    run_of,
    show,
    stopped,
    table_writer,
    terminate,
)
from seqattn.cli.datasets import datasets
from seqattn.cli.reproduction import reproduce
from seqattn.cli.study import study
from seqattn.cli.tuning import tune
from seqattn.errors import ParameterError, SeqattnWarning

__all__ = ["cli", "main"]

_ABOUT = f"""Tasks: {", ".join(seqattn.TASKS)}. Without --data, real data that come with the package are used.

\b
Examples:
  seqattn fit hawkes --data taxi --output runs/taxi
  seqattn evaluate runs/taxi
  seqattn tune hawkes --trials 50 --workers 2
  seqattn reproduce tpp --datasets taxi
"""


@click.group(cls=Commands, epilog=_ABOUT, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(seqattn.__version__, prog_name="seqattn")
def cli() -> None:
    """Fit, check and tune attention models for sequences and events."""


cli.add_command(attention)
cli.add_command(datasets)
cli.add_command(reproduce)
cli.add_command(study)
cli.add_command(tune)


def main() -> None:
    """Run the command line."""
    # Threads that spin while they wait slow each other down: SAHP on taxi, 2 threads, 2 busy cores, 13,000 events/s
    # against 76,000 with passive waiting. Read by torch's threads when they start.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, terminate)
    cli(prog_name="seqattn")


@cli.command(epilog=example("fit hawkes --data events.csv --read seq=user --read time=when --set epochs=20"))
@click.argument("task")
@options("data", "training", "machine")
@click.option("--model", metavar="M", help="Which model of the task; its main one by default.")
@click.option("--output", metavar="DIR", help="Folder of the run.  [default: runs/TASK-DATA]")
@click.option("--config", metavar="F.toml", help="Options from a file, such as config.toml of a run.")
@click.option("--overwrite", is_flag=True, help="Replace another run in the folder.")
def fit(
    task: str,
    settings: Sequence[str],
    read: Sequence[str],
    config: str | None,
    output: str | None,
    overwrite: bool,
    **given: Any,
) -> None:
    """Train a model of TASK and print its figures on held-out data.

    The development data choose the epoch; test data are not touched. An interrupted run goes on with the same
    command.
    """
    from seqattn.report import fit_figures, fit_text, plot_training, versions
    from seqattn.train.callbacks import Progress
    from seqattn.train.config import short_name
    from seqattn.train.folder import Afterwards, RunFolder
    from seqattn.train.history import history_of

    if task in seqattn.STUDIES:
        raise ParameterError(f"{task!r} has no predictions to fit. Run: seqattn study {task}.")
    run, module = run_of(config, task, settings, read, **given), seqattn.task(task)
    model = module.build(run.settings, run.model, seed=run.seed, device=run.device, read=run.read)
    share = module.settings(model).get("validation", 0.1)
    parts = module.splits(run.data, share=share, seed=run.seed, **run.read)
    digests = {role: X.digest() for role, X in parts.items()}
    if any(run.digests.get(role, digest) != digest for role, digest in digests.items()):
        note(f"The data differ from those that {config!r} was written for.")
    run = replace(run, settings=module.settings(model), digests=digests)
    folder = RunFolder(output or Path("runs", f"{task}-{short_name(run.data)}"))
    folder.begin(run, versions(), overwrite)
    note("; ".join(f"{role}: {module.describe(X)}" for role, X in parts.items()))
    figures = folder.figures()
    if figures is not None:
        note(f"The run in {str(folder.path)!r} is complete; these are its figures.")
    else:
        stopped(f"What was finished is in {str(folder.path)!r}; the same command goes on.")
        note("Going on from the last finished epoch." if folder.has_begun else f"Run: {folder.path}")
        told = [] if flag("quiet") else [Progress(), Afterwards(lambda: note(f"{module.AFTERWARDS} ..."))]
        folder.fit(module, model, parts["train"], parts.get("dev"), told)
        figures = fit_figures(module, model, parts.get("dev"), run)
        history = history_of(model)
        if history is not None and figures["epochs"]:
            path, title = folder.path / "training.png", f"{run.model} on {short_name(run.data)}"
            picture(lambda: plot_training(history, path, module.LOSS_UNIT, title))
        folder.finish(figures)
    show({**figures, "output": str(folder.path)}, fit_text(module, figures, folder.model))


def _opened(path: str, device: str | None) -> tuple[ModuleType, Any]:
    """Return the task of a saved model, and the model."""
    model = seqattn.load(path, device)
    kind = type(model).__name__
    return next(task for task in map(seqattn.task, seqattn.TASKS) if kind in task.MODELS.values()), model


def _data_for(
    module: ModuleType,
    model: Any,
    path: str,
    data: str | None,
    split: str,
    read: Sequence[str],
    into: Path | None = None,
) -> tuple[str, Any, str]:
    """Return a title of the data, the data, and what was named; what is left open is as in the model's own run.

    With ``into`` the events of a Parquet file are put there instead of into memory.
    """
    from seqattn.train.config import Run, parse_pairs

    config = (Path(path) if Path(path).is_dir() else Path(path).parent) / "config.toml"
    run = Run.load(config) if config.exists() else Run()
    chosen = data or run.data or module.DEFAULT_DATA
    if data is None:
        note(f"No --data: using {chosen!r}{', on which the model was trained' if run.data else ''}.")
    X = module.load_new(model, chosen, split, into, run.read, **parse_pairs(read, "--read"))
    name = f"all of {chosen}" if Path(chosen).is_file() else f"{chosen}, {split}"
    note(f"{type(model).__name__} on {name}: {module.describe(X)}")
    return name, X, chosen


@cli.command(epilog=example("predict runs/taxi --data taxi --output forecasts.parquet"))
@click.argument("model")
@options("data", "split", "machine")
@click.option(
    "--output", metavar="F", help="File that ends in .csv, .parquet or .jsonl.  [default: CSV on screen]"
)
def predict(model: str, seed: int | None, device: str | None, output: str | None, **which: Any) -> None:
    """Write the predictions of a saved MODEL, a file or the folder of a run.

    A Parquet file may be larger than memory: events are read and predictions written piece by piece. Until then they
    lie in a hidden folder beside the output, without --output in the folder for temporary files (TMPDIR).
    """
    from seqattn.data.workplace import work_folder

    write = table_writer(output)
    module, estimator = _opened(model, device)
    with work_folder(Path(tempfile.gettempdir() if output is None else Path(output).parent)) as folder:
        _, X, _ = _data_for(module, estimator, model, **which, into=folder / "events")
        frames = module.predict(estimator, X)
        if output is not None:
            rows = write(frames)
            show({"n_rows": rows, "output": output}, f"{rows:,} rows: {output}")
        elif flag("json"):
            found = [row for frame in frames for row in frame.to_dicts()]
            show({"n_rows": len(found), "predictions": found}, "")
        else:
            write(frames)


@cli.command(epilog=example("simulate runs/taxi --data taxi --paths 10 --horizon 5 --output paths.parquet"))
@click.argument("model")
@options("data", "split", "machine")
@click.option(
    "--paths",
    "n_paths",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Paths; with --data, of each sequence.",
)
@click.option("--until", metavar="T", help="End of all paths, a number or a date.")
@click.option("--horizon", type=float, metavar="H", help="Length of each path, in the time unit of the data.")
@click.option(
    "--events",
    "max_events",
    type=click.IntRange(1),
    metavar="M",
    help="Most new events of a path.  [default: 100000]",
)
@click.option(
    "--start", metavar="T0", help="Beginning of paths without --data, a number or a date.  [default: 0]"
)
@click.option(
    "--method",
    type=click.Choice(["thinning", "inverse"]),
    default="thinning",
    show_default=True,
    help="Both are exact.",
)
@click.option(
    "--output", metavar="F", help="File that ends in .csv, .parquet or .jsonl.  [default: CSV on screen]"
)
def simulate(
    model: str,
    data: str | None,
    read: Sequence[str],
    split: str,
    seed: int | None,
    device: str | None,
    until: str | None,
    start: str | None,
    output: str | None,
    **given: Any,
) -> None:
    """Draw paths from a saved MODEL, a file or the folder of a run.

    Without --data paths begin from nothing, at T0. With --data every sequence goes on from the end of its window.
    """
    write = table_writer(output)
    asked = {
        **given,
        "until": _moment(until, "--until"),
        "start": _moment(start, "--start"),
        "seed": seed or 0,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    _check_ends(asked, data)
    module, estimator = _opened(model, device)
    if not hasattr(module, "simulate"):
        raise ParameterError(f"{type(estimator).__name__} draws no paths. Give a point process.")
    X = None if data is None else _data_for(module, estimator, model, data, split, read)[1]
    began = perf_counter()
    paths = module.simulate(estimator, X, **asked)
    seconds, frame = perf_counter() - began, paths.to_frame()
    facts: dict[str, Any] = {
        "n_paths": len(paths),
        "n_events": len(frame),
        "n_truncated": int(paths.truncated.sum()),
    }
    summary = f"{len(paths):,} paths, {len(frame):,} events"
    note(f"{summary}, {seconds:.1f} s")
    if facts["n_truncated"]:
        text = f"Paths cut short at their most events: {facts['n_truncated']:,}. --events allows more."
        warnings.warn(text, SeqattnWarning, stacklevel=1)
    facts |= {"seconds": round(seconds, 3), "output": output, "model": model, "data": data, **asked}
    if output is not None:
        write([frame])
        show(facts, f"{summary}: {output}")
    elif flag("json"):
        show({**facts, "events": frame.to_dicts()}, "")
    else:
        write([frame])


def _moment(text: str | None, option: str) -> Any:
    """Return a moment that was given as text: a number or a date."""
    from seqattn.train.config import parse_value

    value = None if text is None else parse_value(text, option)
    is_time = isinstance(value, date) or (isinstance(value, int | float) and math.isfinite(value))
    if isinstance(value, bool) or not (value is None or is_time):
        raise ParameterError(
            f"{option} {text!r} is no time. Examples: 12.5, 2024-03-01, 2024-03-01T08:00:00."
        )
    return value


def _check_ends(given: Mapping[str, Any], data: str | None) -> None:
    """Refuse what contradicts itself before anything is opened."""
    if not given.keys() & {"until", "horizon", "max_events"}:
        raise ParameterError("Paths need an end: give --until, --horizon or --events.")
    if {"until", "horizon"} <= given.keys():
        raise ParameterError("--until and --horizon both say where paths end. Give one.")
    if "start" in given and data is not None:
        raise ParameterError("--start is for paths from nothing. Leave it out, or leave --data out.")


@cli.command(epilog=example("evaluate runs/taxi --data taxi --convention from_first --json"))
@click.argument("model")
@options("data", "split", "machine")
@click.option("--convention", metavar="C", help="What counts, where the task knows several conventions.")
@click.option(
    "--horizon", type=float, metavar="H", help="Score forecasts of all events within H time units too."
)
@click.option(
    "--beside", multiple=True, metavar="MODEL", help="Another recommender, fitted to the same rows."
)
@click.option("--output", metavar="DIR", help="Folder for evaluation.json, evaluation.csv and pictures.")
def evaluate(
    model: str,
    beside: Sequence[str],
    seed: int | None,
    device: str | None,
    convention: str | None,
    horizon: float | None,
    output: str | None,
    **which: Any,
) -> None:
    """Print every metric of a saved MODEL beside simple baselines."""
    from seqattn.report import evaluation_text, to_json, write_table
    from seqattn.train.folder import make_folder

    folder = None if output is None or not is_first() else make_folder(output)
    module, estimator = _opened(model, device)
    name, X, chosen = _data_for(module, estimator, model, **which)
    asked: dict[str, Any] = module.beside(chosen, which["split"])
    asked |= {} if convention is None else {"convention": convention}
    if horizon is not None:
        asked |= {"horizon": horizon, "seed": seed or 0}
    if beside:
        asked |= {"beside": {path.rstrip("/"): _opened(path, device)[1] for path in beside}}
    figures = module.evaluate(estimator, X, **asked)
    kind = type(estimator).__name__
    if folder is not None:
        (folder / "evaluation.json").write_text(to_json(figures) + "\n", encoding="utf-8")
        write_table(folder / "evaluation.csv", *module.summary_rows(figures, kind))
        picture(lambda: module.plots(estimator, X, folder))
    show(figures, evaluation_text(module, figures, kind, name))


@cli.command(epilog=example("doctor --json"))
@options()
def doctor() -> None:
    """Print versions, devices, threads and where data are looked for."""
    from seqattn.report import facts_text, machine

    facts = machine()
    show(facts, facts_text(facts))
