"""The command line: ``seqattn VERB NOUN [options]``.

Data go to standard output, progress and notes to standard error. What a task is called and can do comes from its
module, see :func:`seqattn.task`. Everything but click is imported by the command that needs it.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

import seqattn
from seqattn.errors import DataError, MissingDependencyError, ParameterError, SeqattnError, SeqattnWarning

if TYPE_CHECKING:
    from seqattn.train.config import Run
    from seqattn.train.search import Outcome, Plan

__all__ = ["cli", "main"]

_ABOUT = f"""Tasks: {", ".join(seqattn.TASKS)}. Without --data, real data that come with the package are used.

\b
Examples:
  seqattn fit hawkes --data taxi --output runs/taxi
  seqattn evaluate runs/taxi
  seqattn tune hawkes --trials 50 --workers 2
"""

_WRITERS = {".csv": "write_csv", ".parquet": "write_parquet", ".jsonl": "write_ndjson"}


def _example(line: str) -> str:
    return f"Example:\n\n\b\n  seqattn {line}"


class _Commands(click.Group):
    """Turns what goes wrong in a command into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.simplefilter("always", SeqattnWarning)
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except BrokenPipeError:
                # Whoever read the output has enough of it; Python must not complain once more when it closes.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                ctx.exit(0)
            except KeyboardInterrupt:
                click.echo(f"\nStopped. {ctx.meta.get('stopped', '')}".rstrip(), err=True)
                ctx.exit(130)
            except Exception as error:  # noqa: BLE001 - a person gets a sentence, and with -v the traceback
                if ctx.meta.get("verbose"):
                    traceback.print_exc(file=sys.stderr)
                click.echo(f"Error: {_sentence(error)}", err=True)
                ctx.exit(getattr(error, "exit_code", 1))


def _sentence(error: Exception) -> str:
    if isinstance(error, SeqattnError):
        is_column = isinstance(error, DataError) and str(error).startswith("Column ")
        return f"{error}{' Name yours with --read, for example --read time=when.' if is_column else ''}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename!r}." if error.filename else f"{error.strerror}."
    if isinstance(error, MemoryError):
        return "The memory is not enough. Try a smaller batch_size, or cut long sequences."
    return f"{type(error).__name__}: {error}\nThis was not foreseen; -v shows where it happened."


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    if issubclass(category, SeqattnWarning) or _flag("verbose"):
        click.echo(f"Warning: {message}", err=True)


def _flag(name: str) -> bool:
    ctx = click.get_current_context(silent=True)
    return ctx is not None and bool(ctx.meta.get(name))


def _note(text: str) -> None:
    if not _flag("quiet"):
        click.echo(text, err=True)


def _show(values: Mapping[str, Any], text: str) -> None:
    """Print a result: as text, or as one JSON object if that was asked for."""
    from seqattn.report import to_json

    click.echo(to_json(values) if _flag("json") else text)


def _stopped(text: str) -> None:
    """Set what is said when the command is interrupted."""
    click.get_current_context().meta["stopped"] = text


def _picture(draw: Callable[[], Any]) -> None:
    """Draw if matplotlib is installed, and say so if it is not."""
    try:
        draw()
    except MissingDependencyError as error:
        _note(str(error))


def _remember(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    ctx.meta[str(parameter.name)] = value


def _switch(*names: str, text: str) -> Callable[..., Any]:
    return click.option(*names, is_flag=True, expose_value=False, callback=_remember, help=text)


def _many(*names: str, text: str) -> Callable[..., Any]:
    return click.option(*names, multiple=True, metavar="KEY=VALUE", help=text)


_GROUPS: dict[str, list[Callable[..., Any]]] = {
    "every": [
        _switch("--json", text="Print one JSON object instead of text."),
        _switch("--quiet", text="No progress and no notes."),
        _switch("-v", "--verbose", text="Tracebacks and all warnings."),
    ],
    "data": [
        click.option("--data", metavar="D", help="Known name, file, or folder with train, dev, test files."),
        _many("--read", text="How files are read, such as time=when, window=max or sort=true."),
    ],
    "split": [
        click.option("--split", default="test", show_default=True, help="Part of a known data set or folder.")
    ],
    "training": [
        _many("--set", "settings", text="Setting of the model, such as epochs=10."),
        click.option("--seed", type=click.IntRange(0), help="Seed of every random draw.  [default: 0]"),
        click.option("--device", help="auto, cpu, cuda or cuda:1.  [default: auto]"),
    ],
}


def _options(*groups: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add groups of options to a command, and those that all commands have."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for name in ("every", *reversed(groups)):
            for option in reversed(_GROUPS[name]):
                command = option(command)
        return command

    return add


@click.group(cls=_Commands, epilog=_ABOUT, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(seqattn.__version__, prog_name="seqattn")
def cli() -> None:
    """Fit, check and tune attention models for sequences and events."""


def main() -> None:
    """Run the command line."""
    # Threads that spin while they wait slow each other down: SAHP on taxi, 2 threads, 2 busy cores, 13,000 events/s
    # against 76,000 with passive waiting. Read by torch's threads when they start.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cli(prog_name="seqattn")


def _run(config: str | None, task: str, settings: Sequence[str], read: Sequence[str], **given: Any) -> Run:
    """Return what is run: the options, over the configuration file, over the task's defaults."""
    from seqattn.train.config import Run

    module = seqattn.task(task)
    run = Run.of_options(config, task, settings, read, **given)
    if not run.data:
        _note(f"No --data: using {module.DEFAULT_DATA!r}, which comes with the package.")
    return replace(run, data=run.data or module.DEFAULT_DATA, model=run.model or next(iter(module.MODELS)))


@cli.command(epilog=_example("fit hawkes --data events.csv --read seq=user --read time=when --set epochs=20"))
@click.argument("task")
@_options("data", "training")
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

    run, module = _run(config, task, settings, read, **given), seqattn.task(task)
    model = module.build(run.settings, run.model, seed=run.seed, device=run.device, read=run.read)
    share = module.settings(model).get("validation", 0.1)
    parts = module.splits(run.data, share=share, seed=run.seed, **run.read)
    digests = {role: X.digest() for role, X in parts.items()}
    if any(run.digests.get(role, digest) != digest for role, digest in digests.items()):
        _note(f"The data differ from those that {config!r} was written for.")
    run = replace(run, settings=module.settings(model), digests=digests)
    folder = RunFolder(output or Path("runs", f"{task}-{short_name(run.data)}"))
    folder.begin(run, versions(), overwrite)
    _note("; ".join(f"{role}: {module.describe(X)}" for role, X in parts.items()))
    figures = folder.figures()
    if figures is not None:
        _note(f"The run in {str(folder.path)!r} is complete; these are its figures.")
    else:
        _stopped(f"What was finished is in {str(folder.path)!r}; the same command goes on.")
        _note("Going on from the last finished epoch." if folder.has_begun else f"Run: {folder.path}")
        told = [] if _flag("quiet") else [Progress(), Afterwards(lambda: _note(f"{module.AFTERWARDS} ..."))]
        folder.fit(module, model, parts["train"], parts.get("dev"), told)
        figures = fit_figures(module, model, parts.get("dev"), run)
        if figures["epochs"]:
            picture, title = folder.path / "training.png", f"{run.model} on {short_name(run.data)}"
            _picture(lambda: plot_training(model.history_, picture, module.LOSS_UNIT, title))
        folder.finish(figures)
    _show({**figures, "output": str(folder.path)}, fit_text(module, figures, folder.model))


def _opened(path: str, data: str | None, split: str, read: Sequence[str]) -> tuple[ModuleType, Any, str, Any]:
    """Return task, model, a name for the data, and the data; what is left open is as in the model's own run."""
    from seqattn.train.config import Run, parse_pairs

    model = seqattn.load(path)
    kind = type(model).__name__
    module = next(task for task in map(seqattn.task, seqattn.TASKS) if kind in task.MODELS.values())
    config = (Path(path) if Path(path).is_dir() else Path(path).parent) / "config.toml"
    run = Run.load(config) if config.exists() else Run()
    chosen = data or run.data or module.DEFAULT_DATA
    if data is None:
        _note(f"No --data: using {chosen!r}{', on which the model was trained' if run.data else ''}.")
    X = module.load_new(model, chosen, split, **{**run.read, **parse_pairs(read, "--read")})
    name = f"all of {chosen}" if Path(chosen).is_file() else f"{chosen}, {split}"
    _note(f"{kind} on {name}: {module.describe(X)}")
    return module, model, name, X


@cli.command(epilog=_example("predict runs/taxi --data taxi --output forecasts.parquet"))
@click.argument("model")
@_options("data", "split")
@click.option(
    "--output", metavar="F", help="File that ends in .csv, .parquet or .jsonl.  [default: CSV on screen]"
)
def predict(model: str, data: str | None, read: Sequence[str], split: str, output: str | None) -> None:
    """Write the predictions of a saved MODEL, a file or the folder of a run."""
    from seqattn.train.folder import make_folder

    ending = Path(output or "x.csv").suffix.lower()
    if ending not in _WRITERS:
        raise ParameterError(f"--output {output!r} ends in {ending!r}. Use one of {', '.join(_WRITERS)}.")
    if output is not None:
        make_folder(Path(output).parent)
    module, estimator, _, X = _opened(model, data, split, read)
    frame = module.predict(estimator, X)
    if output is not None:
        getattr(frame, _WRITERS[ending])(output)
        _show({"n_rows": len(frame), "output": output}, f"{len(frame):,} rows: {output}")
    elif _flag("json"):
        _show({"n_rows": len(frame), "predictions": frame.to_dicts()}, "")
    else:
        click.echo(frame.write_csv(), nl=False)


@cli.command(epilog=_example("evaluate runs/taxi --data taxi --convention from_first --json"))
@click.argument("model")
@_options("data", "split")
@click.option("--convention", metavar="C", help="What counts, where the task knows several conventions.")
@click.option("--output", metavar="DIR", help="Folder for evaluation.json, evaluation.csv and pictures.")
def evaluate(
    model: str,
    data: str | None,
    read: Sequence[str],
    split: str,
    convention: str | None,
    output: str | None,
) -> None:
    """Print every metric of a saved MODEL beside simple baselines."""
    from seqattn.report import evaluation_text, to_json, write_table
    from seqattn.train.folder import make_folder

    folder = None if output is None else make_folder(output)
    module, estimator, name, X = _opened(model, data, split, read)
    options = {} if convention is None else {"convention": convention}
    figures = module.evaluate(estimator, X, **options)
    kind = type(estimator).__name__
    if folder is not None:
        (folder / "evaluation.json").write_text(to_json(figures) + "\n", encoding="utf-8")
        write_table(folder / "evaluation.csv", *module.summary_rows(figures, kind))
        _picture(lambda: module.plots(estimator, X, folder))
    _show(figures, evaluation_text(module, figures, kind, name))


@cli.command(epilog=_example("tune hawkes --trials 50 --workers 2 --output runs/tuned"))
@click.argument("task")
@_options("data", "training")
@click.option("--trials", type=click.IntRange(1), default=50, show_default=True, help="Total of the study.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@click.option("--timeout", type=click.FloatRange(0), metavar="S", help="Seconds until the last trial starts.")
@click.option("--storage", metavar="URL|FILE", help="Database or journal.  [default: DIR/study.journal]")
@click.option("--study", metavar="NAME", help="Name of the study.  [default: TASK-DATA]")
@click.option("--config", metavar="F.toml", help="Search space in place of tuning/TASK.toml.")
@click.option("--output", metavar="DIR", help="Folder of the study.  [default: runs/tune-TASK-DATA]")
def tune(
    task: str,
    settings: Sequence[str],
    read: Sequence[str],
    workers: int,
    timeout: float | None,
    config: str | None,
    output: str | None,
    **given: Any,
) -> None:
    """Search settings of TASK, refit the best, and test only that one.

    Stop it at any time: finished trials are kept, and the same command goes on. Settings given with --set are fixed
    instead of searched.
    """
    from seqattn.report import study_text
    from seqattn.train.config import short_name
    from seqattn.train.search import Plan, Space
    from seqattn.tune import tune as search

    of_study = {key: given.pop(key) for key in ("trials", "storage", "study")}
    run, module = _run(None, task, settings, read, **given), seqattn.task(task)
    folder = Path(output) if output else Path("runs", f"tune-{task}-{short_name(run.data)}")
    _stopped(f"Finished trials are kept with the study of {str(folder)!r}; the same command goes on.")
    plan = Plan(
        task=task,
        output=folder,
        data=run.data,
        read=run.read,
        timeout=float("inf") if timeout is None else timeout,
        seed=run.seed,
        device=run.device,
        settings=run.settings,
        space=Space.load(config) if config else Space(),
        quiet=_flag("quiet"),
        **{key: value for key, value in of_study.items() if value is not None},
    )
    outcome = search(plan, workers)
    _write_study(module, outcome, plan)
    keys = (
        "study",
        "n_trials",
        "n_complete",
        "n_pruned",
        "n_failed",
        "best_value",
        "best_params",
        "best_trial",
    )
    values = {key: getattr(outcome, key) for key in (*keys, "dev", "test", "output")}
    _show(values, study_text(module, outcome))


def _write_study(module: ModuleType, outcome: Outcome, plan: Plan) -> None:
    from seqattn.report import plot_importance, plot_training, plot_trials, write_table

    folder = outcome.output
    names = list(dict.fromkeys(name for trial in outcome.trials for name in trial))
    write_table(
        folder / "trials.csv", names, [[trial.get(name) for name in names] for trial in outcome.trials]
    )
    _picture(lambda: plot_trials(outcome.trials, folder / "history.png", module.OBJECTIVE))
    if outcome.importance:
        _picture(lambda: plot_importance(outcome.importance, folder / "importance.png"))
    else:
        _note("No importance.png: it needs at least two complete trials with different values.")
    best, pictures = seqattn.load(folder / "best"), folder / "best"
    if hasattr(best, "history_"):
        title = f"{type(best).__name__}, best of {outcome.n_trials} trials"
        _picture(lambda: plot_training(best.history_, pictures / "training.png", module.LOSS_UNIT, title))
    _picture(lambda: module.plots(best, module.load_split(plan.data, "dev", **plan.read), pictures))


@cli.group(epilog=_example("datasets list"))
def datasets() -> None:
    """List, show and download known data sets."""


@datasets.command("list", epilog=_example("datasets list --json"))
@_options()
def list_datasets() -> None:
    """Print what is known and where it is."""
    from seqattn.data.catalog import entries
    from seqattn.report import dataset_facts, table

    facts = [dataset_facts(entry.name) for entry in entries()]
    rows = [
        [
            fact["name"],
            fact["types"],
            *(fact["sizes"].get(split, {}).get("sequences") for split in ("train", "dev", "test")),
            fact["found"] or ("download" if fact["downloadable"] else "not here"),
            fact["title"],
        ]
        for fact in facts
    ]
    _show({"datasets": facts}, table(["name", "types", "train", "dev", "test", "where", "what"], rows))


@datasets.command("show", epilog=_example("datasets show taxi"))
@click.argument("name")
@_options()
def show_dataset(name: str) -> None:
    """Print what is known of NAME: sizes, licence, source, place."""
    from seqattn.report import dataset_facts, facts_text

    facts = dataset_facts(name)
    _show(facts, facts_text(facts))


@datasets.command("get", epilog=_example("datasets get taobao"))
@click.argument("name")
@_options()
@click.option("--again", is_flag=True, help="Download even if it is there.")
def get_dataset(name: str, again: bool) -> None:
    """Download NAME into the cache folder and check it."""
    from seqattn.data.download import fetch
    from seqattn.report import dataset_facts

    facts = dataset_facts(name)
    if facts["found"] and not again:
        _note(f"{facts['name']} is there already ({facts['found']}).")
    else:
        _stopped("What was downloaded is kept; the same command goes on.")
        fetch(facts["name"], family=facts["family"], progress=_download_progress(), again=again)
        facts = dataset_facts(name)
    _show(facts, str(facts["path"]))


def _download_progress() -> Callable[[str, int, int | None], None]:
    """Return what tells of a download: each tenth of a file."""
    told: dict[str, int] = {}

    def tell(name: str, done: int, total: int | None) -> None:
        step = 10 * done // (total or 100_000_000)
        if told.get(name) != step:
            told[name] = step
            _note(f"{name}: {done:,}{f' of {total:,}' if total else ''} bytes")

    return tell


@cli.command(epilog=_example("doctor --json"))
@_options()
def doctor() -> None:
    """Print versions, devices, threads and where data are looked for."""
    from seqattn.report import facts_text, machine

    facts = machine()
    _show(facts, facts_text(facts))
