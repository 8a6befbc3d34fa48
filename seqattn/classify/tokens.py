"""From series to tokens: everything that is learnt of the training data before the network, and its use on new data."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from seqattn.classify.dilated import DilatedShapes
from seqattn.classify.motifs import MotifShapes
from seqattn.classify.series import Scaling, Series
from seqattn.classify.shapes import Matches
from seqattn.classify.values import Intervals
from seqattn.data.panels import Panel

__all__ = ["Recipe", "Tokeniser", "Tokens", "generator"]

KINDS = ("dilated", "motif")
# Statistics of a match: distance, place, share of near windows.
_STATISTICS = 3
# The readout solves an equation of this size at most, and holds this many numbers at most.
_LARGEST_SYSTEM = 3000
_MOST_NUMBERS = 2**25


def generator(seed: int, name: str) -> np.random.Generator:
    """Return the source of random draws for one purpose; purposes do not disturb each other.

    Parameters
    ----------
    seed
        Of the whole fit.
    name
        The purpose.
    """
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


@dataclass(frozen=True)
class Tokens:
    """What the network and the readout see of some cases.

    Attributes
    ----------
    shape
        Content of the shape tokens, ``(cases, shapes, features)``.
    shape_span
        Beginning and end of each match as shares of the case's length, ``(cases, shapes, 2)``.
    value
        Content of the value tokens: mean, deviation and slope in units of their training deviations,
        ``(cases, intervals, 3)``.
    share
        Share of points that were there, of each token, shapes first, ``(cases, shapes + intervals)``.
    statistics
        What the readout sees of all shapes: distance, place and share of near windows, ``(cases, all shapes, 3)``.
    """

    shape: np.ndarray
    shape_span: np.ndarray
    value: np.ndarray
    share: np.ndarray
    statistics: np.ndarray

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.share)

    @property
    def observed(self) -> np.ndarray:
        """Which tokens are there, ``(cases, tokens)``."""
        return np.asarray(self.share > 0)

    @property
    def features(self) -> np.ndarray:
        """What the readout reads, ``(cases, features)``."""
        return np.concatenate([part.reshape(len(self), -1) for part in (self.statistics, self.value)], axis=1)


@dataclass(frozen=True)
class Recipe:
    """How tokens are made; the attributes are parameters of :class:`seqattn.VSFormerClassifier`.

    Attributes
    ----------
    shapes, window_fractions, motifs_per_cell, match, locality, profile_cap
        Which shapes, and how motifs are found.
    derivatives
        Whether first differences are further channels.
    granularities
        Into how many parts the time axis is cut.
    shape_tokens, value_tokens
        How many tokens of each kind at most.
    tokens
        Which kinds there are.
    readout_shapes
        How many dilated shapes the readout reads.
    max_length
        Points beyond which series are shortened.
    n_members
        How many networks take tokens of their own.
    n_jobs
        Threads of the search for motifs.
    """

    shapes: str
    window_fractions: tuple[float, ...]
    motifs_per_cell: int
    match: str
    locality: float | None
    profile_cap: int
    derivatives: bool
    granularities: tuple[int, ...]
    shape_tokens: int
    value_tokens: int
    tokens: str
    readout_shapes: int
    max_length: int
    n_members: int
    n_jobs: int | None


@dataclass(frozen=True)
class Tokeniser:
    """Everything learnt of the training data before the network.

    Attributes
    ----------
    scaling
        Level, spread and length.
    derivatives
        Whether first differences are further channels.
    shapes
        The shapes: all of them for the readout, the first ones as tokens.
    n_tokens
        How many of them are tokens.
    level, spread
        Training mean and deviation of each shape's statistics, ``(shapes, 3)``.
    intervals
        The intervals.
    """

    scaling: Scaling
    derivatives: bool
    shapes: DilatedShapes | MotifShapes
    n_tokens: int
    level: np.ndarray
    spread: np.ndarray
    intervals: Intervals

    @classmethod
    def learn(
        cls,
        panel: Panel,
        labels: np.ndarray,
        recipe: Recipe,
        seed: int,
        report: Callable[[str], None] | None = None,
    ) -> tuple[Self, Tokens]:
        """Return a tokeniser, and the tokens of the cases that it was learnt of.

        Parameters
        ----------
        panel
            Training cases.
        labels
            Their classes, as numbers from 0.
        recipe
            How tokens are made.
        seed
            Of all draws.
        report
            Told what is being done.
        """
        scaling = Scaling.of(panel, recipe.max_length)
        series, constant = scaling.apply(panel), scaling.is_constant
        if recipe.derivatives:
            series, constant = series.differences(), np.concatenate([constant, constant])
        intervals = Intervals.of(
            series, labels, recipe.granularities, recipe.value_tokens, constant, generator(seed, "permutations")
        )
        shapes = _shapes(series, labels, np.flatnonzero(~constant), recipe, seed, report)
        n_tokens = min(len(shapes), _wanted_tokens(recipe))
        matches, statistics = _matched(shapes, series, n_tokens)
        if isinstance(shapes, DilatedShapes):
            shapes = shapes.weighed(statistics[..., 0], labels)
        level, spread = _moments(statistics)
        learnt = cls(scaling, recipe.derivatives, shapes, n_tokens, level, spread, intervals)
        return learnt, learnt._tokens(series, matches, statistics)

    def __call__(self, panel: Panel) -> Tokens:
        """Return the tokens of cases.

        Parameters
        ----------
        panel
            Any cases with the channels of the training data.
        """
        series = self.series(panel)
        return self._tokens(series, *_matched(self.shapes, series, self.n_tokens))

    def series(self, panel: Panel) -> Series:
        """Return cases as the tokens see them.

        Parameters
        ----------
        panel
            Any cases with the channels of the training data.
        """
        series = self.scaling.apply(panel)
        return series.differences() if self.derivatives else series

    def _tokens(self, series: Series, matches: Matches, statistics: np.ndarray) -> Tokens:
        scaled = np.nan_to_num((statistics - self.level) / self.spread, nan=0.0)
        content = matches.content.copy()
        content[..., -_STATISTICS:] = scaled[:, : self.n_tokens]
        share = np.concatenate([matches.observed, self.intervals.observed(series)], axis=1)
        return Tokens(content, matches.spans, self.intervals.tokens(series), share, scaled)

    @property
    def prior(self) -> np.ndarray:
        """Priors of the tokens, shapes first, each kind in units of its largest."""
        return np.concatenate([_relative(self.shapes.prior[: self.n_tokens]), _relative(self.intervals.prior)])

    @property
    def channel(self) -> np.ndarray:
        """Channel of each token, shapes first; with differences, channel C + c is the difference of channel c."""
        return np.concatenate([self.shapes.channel[: self.n_tokens], self.intervals.channel])

    def label(self, n_classes: int) -> np.ndarray:
        """Return the class of each shape token, and the number of classes for each interval.

        Parameters
        ----------
        n_classes
            Number of classes.
        """
        none = np.full(len(self.intervals), n_classes)
        return np.concatenate([self.shapes.label[: self.n_tokens], none])

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as arrays by name."""
        parts = {"scaling": self.scaling, "shapes": self.shapes, "intervals": self.intervals}
        arrays = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.to_arrays().items()}
        kind = 1 if isinstance(self.shapes, MotifShapes) else 0
        sizes = np.array([self.n_tokens, int(self.derivatives), kind])
        return {**arrays, "level": self.level, "spread": self.spread, "sizes": sizes}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Return what :meth:`to_arrays` was called on.

        Parameters
        ----------
        arrays
            What it returned.
        """
        n_tokens, derivatives, kind = (int(size) for size in arrays["sizes"])
        return cls(
            scaling=Scaling.from_arrays(_below(arrays, "scaling.")),
            derivatives=bool(derivatives),
            shapes=(MotifShapes if kind else DilatedShapes).from_arrays(_below(arrays, "shapes.")),
            n_tokens=n_tokens,
            level=arrays["level"],
            spread=arrays["spread"],
            intervals=Intervals.from_arrays(_below(arrays, "intervals.")),
        )


def _below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _wanted_tokens(recipe: Recipe) -> int:
    """Return the number of shapes that become tokens; members have their own where shapes are drawn."""
    if recipe.tokens == "value":
        return 0
    return recipe.shape_tokens * (recipe.n_members if recipe.shapes == "dilated" else 1)


def _shapes(
    series: Series,
    labels: np.ndarray,
    channels: np.ndarray,
    recipe: Recipe,
    seed: int,
    report: Callable[[str], None] | None,
) -> DilatedShapes | MotifShapes:
    """Find or draw the shapes; without a channel that changes there are none."""
    rng, n_classes = generator(seed, "shapes"), int(labels.max()) + 1
    if recipe.shapes == "motif" and len(channels) and recipe.tokens != "value":
        return MotifShapes.find(
            series,
            labels,
            n_classes,
            window_fractions=recipe.window_fractions,
            motifs_per_cell=recipe.motifs_per_cell,
            match=recipe.match,
            locality=recipe.locality,
            profile_cap=recipe.profile_cap,
            shape_tokens=recipe.shape_tokens,
            is_constant=np.isin(np.arange(series.n_channels), channels, invert=True),
            rng=rng,
            n_jobs=recipe.n_jobs,
            report=report,
        )
    n_shapes = max(_wanted_tokens(recipe), _readable(len(series), recipe.readout_shapes)) if len(channels) else 0
    if report is not None:
        report(f"{n_shapes:,} dilated shapes in {len(series):,} cases")
    return DilatedShapes.draw(series, labels, n_shapes, channels, rng)


def _readable(n_cases: int, wanted: int) -> int:
    """Return how many shapes the readout takes, so that time and memory stay within bounds."""
    by_memory = _MOST_NUMBERS // (_STATISTICS * n_cases)
    by_time = wanted if n_cases <= _LARGEST_SYSTEM else _LARGEST_SYSTEM // _STATISTICS
    return max(min(wanted, by_memory, by_time), 0)


def _matched(
    shapes: DilatedShapes | MotifShapes, series: Series, n_tokens: int
) -> tuple[Matches, np.ndarray]:
    """Return the matches of the shapes that are tokens, and the statistics of all; NaN where nothing was observed."""
    if isinstance(shapes, DilatedShapes):
        return shapes.match(series, n_tokens)
    matches = shapes.match(series)
    statistics = np.where(matches.observed[..., None] > 0, matches.content[..., -_STATISTICS:], np.nan)
    return matches, statistics


def _moments(statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation over cases; 0 and 1 where nothing was observed or nothing changes."""
    there = np.isfinite(statistics)
    counts = np.maximum(there.sum(axis=0), 1)
    level = np.where(there, statistics, 0.0).sum(axis=0) / counts
    spread = np.sqrt(np.where(there, (statistics - level) ** 2, 0.0).sum(axis=0) / counts)
    return level, np.where(spread > 1e-9, spread, 1.0)


def _relative(prior: np.ndarray) -> np.ndarray:
    highest = prior.max(initial=0.0)
    return prior / highest if highest > 0 else prior
