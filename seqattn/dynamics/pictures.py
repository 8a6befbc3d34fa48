"""Drawings of a study: who gains attention, when it slows down, and theory beside what was run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqattn.dynamics.detect import detect_snap
from seqattn.dynamics.result import StudyResult
from seqattn.dynamics.theory import snap_times
from seqattn.errors import MissingDependencyError, ParameterError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Pictures"]

_LABELS = {
    "entropy_distinct": "entropy on distinct tokens (nats)",
    "entropy": "entropy of attention (nats)",
    "common_mass": "attention on common tokens (share)",
    "one_minus_alpha": "probability not given to the next token",
    "margin": "own minus best other logit",
    "loss": "loss (nats)",
    "speed": "speed of attention logits (1/step)",
    "balance_residual": "residual of the balance law (relative)",
}
# Colours that differ in brightness too (Okabe and Ito), so that they can be told apart in grey.
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_STYLES = {"exact": "--", "paper": ":"}
_MARKS = (("t0_first", "t0'"), ("t0", "t0"), ("t_half", "half"), ("t_peak", "peak"), ("t_freeze", "freeze"))
_TIME = "time (steps)"


class Pictures:
    """The part of a study that draws; each method returns the axes, and takes ``ax`` to draw into."""

    result_: StudyResult

    def plot_attention(self, klass: int = 0, run: int = 0, ax: Any = None) -> Axes:
        """Draw the attention of one class to each of its tokens against time.

        Parameters
        ----------
        klass
            The class.
        run
            The run.
        ax
            Axes to draw into; new ones by default.
        """
        result = self.result_
        order, n_common = _tokens_of(result, klass)
        values = result.array("c")[run, :, klass][:, order]
        axes = _axes(ax)
        times = result.snapshot_times
        image = axes.pcolormesh(
            _edges(times), np.arange(len(order) + 1), values.T, cmap="viridis", rasterized=True
        )
        axes.axhline(n_common, color="white", linewidth=1.5)
        axes.set_yticks(
            [n_common / 2, (n_common + len(order)) / 2], ["common", "distinct"], rotation=90, va="center"
        )
        _time_axis(axes, times)
        axes.set_ylabel("tokens, rare ones below")
        axes.figure.colorbar(image, ax=axes, label="attention (share)")
        axes.set_title(f"Attention of class {klass}, {_rates(result, run)}")
        return axes

    def plot_course(self, quantity: str = "entropy_distinct", theory: bool = True, ax: Any = None) -> Axes:
        """Draw one quantity against time for each pair of rates, with theory and detected times.

        Parameters
        ----------
        quantity
            A quantity of runs or classes; the mean over classes and seeds is drawn, with the range over seeds.
        theory
            Whether curves of the exact flow and of the paper are drawn where there are any.
        ax
            Axes to draw into; new ones by default.
        """
        result, axes = self.result_, _axes(ax)
        is_log = quantity in ("speed", "balance_residual", "loss", "one_minus_alpha")
        values = _by_run(result, quantity)
        if is_log:
            values = _drawable(values)
        pairs = _pairs(result)
        for number, ((lr_y, lr_z), runs) in enumerate(pairs.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            seeds = values[runs]
            axes.plot(result.times, seeds.mean(0), color=colour, label=f"run, rates {lr_y:g} / {lr_z:g}")
            if len(runs) > 1:
                axes.fill_between(
                    result.times, seeds.min(0), seeds.max(0), color=colour, alpha=0.2, linewidth=0
                )
            if theory:
                _draw_theory(axes, result, quantity, (lr_y, lr_z), colour, is_log)
        if len(pairs) == 1:
            _draw_times(axes, result)
        _time_axis(axes, result.times)
        axes.set_ylabel(_LABELS.get(quantity, quantity))
        if is_log:
            axes.set_yscale("log")
        axes.set_title(f"Course of {_LABELS.get(quantity, quantity).partition(' (')[0]}")
        axes.legend(fontsize="small")
        return axes

    def plot_growth(self, klass: int = 0, run: int = 0, ax: Any = None) -> Axes:
        """Draw the growth of the strongest distinct token's odds between the paper's two bounds.

        Parameters
        ----------
        klass
            The class.
        run
            The run; theory is that of its rates.
        ax
            Axes to draw into; new ones by default.
        """
        result, axes = self.result_, _axes(ax)
        order, n_common = _tokens_of(result, klass)
        if n_common == len(order):
            raise ParameterError(f"Class {klass} has no distinct token. Give another class.")
        chi = result.array("chi")[run, :, klass, order[-1]]
        axes.plot(result.snapshot_times, chi, color=_COLOURS[0], label="run")
        rates = (float(result.runs.lr_y[run]), float(result.runs.lr_z[run]))
        for name, style, word in (("chi_low", ":", "lower"), ("chi_high", "-.", "upper")):
            own = result.theory.filter((pl.col("quantity") == name) & (pl.col("klass") == klass))
            own = own.filter((pl.col("lr_y") == rates[0]) & (pl.col("lr_z") == rates[1]))
            if len(own):
                note = "" if own["is_valid"].all() else ", assumptions fail"
                label = f"paper, {word} bound{note}"
                axes.plot(own["time"], own["value"], style, color=_COLOURS[1], label=label)
        _time_axis(axes, result.snapshot_times)
        axes.set_ylabel("growth of the odds, chi")
        axes.set_yscale("log")
        axes.set_title(f"Growth of the strongest distinct token, {_rates(result, run)}")
        axes.legend(fontsize="small")
        return axes

    def plot_logits(self, klass: int = 0, run: int = 0, ax: Any = None) -> Axes:
        """Draw the attention logits of the tokens of a class against time, coloured by their probability.

        Parameters
        ----------
        klass
            The class.
        run
            The run.
        ax
            Axes to draw into; new ones by default.
        """
        from matplotlib import cm, colors

        result, axes = self.result_, _axes(ax)
        order, n_common = _tokens_of(result, klass)
        z = result.array("z")[run, :, result.classes.query[klass]][:, order]
        P = result.classes.P[klass, result.schedule.tokens[order]]
        scale = cm.ScalarMappable(colors.LogNorm(P.min(), max(P.max(), P.min() * 1.01)), "viridis")
        for place, (values, p) in enumerate(zip(z.T, P, strict=True)):
            style = "--" if place < n_common else "-"
            axes.plot(result.snapshot_times, values, style, color=scale.to_rgba(p), linewidth=1.2)
        axes.plot([], [], "--", color="0.3", label="common")
        axes.plot([], [], "-", color="0.3", label="distinct")
        axes.figure.colorbar(scale, ax=axes, label="probability of the token in the class")
        _time_axis(axes, result.snapshot_times)
        axes.set_ylabel("attention logit")
        axes.set_title(f"Attention logits of class {klass}, {_rates(result, run)}")
        axes.legend(fontsize="small")
        return axes

    def plot_plateau(
        self, quantity: str = "entropy_distinct", time: float | None = None, ax: Any = None
    ) -> Axes:
        """Draw where a quantity stands at one time against the ratio of the rates.

        Parameters
        ----------
        quantity
            A quantity of runs or classes.
        time
            The horizon, which the title names, since the level depends on it; the end by default.
        ax
            Axes to draw into; new ones by default.
        """
        result, axes = self.result_, _axes(ax)
        index = -1 if time is None else int(np.abs(result.times - time).argmin())
        values = _by_run(result, quantity)[:, index]
        lr_z = np.unique(result.runs.lr_z)
        for number, rate in enumerate(lr_z):
            rows = [(y / z, values[runs]) for (y, z), runs in _pairs(result).items() if z == rate and z > 0]
            rows.sort(key=lambda row: row[0])
            spread = [seeds.std() for _, seeds in rows]
            axes.errorbar(
                [ratio for ratio, _ in rows],
                [seeds.mean() for _, seeds in rows],
                spread if max(spread, default=0) > 0 else None,
                marker="os^vD"[number % 5],
                color=_COLOURS[number % len(_COLOURS)],
                capsize=2,
                label=f"rate of attention {rate:g}",
            )
        axes.set_xscale("log")
        axes.set_xlabel("ratio of the rates, decoder / attention")
        axes.set_ylabel(_LABELS.get(quantity, quantity))
        axes.set_title(f"After {result.times[index]:g} steps")
        axes.legend(fontsize="small")
        return axes

    def plot_map(self, quantity: str = "entropy_distinct", time: float | None = None, ax: Any = None) -> Axes:
        """Draw a quantity over both rates, with lines of equal t0.

        Parameters
        ----------
        quantity
            A quantity of runs or classes, or ``"t_peak"`` or ``"t_half"`` for the time of the snap.
        time
            The horizon; the end by default.
        ax
            Axes to draw into; new ones by default.
        """
        result, axes = self.result_, _axes(ax)
        ys, zs = np.unique(result.runs.lr_y), np.unique(result.runs.lr_z)
        if len(ys) < 2 or len(zs) < 2:
            raise ParameterError(
                "A map needs at least two values of each rate. Run a sweep over lr_y and lr_z."
            )
        cells = np.full((len(zs), len(ys)), np.nan)
        for (y, z), value in _cells(result, quantity, time).items():
            cells[np.searchsorted(zs, z), np.searchsorted(ys, y)] = value
        image = axes.pcolormesh(_edges(ys), _edges(zs), np.ma.masked_invalid(cells), cmap="viridis")
        for y in ys:
            t0 = snap_times(
                lr_y=y, n_outputs=max(2, result.classes.n_outputs), n_classes=len(result.classes)
            ).last
            axes.axvline(y, color="white", linestyle=":", linewidth=0.8)
            axes.annotate(
                f"t0 = {t0:.3g}",
                (y, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                textcoords="offset points",
                rotation=45,
                fontsize="x-small",
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("rate of the decoder")
        axes.set_ylabel("rate of attention")
        label = f"{quantity} (steps)" if quantity.startswith("t_") else _LABELS.get(quantity, quantity)
        axes.figure.colorbar(image, ax=axes, label=label)
        return axes

    def plot_balance(self, ax: Any = None) -> Axes:
        """Draw the residual of the balance law against time, which tells how exact the runs are.

        Parameters
        ----------
        ax
            Axes to draw into; new ones by default.
        """
        return self.plot_course("balance_residual", theory=False, ax=ax)


def plot_bias(table: pl.DataFrame, ax: Any = None) -> Axes:
    """Draw a bias report: rank correlations of learnt logits, and those that the early law predicts.

    Parameters
    ----------
    table
        From :func:`seqattn.dynamics.bias_report`.
    ax
        Axes to draw into; new ones by default.
    """
    axes = _axes(ax)
    rows = np.arange(len(table))
    middle = table["correlation"].to_numpy()
    error = np.abs(np.stack([table["low"].to_numpy(), table["high"].to_numpy()]) - middle)
    axes.errorbar(middle, rows, xerr=error, fmt="o", color=_COLOURS[0], capsize=3, label="learnt, 95 %")
    axes.plot(table["early_law"], rows + 0.15, "^", color=_COLOURS[2], label="early law, without training")
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set_yticks(rows, table["against"].to_list())
    axes.set_xlim(-1, 1)
    axes.set_xlabel("rank correlation with attention logits")
    axes.set_title("What attention favours")
    axes.legend(fontsize="small")
    return axes


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("Plots need matplotlib: pip install 'seqattn[plot]'.") from error
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.subplots()


def _tokens_of(result: StudyResult, klass: int) -> tuple[NDArray[np.int64], int]:
    """Places of a class's recorded tokens, common ones first, each kind by rising probability."""
    classes, tokens = result.classes, result.schedule.tokens
    P = classes.P[klass, tokens]
    is_own = classes.owner[tokens] == klass
    order = np.lexsort((P, is_own))
    order = order[P[order] > 0]
    return order, int((~is_own[order]).sum())


def _by_run(result: StudyResult, quantity: str) -> NDArray[np.float64]:
    """A quantity of runs, or the mean over classes of one of classes."""
    values = result.array(quantity)
    if values.ndim == 4:
        raise ParameterError(f"{quantity!r} is a quantity of tokens. Use plot_attention or plot_logits.")
    return values if values.ndim == 2 else values.mean(-1)


def _pairs(result: StudyResult) -> dict[tuple[float, float], NDArray[np.int64]]:
    pairs = list(zip(result.runs.lr_y.tolist(), result.runs.lr_z.tolist(), strict=True))
    return {pair: np.flatnonzero([other == pair for other in pairs]) for pair in dict.fromkeys(pairs)}


def _cells(result: StudyResult, quantity: str, time: float | None) -> dict[tuple[float, float], float]:
    if quantity in ("t_peak", "t_half", "t_freeze"):
        rows = detect_snap(result).iter_rows(named=True)
        return {(row["lr_y"], row["lr_z"]): row[quantity] for row in rows}
    index = -1 if time is None else int(np.abs(result.times - time).argmin())
    values = _by_run(result, quantity)[:, index]
    return {pair: float(values[runs].mean()) for pair, runs in _pairs(result).items()}


def _drawable(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Leave out what a logarithmic axis cannot show; a speed of 0 would be a line straight down."""
    return np.where(values > 0, values, np.nan)


def _draw_theory(
    axes: Any, result: StudyResult, quantity: str, rates: tuple[float, float], colour: str, is_log: bool
) -> None:
    own = result.theory.filter(
        (pl.col("lr_y") == rates[0]) & (pl.col("lr_z") == rates[1]) & (pl.col("quantity") == quantity)
    )
    # Momentum is drawn as more time, which is all that it comes to at small steps.
    at = " at effective time" if result.metadata["theory"]["momentum"] > 0 else ""
    for layer, style in _STYLES.items():
        rows = own.filter((pl.col("layer") == layer) & pl.col("klass").is_null())
        if len(rows):
            failing = {"exact": "another training rule", "paper": "assumptions fail"}[layer]
            note = {"exact": "exact flow", "paper": "paper"}[layer] + at
            note += "" if rows["is_valid"].all() else f", {failing}"
            values = rows["value"].to_numpy()
            values = _drawable(values) if is_log else values
            axes.plot(rows["time"], values, style, color=colour, linewidth=1.2, label=note)


def _draw_times(axes: Any, result: StudyResult) -> None:
    """Mark the times of theory and those detected, where all that detectors need was recorded."""
    if not {"one_minus_alpha", "speed", "entropy_distinct", "loss"} <= set(result.arrays):
        return
    row = detect_snap(result).row(0, named=True)
    for level, (name, word) in enumerate(_MARKS):
        if np.isfinite(row[name]) and row[name] <= result.times[-1]:
            axes.axvline(
                row[name], color="0.5", linewidth=0.8, linestyle=":" if name.startswith("t0") else "-"
            )
            place = (row[name], 0.98 - 0.05 * (level % 3))
            axes.annotate(word, place, xycoords=("data", "axes fraction"), fontsize="x-small", va="top")


def _time_axis(axes: Any, times: NDArray[np.float64]) -> None:
    positive = times[times > 0]
    axes.set_xscale("symlog", linthresh=positive[0], linscale=0.3) if len(positive) else None
    axes.set_xlim(0, times[-1])
    axes.set_xlabel(_TIME)


def _edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of cells around increasing values, half-way between them, of logarithms if all are positive."""
    if len(values) < 2:
        return np.array([values[0] * 0.9, values[0] * 1.1])
    if values[0] > 0:
        logs = np.log(values)
        middle = (logs[1:] + logs[:-1]) / 2
        return np.exp(np.r_[2 * logs[0] - middle[0], middle, 2 * logs[-1] - middle[-1]])
    middle = (values[1:] + values[:-1]) / 2
    return np.r_[values[0], middle, values[-1]]


def _rates(result: StudyResult, run: int) -> str:
    return f"rates {result.runs.lr_y[run]:g} / {result.runs.lr_z[run]:g}, seed {result.runs.seed[run]}"
