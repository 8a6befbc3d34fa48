"""The command ``seqattn tune``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

import seqattn
from seqattn.cli.console import example, flag, note, options, picture, run_of, show, stopped
from seqattn.errors import StudyError

if TYPE_CHECKING:
    from seqattn.train.search import Outcome, Plan

__all__ = ["tune"]

_KEYS = (
    *("study", "n_trials", "n_complete", "n_pruned", "n_failed", "n_infeasible"),
    *("best_value", "best_params", "best_trial", "front", "dev", "test", "output"),
)
_COSTS = "seconds_per_1000 (predictions, on the development data) or parameters (number of weights)"


@click.command(epilog=example("tune hawkes --trials 50 --workers 2 --output runs/tuned"))
@click.argument("task")
@options("data", "training", "machine")
@click.option("--trials", type=click.IntRange(1), default=50, show_default=True, help="Total of the study.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@click.option("--timeout", type=click.FloatRange(0), metavar="S", help="Seconds until the last trial starts.")
@click.option(
    "--storage",
    metavar="URL|FILE",
    help="postgresql://USER@HOST/DATABASE serves several machines; a password is better kept in PGPASSWORD or "
    "~/.pgpass.  [default: DIR/study.journal]",
)
@click.option("--study", metavar="NAME", help="Name of the study.  [default: TASK-DATA]")
@click.option("--config", metavar="F.toml", help="Search space in place of tuning/TASK.toml.")
@click.option("--limit", "limits", multiple=True, metavar="COST=MOST", help=f"COST is {_COSTS}.")
@click.option("--second", metavar="COST", help="Minimise this cost beside the objective; nothing is pruned.")
@click.option("--choose", type=click.IntRange(0), metavar="N", help="Refit trial N instead of the best.")
@click.option(
    "--warm-start", multiple=True, metavar="PATH", help="Folder of a study, or its best.toml, to begin with."
)
@click.option("--output", metavar="DIR", help="Folder of the study.  [default: runs/tune-TASK-DATA]")
def tune(
    task: str,
    settings: Sequence[str],
    read: Sequence[str],
    workers: int,
    timeout: float | None,
    config: str | None,
    limits: Sequence[str],
    output: str | None,
    **given: Any,
) -> None:
    """Search settings of TASK, refit the best, and test only that one.

    Stop it at any time: finished trials are kept, and the same command goes on. Settings given with --set are fixed
    instead of searched.
    """
    from seqattn.report import study_text
    from seqattn.train.config import parse_pairs, short_name
    from seqattn.train.search import Plan
    from seqattn.train.space import Space
    from seqattn.tune import tune as search

    of_study = {
        key: given.pop(key) for key in ("trials", "storage", "study", "second", "choose", "warm_start")
    }
    run, module = run_of(None, task, settings, read, **given), seqattn.task(task)
    folder = Path(output) if output else Path("runs", f"tune-{task}-{short_name(run.data)}")
    stopped(f"Finished trials are kept with the study of {str(folder)!r}; the same command goes on.")
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
        limits=parse_pairs(limits, "--limit"),
        quiet=flag("quiet"),
        **{key: value for key, value in of_study.items() if value is not None},
    )
    try:
        outcome = search(plan, workers)
    except StudyError as error:
        _write_trials(module, error.outcome)
        raise
    _write_trials(module, outcome)
    _draw_best(module, outcome, plan)
    show({key: getattr(outcome, key) for key in _KEYS}, study_text(module, outcome))


def _write_trials(module: ModuleType, outcome: Outcome) -> None:
    """Write the table of trials and its pictures; there may be no best one."""
    from seqattn.plots import plot_front, plot_importance, plot_parallel, plot_trials
    from seqattn.report import write_table

    folder, trials, objective = outcome.output, outcome.trials, module.OBJECTIVE
    if not trials:
        return
    names = list(dict.fromkeys(name for trial in trials for name in trial))
    write_table(folder / "trials.csv", names, [[trial.get(name) for name in names] for trial in trials])
    picture(lambda: plot_trials(trials, folder / "history.png", objective))
    if outcome.n_complete:
        picture(lambda: plot_parallel(outcome, folder / "parallel.png", objective))
    if outcome.front:
        picture(lambda: plot_front(outcome, folder / "front.png", objective))
    if outcome.importance:
        picture(lambda: plot_importance(outcome.importance, folder / "importance.png"))
    else:
        note("No importance.png: it needs at least two complete trials with different values.")


def _draw_best(module: ModuleType, outcome: Outcome, plan: Plan) -> None:
    from seqattn.report import plot_training
    from seqattn.train.history import history_of

    best, pictures = seqattn.load(outcome.output / "best"), outcome.output / "best"
    history = history_of(best)
    if history is not None:
        title = f"{type(best).__name__}, best of {outcome.n_trials} trials"
        picture(lambda: plot_training(history, pictures / "training.png", module.LOSS_UNIT, title))
    parts = module.splits(plan.data, seed=plan.seed, **plan.read)
    picture(lambda: module.plots(best, parts.get("dev", parts["train"]), pictures))
