"""From records of cells to what is told of them: rows of the table, comparisons, ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from seqattn.reproduce.contest import Contest, contest
from seqattn.reproduce.grid import Metric, Published
from seqattn.reproduce.run import Reproduction
from seqattn.reproduce.statistics import Paired, Spread, holm, paired, spread

__all__ = ["COLUMNS", "Comparison", "Summary"]

COLUMNS = ("dataset", "model", "metric", "mean", "std", "n_seeds", "published", "source", "protocol")


@dataclass(frozen=True)
class Comparison:
    """The reference against the best baseline on one data set.

    Attributes
    ----------
    dataset, first, second
        Data set, reference and baseline. The baseline is the best one on these same test data, which favours it.
    paired
        The comparison, in the unit of the first metric.
    pvalue
        That of ``paired``, by Holm over all data sets; None if there is none.
    """

    dataset: str
    first: str
    second: str
    paired: Paired
    pvalue: float | None


class Summary:
    """What is told of the cells of a grid.

    Parameters
    ----------
    result
        What :func:`seqattn.reproduce.run.reproduce` returned.
    """

    def __init__(self, result: Reproduction) -> None:
        self.result = result
        self.grid = result.grid
        self.main = result.grid.metrics[0]

    @cached_property
    def spreads(self) -> dict[tuple[str, str, str], Spread]:
        """Data set, model and metric to the spread over seeds; only where there are values."""
        values: dict[tuple[str, str, str], list[float]] = {}
        for record in self.result.complete:
            for metric in self.grid.metrics:
                value = record["metrics"].get(metric.name)
                if value is not None:
                    values.setdefault((record["dataset"], record["model"], metric.name), []).append(value)
        return {key: spread(found) for key, found in values.items()}

    def of(self, dataset: str, model: str, metric: str | None = None) -> Spread | None:
        """Return the spread of a model on a data set over seeds, or None.

        Parameters
        ----------
        dataset, model
            Names in the grid.
        metric
            Name of a metric; None is the first.
        """
        return self.spreads.get((dataset, model, metric or self.main.name))

    @cached_property
    def datasets(self) -> list[str]:
        """The data sets that are on this machine, in the order of the grid."""
        return [known.name for known in self.grid.datasets if known.name not in self.result.skipped]

    @cached_property
    def others(self) -> list[str]:
        """Names of published models that no model of the grid stands for."""
        return list(dict.fromkeys(name for dataset in self.datasets for name in self.grid.others(dataset)))

    def published(self, dataset: str, model: str, metric: str) -> tuple[float, str] | None:
        """Return a published figure and its source, or None; other data than the published ones have none.

        Parameters
        ----------
        dataset
            Name of the data set.
        model
            Name of the model among the published ones.
        metric
            Name of the metric.
        """
        found = self._figure(dataset, model, metric)
        return None if found is None else (found[0], found[1].source)

    def _figure(self, dataset: str, model: str, metric: str) -> tuple[float, Published] | None:
        return None if dataset in self.result.partial else self.grid.figure(dataset, model, metric)

    def rows(self) -> list[dict[str, Any]]:
        """Return the table, one row per data set, model and metric, with the keys of ``COLUMNS``.

        Models that others have published and we do not run have rows without a mean.
        """
        rows = []
        for dataset in self.datasets:
            for metric in self.grid.metrics:
                for model in self.grid.models:
                    found = self.of(dataset, model.name, metric.name)
                    rows.append(self._row(dataset, model.name, metric, found, model.published))
                theirs = [
                    name for name in self.others if self.published(dataset, name, metric.name) is not None
                ]
                rows += [self._row(dataset, name, metric, None, name) for name in theirs]
        return rows

    def _row(
        self, dataset: str, model: str, metric: Metric, found: Spread | None, published: str
    ) -> dict[str, Any]:
        theirs = self._figure(dataset, published, metric.name)
        is_theirs = model not in [known.name for known in self.grid.models]
        values = (
            dataset,
            model,
            metric.name,
            found.mean if found else None,
            found.std if found else None,
            found.n if found else 0,
            theirs[0] if theirs else None,
            theirs[1].source if theirs else None,
            theirs[1].protocol if theirs and is_theirs else self._protocol(dataset, metric),
        )
        return dict(zip(COLUMNS, values, strict=True))

    def _protocol(self, dataset: str, metric: Metric) -> str:
        usual = self.result.protocols[dataset]
        return metric.protocol + usual.removeprefix(self.grid.protocol) if metric.protocol else usual

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """The reference against the best baseline, case by case, for each data set that has both."""
        found = []
        for dataset in self.datasets:
            second = self._best_baseline(dataset)
            mine = self._totals(dataset, self.grid.reference)
            theirs = None if second is None else self._totals(dataset, second)
            if (
                second is not None
                and mine is not None
                and theirs is not None
                and np.array_equal(mine[1], theirs[1])
            ):
                found.append((dataset, second, paired(mine[0], theirs[0], mine[1])))
        tested = [result.pvalue for _, _, result in found if result.pvalue is not None]
        adjusted = iter(holm(tested))
        return [
            Comparison(
                dataset,
                self.grid.reference,
                second,
                result,
                None if result.pvalue is None else next(adjusted),
            )
            for dataset, second, result in found
        ]

    def _best_baseline(self, dataset: str) -> str | None:
        sign = 1 if self.main.higher_is_better else -1
        means = {
            model.name: sign * found.mean
            for model in self.grid.models
            if model.is_baseline and (found := self.of(dataset, model.name)) is not None
        }
        return max(means, key=lambda name: means[name], default=None)

    def _totals(self, dataset: str, model: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return totals by test case, averaged over seeds, and counts; None where they are not there."""
        cases = [
            record["cases"]
            for record in self.result.complete
            if (record["dataset"], record["model"]) == (dataset, model) and record["cases"] is not None
        ]
        if not cases:
            return None
        return np.mean([case["totals"] for case in cases], axis=0), np.asarray(cases[0]["counts"])

    @cached_property
    def contests(self) -> list[Contest]:
        """Contests by the first metric, as :meth:`contests_by` gives them."""
        return self.contests_by(self.main)

    def contests_by(self, metric: Metric) -> list[Contest]:
        """Return our models that ran, and published ones where the grid ranks them, against each other.

        Published models that lack a figure on one of our data sets take part in a contest of its own, over the data
        sets on which all have one. There is no contest without a data set, or with one model only.

        Parameters
        ----------
        metric
            One of the grid's.
        """
        ours = {model.name: found for model in self.grid.models if (found := self._means(model.name, metric))}
        base = [name for name in self.datasets if ours and all(name in found for found in ours.values())]
        theirs = {name: found for name in self._rivals(ours) if (found := self._figures(name, metric))}
        whole = {name: found for name, found in theirs.items() if found.keys() >= set(base)}
        groups = [{**ours, **whole}] + ([{**ours, **theirs}] if len(whole) < len(theirs) else [])
        held = [self._contest(group, base, metric) for group in groups if len(group) > 1]
        return [each for each in held if each is not None]

    def _means(self, model: str, metric: Metric) -> dict[str, float]:
        """Return the mean over seeds by data set."""
        found = {name: self.of(name, model, metric.name) for name in self.datasets}
        return {name: self._rounded(each.mean) for name, each in found.items() if each is not None}

    def _rivals(self, ours: Mapping[str, Any]) -> list[str]:
        return self.others if ours and self.grid.ranked_decimals is not None else []

    def _figures(self, model: str, metric: Metric) -> dict[str, float]:
        """Return the published figures of a model by data set."""
        found = {name: self.published(name, model, metric.name) for name in self.datasets}
        return {name: self._rounded(each[0]) for name, each in found.items() if each is not None}

    def _rounded(self, value: float) -> float:
        decimals = self.grid.ranked_decimals
        return value if decimals is None else round(value, decimals)

    def _contest(
        self, columns: Mapping[str, Mapping[str, float]], base: Sequence[str], metric: Metric
    ) -> Contest | None:
        common = [name for name in base if all(name in column for column in columns.values())]
        values = [[column[name] for column in columns.values()] for name in common]
        return contest(values, list(columns), common, metric.higher_is_better) if common else None

    def best(self, dataset: str) -> list[str]:
        """Return the names of our models that are best on a data set to the digits that are shown.

        Parameters
        ----------
        dataset
            Name of the data set.
        """
        means = {
            model.name: round(found.mean, 4)
            for model in self.grid.models
            if (found := self.of(dataset, model.name)) is not None
        }
        choose = max if self.main.higher_is_better else min
        return [name for name, mean in means.items() if mean == choose(means.values())]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values: ``table`` as :meth:`rows` gives it, and what stands below it."""
        result = self.result
        return {
            "reproduce": result.plan.noun,
            "table": self.rows(),
            "intervals": [
                {"dataset": dataset, "model": model, "metric": metric, "low": found.low, "high": found.high}
                for (dataset, model, metric), found in self.spreads.items()
                if found.low is not None
            ],
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "ranks": [asdict(each) for each in self.contests],
            "n_complete": len(result.complete),
            "failed": [_without(record, ("metrics", "cases")) for record in result.failed],
            "skipped": result.skipped,
            "embedded": sorted(result.embedded),
            "output": str(result.plan.output),
        }


def _without(record: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}
