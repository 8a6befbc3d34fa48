"""The command ``seqattn study``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from seqattn.cli.console import example, flag, note, options, picture, show, stopped

__all__ = ["study"]

_COLUMNS = (
    "lr_y",
    "lr_z",
    "entropy_distinct",
    "common_mass",
    "loss",
    "t_half",
    "t_peak",
    "t_freeze",
    "state",
)


@click.group()
def study() -> None:
    """Run a study of how a model learns."""


@study.command(epilog=example("study dynamics --text book.txt --set max_vocab=500 --output runs/book"))
@options("data", "training", "machine")
@click.option("--text", metavar="FILE", help="A text file; its words are the tokens.")
@click.option(
    "--task",
    type=click.Choice(["hawkes", "recommend"]),
    help="What --data are: types of events, or items of users.  [default: as the file or name tells]",
)
@click.option("--split", default="train", show_default=True, help="Part of a known data set or folder.")
@click.option("--overwrite", is_flag=True, help="Replace another study in the folder.")
@click.option("--output", metavar="DIR", help="Folder of the study.  [default: runs/study-dynamics]")
def dynamics(
    data: str | None,
    read: Sequence[str],
    settings: Sequence[str],
    text: str | None,
    task: str | None,
    split: str,
    seed: int | None,
    device: str | None,
    overwrite: bool,
    output: str | None,
) -> None:
    """Train the one-layer attention model and record who gains and who loses attention.

    Without --text and --data it runs the published small setting. With them the tokens are words, items or types of
    events. An interrupted study goes on with the same command.
    """
    from seqattn.dynamics.presets import OWN, SMALL
    from seqattn.dynamics.study import ScanAndSnapStudy
    from seqattn.dynamics.writing import draw_study, summary, write_study
    from seqattn.errors import ParameterError
    from seqattn.report import table
    from seqattn.train.building import build_estimator
    from seqattn.train.config import parse_pairs

    if text and data:
        raise ParameterError("Both --text and --data were given. Give one of them.")
    if task and not data:
        raise ParameterError(
            "--task tells what --data are, but none were given. Give --data, or leave --task out."
        )
    folder = Path(output or "runs/study-dynamics")
    if (folder / "study.safetensors").exists() and not overwrite:
        raise ParameterError(
            f"{str(folder)!r} holds a study. Pass --overwrite, or name another folder with --output."
        )
    X = _data(text, data, split, task, parse_pairs(read, "--read"))
    chosen = (SMALL if X is None else OWN) | parse_pairs(settings, "--set")
    if "ratio" in chosen:
        chosen["lr_y"] = parse_pairs(settings, "--set").get("lr_y")
    given = {"random_state": seed or 0, "device": device or "auto"}
    model = build_estimator(ScanAndSnapStudy, "ScanAndSnapStudy", chosen, given)
    X = _published() if X is None else X
    note(f"Needs {model.estimate(X)}.")
    folder.mkdir(parents=True, exist_ok=True)
    stopped(f"What was done is kept in {str(folder)!r}; the same command goes on.")
    model.fit(X, checkpoint=folder / "study.part", observers=() if flag("quiet") else (_Told(),))
    files = write_study(model, folder)
    picture(lambda: files.extend(draw_study(model, folder)))
    found = summary(model)
    rows = [[row.get(name) for name in _COLUMNS] for row in found["rates"]]
    parts = [table(list(_COLUMNS), rows), "The paper's assumptions:\n" + str(model.result_.assumption_report)]
    if hasattr(model, "own_"):
        parts.insert(0, str(model.own_))
    show(found | {"output": str(folder)}, "\n\n".join([*parts, f"Files: {folder}"]))


def _published() -> Any:
    from seqattn.dynamics.generators import syn_small

    note("No --text and no --data: the published small setting.")
    return syn_small()


def _data(text: str | None, data: str | None, split: str, task: str | None, read: dict[str, Any]) -> Any:
    """Read own sequences; None for the published setting."""
    if text:
        from seqattn.dynamics.text import lines_of

        if read:
            from seqattn.errors import ParameterError

            raise ParameterError("--read names options of --data; a text has none. Leave it out.")
        return list(lines_of(text))
    if data:
        from seqattn.dynamics.task import load_own

        return load_own(data, split, task, **read)
    return None


class _Told:
    """Tells how far a study is, at each tenth."""

    def __init__(self) -> None:
        self.last: tuple[int, int] = (-1, 0)

    def __call__(self, progress: Any) -> None:
        tenth = (progress.runs.start, int(10 * progress.time / progress.n_steps))
        if tenth != self.last:
            self.last = tenth
            runs = f"runs {progress.runs.start + 1} to {progress.runs.stop}"
            note(f"{runs}: {progress.time:g} of {progress.n_steps:g} steps")
