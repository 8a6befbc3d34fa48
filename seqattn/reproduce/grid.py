"""What a table consists of: data sets, models, seeds, metrics, and published figures with their source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from seqattn.data.catalog import entries, resource
from seqattn.errors import ParameterError, suggest
from seqattn.train.config import check_names, read_toml

__all__ = ["DataSet", "Grid", "Metric", "Model", "Published", "nouns"]

_TRAINING = "Trained on the training part, epoch chosen on the development part, test part looked at once."


@dataclass(frozen=True)
class Metric:
    """A figure of the table.

    Attributes
    ----------
    name
        Its key in what the task's ``evaluate`` returns.
    title, unit
        For a person.
    higher_is_better
        Which of two values is the better one.
    best_of
        A key of the records of epochs: the figure is their best value, with the epoch chosen on the test data. Only
        for comparison with published figures that were found so; models that do not learn in epochs have none.
    protocol
        How it is measured, if not by the grid's protocol.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool = True
    best_of: str = ""
    protocol: str = ""


@dataclass(frozen=True)
class Model:
    """A model of the table.

    Attributes
    ----------
    name
        How the table calls it.
    model
        Its name within the task.
    preset
        Name of a file of settings, ``tuning/<task>-<preset>.toml``; empty for the defaults.
    settings
        Constructor arguments, over those of the preset.
    is_baseline
        Whether it is one of the simple models that the reference has to beat.
    is_deterministic
        Whether every seed gives the same; it then runs once.
    published
        Its name among the published figures; empty if it has none.
    on_request
        Whether it runs only where it is asked for by name, since it needs another package.
    """

    name: str
    model: str
    preset: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    is_baseline: bool = False
    is_deterministic: bool = False
    published: str = ""
    on_request: bool = False


@dataclass(frozen=True)
class DataSet:
    """A data set of the table.

    Attributes
    ----------
    name
        Known name.
    note
        What sets our runs apart from the published ones; stands beside every figure.
    """

    name: str
    note: str = ""


@dataclass(frozen=True)
class Published:
    """Figures that others have published.

    Attributes
    ----------
    source
        Where they stand.
    protocol
        How they were measured, in the words of the task.
    metric
        Which metric they are of.
    figures
        Data set to model to value.
    text
        Further words for the reader.
    also
        Further metrics beside which they are shown.
    """

    source: str
    protocol: str
    metric: str
    figures: dict[str, dict[str, float]]
    text: str = ""
    also: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Grid:
    """Everything that a table consists of.

    Attributes
    ----------
    title
        What it is about.
    task
        Name of the task that fits and evaluates.
    reference
        Name of the model that is compared with the best baseline.
    protocol, protocol_text
        How ours are measured: in the words of the task, and for a person.
    training_text
        On which parts of the data ours are trained and looked at.
    ranked_decimals
        Digits after the point to which figures are rounded where published models are ranked with ours; None leaves
        those out of ranks.
    is_averaged
        Whether means over data sets say something, as those of shares do.
    evaluation
        Options of the task's ``evaluate``.
    metrics
        The figures; the first one ranks models.
    models, datasets, published
        Its rows, columns and what stands beside them.
    """

    title: str
    task: str
    reference: str
    protocol: str
    protocol_text: str
    evaluation: dict[str, Any]
    metrics: tuple[Metric, ...]
    models: tuple[Model, ...]
    datasets: tuple[DataSet, ...]
    published: tuple[Published, ...] = ()
    training_text: str = _TRAINING
    ranked_decimals: int | None = None
    is_averaged: bool = False

    @classmethod
    def load(cls, path: str | Path) -> Grid:
        """Read a grid from a TOML file.

        Parameters
        ----------
        path
            A file with the attributes as keys.

        Raises
        ------
        ParameterError
            The file cannot be read, or lacks or holds something that is not known.
        """
        values = read_toml(path)
        where = repr(str(path))
        for name, kind in (
            ("metrics", Metric),
            ("models", Model),
            ("datasets", DataSet),
            ("published", Published),
        ):
            values[name] = tuple(_row(kind, row, where) for row in values.get(name, ()))
        grid: Grid = _row(cls, values, where)
        if not (grid.metrics and grid.models and grid.datasets):
            raise ParameterError(
                f"{where} names no metrics, no models or no data sets. Give each at least once."
            )
        check_names([grid.reference], [model.name for model in grid.models], f"a model of {where}")
        return grid

    @classmethod
    def of(cls, noun: str, name: str = "reproduce") -> Grid:
        """Return a grid that comes with the package.

        Parameters
        ----------
        noun
            One of :func:`nouns`.
        name
            Which of its grids: ``datasets/<noun>/<name>.toml``. Beside the default, ``"reproduce"``, rec and uea have
            ``"ablation"``.

        Raises
        ------
        ParameterError
            There is none of that name; the nearest one is suggested.

        Examples
        --------
        >>> Grid.of("tpp").reference
        'SAHP'
        >>> [model.name for model in Grid.of("uea", "ablation").models][:2]
        ['VSFormer', 'readout only']
        """
        if noun not in nouns():
            raise ParameterError(
                f"There is no table {noun!r}. Tables: {', '.join(nouns())}.{suggest(noun, nouns())}"
            )
        found = {
            path.stem: path
            for path in sorted(resource("datasets", noun).glob("*.toml"))
            if path.stem != "index"
        }
        if name not in found:
            raise ParameterError(
                f"There is no file and no grid {name!r}. Grids of {noun}: {', '.join(found)}.{suggest(name, found)}"
            )
        return cls.load(found[name])

    def select(self, datasets: Sequence[str] = (), models: Sequence[str] = ()) -> Grid:
        """Return the part of the grid that has some data sets and models only.

        Parameters
        ----------
        datasets, models
            Names or aliases, in any order; none stands for all, but for models that run on request only.

        Raises
        ------
        ParameterError
            A name is not in the grid; the nearest one is suggested.

        Examples
        --------
        >>> [model.name for model in Grid.of("tpp").select(models=["PoissonProcess"]).models]
        ['PoissonProcess']
        """
        aliases = {alias: known.name for known in entries() for alias in known.aliases}
        datasets = [aliases.get(name, name) for name in datasets]
        check_names(datasets, [known.name for known in self.datasets], "a data set of the table")
        check_names(models, [known.name for known in self.models], "a model of the table")
        return replace(
            self,
            datasets=tuple(known for known in self.datasets if not datasets or known.name in datasets),
            models=tuple(
                known for known in self.models if known.name in models or not (models or known.on_request)
            ),
        )

    def figure(self, dataset: str, model: str, metric: str) -> tuple[float, Published] | None:
        """Return a published figure with where it stands, or None.

        Parameters
        ----------
        dataset
            Name of the data set.
        model
            Name of the model among the published ones.
        metric
            Name of the metric.

        Examples
        --------
        >>> Grid.of("tpp").figure("taxi", "THP", "loglik_per_event")[0]
        0.372
        """
        for table in self.published:
            value = table.figures.get(dataset, {}).get(model)
            if value is not None and metric in (table.metric, *table.also):
                return float(value), table
        return None

    def others(self, dataset: str) -> list[str]:
        """Return the published models of a data set that no model of the grid stands for.

        Parameters
        ----------
        dataset
            Name of the data set.
        """
        ours = {model.published for model in self.models}
        names = [name for table in self.published for name in table.figures.get(dataset, {})]
        return [name for name in dict.fromkeys(names) if name not in ours]


def _row(kind: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """Return one of the dataclasses above; refuse unknown and missing keys."""
    check_names(values, [known.name for known in fields(kind)], f"a key of {where}")
    missing = _missing(kind, values)
    if missing:
        raise ParameterError(f"{where} lacks the key {missing[0]!r} of {kind.__name__}.")
    return kind(**values)


def _missing(kind: type[Any], values: Iterable[str]) -> list[str]:
    return [
        known.name
        for known in fields(kind)
        if known.name not in values and known.default is MISSING and known.default_factory is MISSING
    ]


def nouns() -> list[str]:
    """Return the tables that come with the package.

    Examples
    --------
    >>> nouns()
    ['rec', 'tpp', 'uea']
    """
    return sorted(path.parent.name for path in resource("datasets").glob("*/reproduce.toml"))
