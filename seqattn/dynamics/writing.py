"""The files of a study: records, detectors, theory and pictures in one folder."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqattn.dynamics.detect import detect_snap
from seqattn.dynamics.own import bias_report
from seqattn.dynamics.pictures import plot_bias
from seqattn.dynamics.study import ScanAndSnapStudy
from seqattn.errors import DataError, SeqattnWarning

__all__ = ["draw_study", "summary", "write_study"]


def write_study(study: ScanAndSnapStudy, folder: str | Path) -> list[Path]:
    """Write a fitted study, its records and tables to a folder, and return the files.

    Parameters
    ----------
    study
        A fitted study.
    folder
        Made if it is not there.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeqattnWarning)  # the report itself is written
        theory = study.result_.theory
    tables = {"detectors": detect_snap(study.result_), "theory": theory, **_own_tables(study)}
    for name, table in tables.items():
        table.write_csv(place / f"{name}.csv")
    (place / "assumptions.txt").write_text(f"{study.result_.assumption_report}\n", encoding="utf-8")
    files = [place / f"{name}.csv" for name in tables]
    records = [study.save(place / "study.safetensors"), study.to_parquet(place / "records.parquet")]
    return [*records, *files, place / "assumptions.txt"]


def _own_tables(study: ScanAndSnapStudy) -> dict[str, pl.DataFrame]:
    if not hasattr(study, "own_"):
        return {}
    tables = {"tokens": study.own_.grades()}
    with contextlib.suppress(DataError):  # too few tokens for a correlation: the table of tokens shows it
        tables["bias"] = bias_report(study.own_, study.parameters_.Z.mean(0).double().numpy())
    return tables


def draw_study(
    study: ScanAndSnapStudy, folder: str | Path, endings: tuple[str, ...] = ("png", "svg")
) -> list[Path]:
    """Draw a fitted study, and return the files.

    Parameters
    ----------
    study
        A fitted study.
    folder
        Must be there.
    endings
        Formats; ``"png"``, ``"svg"`` or ``"pdf"``.
    """
    files = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeqattnWarning)
        for name, draw in _pictures(study):
            axes = draw()
            for ending in endings:
                files.append(Path(folder, f"{name}.{ending}"))
                axes.figure.savefig(files[-1], dpi=120)
    return files


def _pictures(study: ScanAndSnapStudy) -> Iterator[tuple[str, Callable[[], Any]]]:
    result = study.result_
    kinds = result.classes.kinds()
    for name in ("entropy_distinct", "common_mass", "entropy", "one_minus_alpha", "speed"):
        if name in result.arrays and np.isfinite(result.array(name)).any():
            yield name, partial(study.plot_course, name)
    if "balance_residual" in result.arrays and np.isfinite(result.array("balance_residual")).any():
        yield "balance", study.plot_balance
    if "c" in result.arrays:
        yield "attention", study.plot_attention
    if "z" in result.arrays:
        yield "logits", study.plot_logits
    if "chi" in result.arrays and (kinds == "distinct").any() and (result.classes.owner == 0).any():
        yield "growth", study.plot_growth
    if len(np.unique(result.runs.lr_y / np.maximum(result.runs.lr_z, 1e-300))) > 2:
        yield "plateau", study.plot_plateau
    table = _own_tables(study).get("bias")
    if table is not None:
        yield "bias", partial(plot_bias, table)


def summary(study: ScanAndSnapStudy) -> dict[str, Any]:
    """Return what a study found: detectors and final values for each pair of rates, and the assumptions.

    Parameters
    ----------
    study
        A fitted study.
    """
    result = study.result_
    final = (
        result.final.group_by("lr_y", "lr_z", maintain_order=True)
        .mean()
        .drop("run", "seed", "klass", "top_token", strict=False)
    )
    report = result.assumption_report
    return {
        "rates": detect_snap(result).join(final, on=["lr_y", "lr_z"], how="left").to_dicts(),
        "assumptions": {
            "hold": report.holds,
            "failed": list(report.failed),
            "correlation": report.correlation,
        },
        "n_classes": len(result.classes),
        "n_tokens": result.classes.n_tokens,
        "n_steps": study.n_iter_,
        "coverage": study.own_.coverage if hasattr(study, "own_") else None,
    }
