"""Words and rows for a contest of models over data sets."""

from __future__ import annotations

from seqattn.reproduce.contest import LEVEL, Contest, Pair
from seqattn.reproduce.grid import Grid

__all__ = ["NONE", "groups", "pvalue", "rows", "text"]

NONE = "There is no data set on which all models have a figure."


def pvalue(value: float | None) -> str:
    """Return a p-value for a table; empty for None.

    Parameters
    ----------
    value
        The p-value.

    Examples
    --------
    >>> pvalue(0.25), pvalue(0.00021)
    ('0.250', '2e-04')
    """
    if value is None:
        return ""
    return "< 1e-300" if value < 1e-300 else f"{value:.3f}" if value >= 1e-3 else f"{value:.0e}"


def text(grid: Grid, found: Contest) -> str:
    """Return what a contest is over, and how it is tested.

    Parameters
    ----------
    grid
        The grid.
    found
        The contest.
    """
    parts = [f"Over {len(found.datasets)} data sets ({', '.join(found.datasets)}); 1 is the best."]
    if grid.ranked_decimals is not None:
        parts.append(f"Figures are rounded to {grid.ranked_decimals} decimals, as the published ones are.")
    if found.friedman_pvalue is not None:
        parts.append(f"Friedman test that all are alike: p = {pvalue(found.friedman_pvalue)}.")
    if not found.is_tested:
        return " ".join([*parts, "Tests over data sets need at least six."])
    tested = "Pairs: Wilcoxon's signed-rank test over data sets, by Holm over all pairs."
    interval = "Intervals: bootstrap over data sets." if grid.is_averaged else ""
    return " ".join(filter(None, [*parts, tested, interval]))


def rows(grid: Grid, found: Contest) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows: each model by its average rank, and the reference against it.

    Parameters
    ----------
    grid
        The grid, whose reference is compared with the others if it takes part.
    found
        The contest.
    """
    heads = ["model", "average rank", *(["mean"] if grid.is_averaged else [])]
    compared = grid.reference in found.models
    if compared:
        heads += [f"{grid.reference}: wins, ties, losses"]
        heads += ["difference", "95 % interval"] if grid.is_averaged else []
        heads += ["p (Holm)"] if found.is_tested else []
    filled = []
    for name, rank, mean in zip(found.models, found.ranks, found.means, strict=True):
        row = [name, f"{rank:.2f}", *([f"{mean:.4f}"] if grid.is_averaged else [])]
        if compared and name != grid.reference:
            row += _compared(grid, found, found.pair(grid.reference, name))
        filled.append([*row, *[""] * (len(heads) - len(row))])
    return heads, filled


def _compared(grid: Grid, found: Contest, pair: Pair) -> list[str]:
    cells = [f"{pair.wins}, {pair.ties}, {pair.losses}"]
    if grid.is_averaged:
        ends = "" if pair.low is None or pair.high is None else f"{pair.low:+.4f} to {pair.high:+.4f}"
        cells += [f"{pair.difference:+.4f}", ends]
    return [*cells, *([pvalue(pair.pvalue)] if found.is_tested else [])]


def groups(found: Contest) -> str:
    """Return which models cannot be told apart, in a sentence; empty where nothing is tested.

    Parameters
    ----------
    found
        The contest.
    """
    if not found.is_tested:
        return ""
    if not found.cliques:
        return f"All neighbours in the order of ranks differ (p < {LEVEL})."
    named = "; ".join(", ".join(clique) for clique in found.cliques)
    return f"Neighbours in the order of ranks of which no two differ (p < {LEVEL}): {named}."
