"""What the figures of the paper show, computed anew: values for a table, and curves to draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import spearmanr

from seqattn.dynamics import theory
from seqattn.dynamics.classes import SequenceClasses
from seqattn.dynamics.generators import syn_medium, syn_small
from seqattn.dynamics.language import TextPlan, TextRecord, follow_free, follow_layers, memory
from seqattn.dynamics.result import StudyResult
from seqattn.dynamics.study import ScanAndSnapStudy, sweep
from seqattn.dynamics.text import Corpus, even_starts, read_corpus

__all__ = ["CURVES", "FIGURES", "VALUES", "Found", "compute", "corpus_of", "memory_of", "parts_of", "plan_of"]

VALUES = {"row": pl.String, "metric": pl.String, "seed": pl.Int64, "value": pl.Float64}
CURVES = {"panel": pl.String, "series": pl.String, "seed": pl.Int64, "x": pl.Float64, "y": pl.Float64}

# Points of a theoretical curve.
_POINTS = 141
# The part of figure 10 without layers.
_FREE = "free logits"
# Share of the steps after which attention to words is said to stay.
_SETTLED = 0.4
# Steps of the published heat maps, and the last one.
_SHOWN = (0, 2, 4, 6, 8, 10)


@dataclass(frozen=True)
class Found:
    """What a part of a figure came to.

    Attributes
    ----------
    values
        Rows of the table with the columns ``row``, ``metric``, ``seed`` and ``value``.
    curves
        Points with the columns ``panel``, ``series``, ``seed``, ``x`` and ``y``.
    """

    values: pl.DataFrame
    curves: pl.DataFrame


class _Sheet:
    """Takes values and curves up."""

    def __init__(self) -> None:
        self._values: list[tuple[str, str, int, float]] = []
        self._curves: list[pl.DataFrame] = []

    def value(self, row: str, metric: str, value: float, seed: int = 0) -> None:
        self._values.append((row, metric, seed, float(value)))

    def curve(self, panel: str, series: str, x: Any, y: Any, seed: int = 0) -> None:
        columns = {"x": np.asarray(x, dtype=np.float64), "y": np.asarray(y, dtype=np.float64)}
        fixed = {"panel": panel, "series": series, "seed": seed}
        frame = pl.DataFrame(columns).with_columns(**{name: pl.lit(given) for name, given in fixed.items()})
        self._curves.append(frame.select(pl.col(name).cast(kind) for name, kind in CURVES.items()))

    def found(self) -> Found:
        values = pl.DataFrame(self._values, schema=VALUES, orient="row")
        return Found(values, pl.concat(self._curves) if self._curves else pl.DataFrame(schema=CURVES))


def parts_of(figure: str, settings: Mapping[str, Any]) -> list[str]:
    """Return the parts of a figure that are run one by one.

    Parameters
    ----------
    figure
        A name of ``FIGURES``.
    settings
        Its settings.

    Examples
    --------
    >>> parts_of("figure6", {"queries": [1, 3]}), parts_of("figure3", {})
    (['1 query', '3 queries'], ['all'])
    """
    if figure == "figure6":
        return [_queries(count) for count in settings["queries"]]
    if figure == "figure7":
        return [_layers(count) for count in settings["n_layers"]]
    if figure == "figure10":
        return [
            *(f"rate {rate:g}" for rate in settings["rates"]),
            *([_FREE] if settings["free_rates"] else []),
        ]
    return ["all"]


def compute(figure: str, part: str, settings: Mapping[str, Any], seeds: Sequence[int]) -> Found:
    """Compute a part of a figure.

    Parameters
    ----------
    figure
        A name of ``FIGURES``.
    part
        One of :func:`parts_of`.
    settings
        What decides on the figure, see ``datasets/dynamics/figures.toml``.
    seeds
        Seeds that follow each other; theory has none and takes the first.
    """
    sheet = _Sheet()
    FIGURES[figure](sheet, part, settings, seeds)
    return sheet.found()


def _queries(count: int) -> str:
    return f"{count} {'query' if count == 1 else 'queries'}"


def _layers(count: int) -> str:
    return f"{count} {'layer' if count == 1 else 'layers'}"


def _growth(times: NDArray, settings: Mapping[str, Any], lr_y: float, lr_z: float) -> NDArray[np.float64]:
    sizes = {name: settings[name] for name in ("n_outputs", "n_classes", "C0")}
    return theory.B(times, lr_y=lr_y, lr_z=lr_z, units="paper", **sizes)


def _snap(settings: Mapping[str, Any], lr_y: float) -> float:
    return theory.snap_times(lr_y=lr_y, n_outputs=settings["n_outputs"], n_classes=settings["n_classes"]).last


def _odds(sheet: _Sheet, part: str, settings: Mapping[str, Any], seeds: Sequence[int]) -> None:
    times = np.linspace(0, settings["n_steps"], _POINTS)
    for lr_y in settings["lr_y"]:
        odds = np.exp(2 * _growth(times, settings, lr_y, settings["lr_z"]))
        sheet.curve("", f"rate {lr_y:g}", times, odds)
        sheet.curve("snap", f"rate {lr_y:g}", [_snap(settings, lr_y)], [np.nan])
        sheet.value(f"rate {lr_y:g}", "chi", odds[-1])


def _decoder(sheet: _Sheet, part: str, settings: Mapping[str, Any], seeds: Sequence[int]) -> None:
    V, views = settings["n_outputs"], np.arange(settings["n_steps"] + 1)
    for lr_y in settings["lr_y"]:
        flow = theory.h(views, lr_y=lr_y, n_outputs=V)
        steps = theory.h_steps(int(views[-1]), lr_y=lr_y, n_outputs=V)
        sheet.curve("flow", f"rate {lr_y:g}", views, V * flow)
        sheet.curve("steps", f"rate {lr_y:g}", views, V * steps)
        sheet.value(f"rate {lr_y:g}", "share_of_bound", (steps - flow).max() / (2 * lr_y / V))


def _exponent(sheet: _Sheet, part: str, settings: Mapping[str, Any], seeds: Sequence[int]) -> None:
    times = np.linspace(0, settings["n_steps"], _POINTS)
    for lr_y in settings["lr_y"]:
        lr_z, t0 = lr_y / settings["ratio"], _snap(settings, lr_y)
        row = f"rates {lr_y:g} / {lr_z:g}"
        sheet.curve("", row, times, _growth(times, settings, lr_y, lr_z))
        at_snap = float(_growth(np.array(t0), settings, lr_y, lr_z))
        sheet.curve("snap", row, [t0], [at_snap])
        sheet.value(row, "B_at_t0", at_snap)


def _small(settings: Mapping[str, Any], seeds: Sequence[int], **more: Any) -> ScanAndSnapStudy:
    n_steps = settings["n_steps"]
    shown = [step for step in _SHOWN if step <= n_steps]
    return ScanAndSnapStudy(
        n_steps=n_steps,
        batch_size=settings["batch_size"],
        seq_len=settings["seq_len"],
        record=("loss", "entropy_distinct", "common_mass", "c"),
        record_at=shown,
        n_snapshots=len(shown) + 1,
        n_seeds=len(seeds),
        random_state=seeds[0],
        **more,
    )


def _descent(sheet: _Sheet, part: str, settings: Mapping[str, Any], seeds: Sequence[int]) -> None:
    rates = {"lr_y": settings["lr_y"], "lr_z": settings["lr_z"], "momentum": settings["momentum"]}
    result = _small(settings, seeds, **rates).fit(syn_small()).result_
    _tell_small(
        sheet,
        result,
        [f"rates {y:g} / {z:g}" for y, z in zip(result.runs.lr_y, result.runs.lr_z, strict=True)],
    )


def _adam(sheet: _Sheet, part: str, settings: Mapping[str, Any], seeds: Sequence[int]) -> None:
    rates = {"lr_y": settings["rates"], "lr_z": settings["rates"], "optimizer": "adam"}
    result = _small(settings, seeds, **rates).fit(syn_small()).result_
    _tell_small(sheet, result, [f"Adam, rate {y:g}" for y in result.runs.lr_y])


def _tell_small(sheet: _Sheet, result: StudyResult, rows: Sequence[str]) -> None:
    """Tell of the ends of all runs, and of the attention of the first class in the first seed."""
    classes, c = result.classes, result.array("c")
    own = [np.flatnonzero(classes.owner == k) for k in range(len(classes))]
    for run, (row, seed) in enumerate(zip(rows, result.runs.seed.tolist(), strict=True)):
        for metric in ("entropy_distinct", "common_mass"):
            sheet.value(row, metric, result.array(metric)[run, -1].mean(), seed)
        orders = [_order(c[run, -1, k, tokens], classes, k, tokens) for k, tokens in enumerate(own)]
        sheet.value(row, "order", float(np.mean(orders)), seed)
        if seed == result.runs.seed[0]:
            common = np.flatnonzero((classes.owner != 0) & (classes.P[0] > 0))
            for place, token in enumerate([*common, *own[0]]):
                kind = "common" if place < len(common) else "distinct"
                sheet.curve(row, f"{kind} {place:02d}", result.snapshot_times, c[run, :, 0, token], seed)


def _order(c: NDArray, classes: SequenceClasses, k: int, tokens: NDArray) -> float:
    return float(spearmanr(c, classes.P[k, tokens]).statistic)


def _medium(sheet: _Sheet, part: str, settings: Mapping[str, Any], seeds: Sequence[int]) -> None:
    study = ScanAndSnapStudy(
        n_steps=settings["n_steps"],
        batch_size=settings["batch_size"],
        seq_len=settings["seq_len"],
        momentum=settings["momentum"],
        init="uniform",
        record=("loss", "entropy_distinct"),
        record_at=[settings["n_steps"]],
        random_state=seeds[0],
    )
    grid = {name: settings[name] for name in ("lr_z", "ratio")}
    result = sweep(study, grid, len(seeds), syn_medium(int(part.split()[0])))
    ends = result.array("entropy_distinct")[:, -1].mean(-1)
    for end, y, z, seed in zip(
        ends, result.runs.lr_y, result.runs.lr_z, result.runs.seed.tolist(), strict=True
    ):
        sheet.value(f"{part}, rate {z:g}, ratio {y / z:g}", "entropy_distinct", end, seed)
        sheet.curve(part, f"rate {z:g}", [y / z], [end], seed)


def corpus_of(settings: Mapping[str, Any], part: str = "") -> Corpus:
    """Return the text that a part of a figure learns.

    Parameters
    ----------
    settings
        ``text``, the folder with ``train.txt`` and ``valid.txt``, and sizes of vocabularies.
    part
        The part; free logits have a vocabulary of their own size.
    """
    size = settings["free_vocab" if part == _FREE else "max_vocab"]
    folder = Path(settings["text"])
    return read_corpus(folder / "train.txt", folder / "valid.txt", size)


def plan_of(settings: Mapping[str, Any], part: str) -> TextPlan:
    """Return how a part of a figure learns a text.

    Parameters
    ----------
    settings
        What decides on the figure.
    part
        The part.
    """
    if part == _FREE:
        return TextPlan(
            record_at=_every(settings["free_steps"], settings["record_every"]),
            window=settings["free_window"],
            batch_size=settings["free_batch_size"],
        )
    own: dict[str, Any]
    if "record_at" in settings:
        own = {"n_layers": int(part.split()[0]), "record_at": tuple(settings["record_at"])}
    else:
        steps = _every(settings["n_steps"], settings["record_every"])
        own = {"n_layers": settings["n_layers"], "record_at": steps}
    names = ("window", "batch_size", "d_model", "dropout", "clip", "feed_forward", "lr_feed_forward")
    return TextPlan(**own, **{name: settings[name] for name in names if name in settings})


def memory_of(part: str, settings: Mapping[str, Any], n_seeds: int) -> int:
    """Return the bytes that a part of a figure of text takes at the most, beside the program itself.

    Parameters
    ----------
    part
        The part.
    settings
        What decides on the figure, with ``text``.
    n_seeds
        Number of seeds.
    """
    n_words = (
        sum(path.stat().st_size for path in Path(settings["text"]).glob("*.txt") if path.stem != "test") / 4
    )
    free = part == _FREE
    n_runs = len(settings["free_rates"]) * n_seeds if free else 0
    return memory(
        plan_of(settings, part), int(n_words), settings["free_vocab" if free else "max_vocab"] + 1, n_runs
    )


def _every(n_steps: int, every: int) -> tuple[int, ...]:
    return tuple(sorted({*range(0, n_steps, every), n_steps}))


def _maps(sheet: _Sheet, part: str, settings: Mapping[str, Any], seeds: Sequence[int]) -> None:
    corpus, plan = corpus_of(settings), plan_of(settings, part)
    start = even_starts(len(corpus.valid), plan.window, plan.n_valid)[0]
    shown = [corpus.names[number] for number in corpus.valid[start : start + plan.window]]
    for seed in seeds:
        for record in follow_layers(corpus, plan, settings["rate"], seed):
            _tell_text(sheet, f"{part}, step {record.step}", record, seed)
            if seed == seeds[0] and record.maps is not None:
                # As in the paper, the first layer.
                for place, (word, weights) in enumerate(zip(shown, record.maps[0], strict=True)):
                    panel = f"{part}, step {record.step}"
                    sheet.curve(panel, f"{place:03d} {word}", np.arange(plan.window), weights, seed)


def _text_entropy(sheet: _Sheet, part: str, settings: Mapping[str, Any], seeds: Sequence[int]) -> None:
    corpus, plan = corpus_of(settings, part), plan_of(settings, part)
    if part == _FREE:
        rates = [(float(lr_y), float(lr_z)) for lr_y, lr_z in settings["free_rates"]]
        rows = [(f"{part}, rates {y:g} / {z:g}", seed) for y, z in rates for seed in seeds]
        courses = list(zip(*follow_free(corpus, plan, rates, seeds), strict=True))
    else:
        rows = [(part, seed) for seed in seeds]
        rate = float(part.removeprefix("rate "))
        courses = [tuple(follow_layers(corpus, plan, rate, seed)) for seed in seeds]
    for (row, seed), course in zip(rows, courses, strict=True):
        panel = _FREE if part == _FREE else "layer"
        steps, shares = [each.step for each in course], [each.entropy_share for each in course]
        sheet.curve(panel, row.removeprefix(f"{_FREE}, "), steps, shares, seed)
        _tell_text(sheet, row, course[-1], seed)
        if part != _FREE:
            middle = next(each for each in course if each.step >= _SETTLED * course[-1].step)
            sheet.value(row, "late_change", course[-1].entropy / middle.entropy - 1, seed)


def _tell_text(sheet: _Sheet, row: str, record: TextRecord, seed: int) -> None:
    for metric in ("entropy", "entropy_share", "valid_loss", "frequency_order"):
        value = record.loss if metric == "valid_loss" else getattr(record, metric)
        if np.isfinite(value):
            sheet.value(row, metric, value, seed)


FIGURES: dict[str, Callable[[_Sheet, str, Mapping[str, Any], Sequence[int]], None]] = {
    "figure3": _odds,
    "figure4": _descent,
    "figure5": _adam,
    "figure6": _medium,
    "figure7": _maps,
    "figure8": _decoder,
    "figure9": _exponent,
    "figure10": _text_entropy,
}
"""The figures by name, each with what computes a part of it."""
