"""From series to tokens: everything that is learnt of the training data before the network, and its use on new data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from seqattn.classify.dilated import DilatedShapes
from seqattn.classify.members import chosen_intervals, joined, left_out_by, member_shapes, weighed
from seqattn.classify.motifs import MotifShapes
from seqattn.classify.recipe import Recipe, generator
from seqattn.classify.series import Scaling, Series
from seqattn.classify.shapes import Matches
from seqattn.classify.values import Intervals
from seqattn.data.panels import Panel

__all__ = ["Tokeniser", "Tokens"]

# Statistics of a match: distance, place, share of near windows.
_STATISTICS = 3
# Most channels of a shape that only the readout sees, and how many share their windows.
_MOST_CHANNELS = 9
_TOGETHER = 64
# The readout solves an equation of this size at most, and holds this many numbers at most.
_LARGEST_SYSTEM = 3000
_MOST_NUMBERS = 2**25


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
    families
        What the readout reads, by family of features: ``(cases, features)`` each.
    """

    shape: np.ndarray
    shape_span: np.ndarray
    value: np.ndarray
    share: np.ndarray
    families: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.share)

    def select(self, rows: np.ndarray) -> Tokens:
        """Return the tokens of some cases.

        Parameters
        ----------
        rows
            Their numbers.
        """
        families = tuple(part[rows] for part in self.families)
        return Tokens(self.shape[rows], self.shape_span[rows], self.value[rows], self.share[rows], families)

    @property
    def observed(self) -> np.ndarray:
        """Which tokens are there, ``(cases, tokens)``."""
        return np.asarray(self.share > 0)


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
        The shapes that are tokens.
    level, spread
        Training mean and deviation of their statistics, ``(shapes, 3)``.
    intervals
        All intervals.
    chosen, chosen_prior
        Which of them are tokens, member by member, and their priors.
    sizes
        How many shape tokens and value tokens each member has, ``(members, 2)``.
    banks
        Further dilated shapes for the readout, one family each.
    bank_levels
        Training means of their statistics, in place of what is missing.
    """

    scaling: Scaling
    derivatives: bool
    shapes: DilatedShapes | MotifShapes
    level: np.ndarray
    spread: np.ndarray
    intervals: Intervals
    chosen: np.ndarray
    chosen_prior: np.ndarray
    sizes: np.ndarray
    banks: tuple[DilatedShapes, ...]
    bank_levels: tuple[np.ndarray, ...]

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
        channels = np.flatnonzero(~constant)
        intervals = Intervals.of(
            series, labels, recipe.granularities, constant, generator(seed, "permutations")
        )
        away = left_out_by(labels, recipe.n_members, generator(seed, "parts"))
        parts = member_shapes(series, labels, channels, recipe, seed, away, report)
        shapes, n_shapes = joined(parts), [len(part) for part in parts]
        matches, statistics = _matched(shapes, series)
        if isinstance(shapes, DilatedShapes):
            shapes = weighed(shapes, n_shapes, statistics[..., 0], labels, away)
        rngs = [generator(seed, f"permutations {member}") for member in range(recipe.n_members)]
        most = 0 if recipe.tokens == "shape" else recipe.value_tokens
        chosen = chosen_intervals(intervals, series, labels, constant, most, away, rngs)
        level, spread = _moments(statistics)
        banks = _banks(series, labels, channels, scaling.mean.size, recipe, seed, report)
        found = [bank.statistics(series)[0] for bank in banks]
        learnt = cls(
            scaling=scaling,
            derivatives=recipe.derivatives,
            shapes=shapes,
            level=level,
            spread=spread,
            intervals=intervals,
            chosen=np.concatenate([rows for rows, _ in chosen]),
            chosen_prior=np.concatenate([prior for _, prior in chosen]),
            sizes=np.array([[size, len(rows)] for size, (rows, _) in zip(n_shapes, chosen, strict=True)]),
            banks=banks,
            bank_levels=tuple(_moments(values)[0] for values in found),
        )
        return learnt, learnt._tokens(series, matches, statistics, found)

    def __call__(
        self, panel: Panel, families: Collection[int] | None = None, *, has_shapes: bool = True
    ) -> Tokens:
        """Return the tokens of cases.

        Parameters
        ----------
        panel
            Any cases with the channels of the training data.
        families
            Numbers of the families of shapes that are computed; the others have the training means. None for all.
        has_shapes
            Whether the shape tokens are computed, which only the network reads; without, they are as if not there.
        """
        series = self.series(panel)
        found = [
            bank.statistics(series)[0]
            if families is None or number in families
            else np.full((len(series), len(bank), _STATISTICS), np.nan)
            for number, bank in enumerate(self.banks)
        ]
        matched = _matched(self.shapes, series) if has_shapes else _unmatched(len(series), len(self.shapes))
        return self._tokens(series, *matched, found)

    def series(self, panel: Panel) -> Series:
        """Return cases as the tokens see them.

        Parameters
        ----------
        panel
            Any cases with the channels of the training data.
        """
        series = self.scaling.apply(panel)
        return series.differences() if self.derivatives else series

    def _tokens(
        self, series: Series, matches: Matches, statistics: np.ndarray, found: Sequence[np.ndarray]
    ) -> Tokens:
        content = matches.content.copy()
        content[..., -_STATISTICS:] = np.nan_to_num((statistics - self.level) / self.spread, nan=0.0)
        values = self.intervals.tokens(series)
        share = np.concatenate([matches.observed, self.intervals.observed(series)[:, self.chosen]], axis=1)
        families = [
            np.where(np.isfinite(each), each, level).reshape(len(series), -1)
            for each, level in zip(found, self.bank_levels, strict=True)
        ]
        families += [values[:, rows].reshape(len(series), -1) for rows in self.interval_families()]
        return Tokens(content, matches.spans, values[:, self.chosen], share, tuple(families))

    def interval_families(self) -> list[np.ndarray]:
        """Return the intervals that the readout reads, by family: of the channels, and of their differences."""
        is_difference = self.intervals.channel >= len(self.scaling.mean)
        parts = [np.flatnonzero(~is_difference), np.flatnonzero(is_difference)]
        return [rows for rows in parts if len(rows) and len(self.chosen)]

    def report(self) -> dict[str, Any]:
        """Return sizes, and what was capped, as JSON values."""
        return {
            "shape_tokens": len(self.shapes),
            "value_tokens": len(self.chosen),
            "intervals": len(self.intervals),
            "readout_shapes": sum(map(len, self.banks)),
            "longest": self.scaling.length * self.scaling.factor,
            "points_per_mean": self.scaling.factor,
        }

    def digest(self) -> str:
        """Return the SHA-256 of everything that was learnt."""
        digest = hashlib.sha256()
        for name, value in sorted(self.to_arrays().items()):
            digest.update(f"{name} {value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    @property
    def prior(self) -> np.ndarray:
        """Priors of the tokens, shapes first; those of a kind in units of the largest that its member has."""
        kinds = zip((self.shapes.prior, self.chosen_prior), self.sizes.T, strict=True)
        parts = [np.split(prior, np.cumsum(sizes)[:-1]) for prior, sizes in kinds]
        return np.concatenate([_relative(part) for kind in parts for part in kind])

    def own(self, member: int) -> np.ndarray:
        """Return the numbers of the tokens of a member, shapes first.

        Parameters
        ----------
        member
            Its number, from 0.
        """
        ends = np.cumsum(self.sizes, axis=0)
        first, last = ends[member] - self.sizes[member], ends[member]
        values = len(self.shapes) + np.arange(first[1], last[1])
        return np.concatenate([np.arange(first[0], last[0]), values])

    @property
    def channel(self) -> np.ndarray:
        """Channel of each token, shapes first; with differences, channel C + c is the difference of channel c."""
        return np.concatenate([self.shapes.channel, self.intervals.channel[self.chosen]])

    def label(self, n_classes: int) -> np.ndarray:
        """Return the class of each shape token, and the number of classes for each interval.

        Parameters
        ----------
        n_classes
            Number of classes.
        """
        return np.concatenate([self.shapes.label, np.full(len(self.chosen), n_classes)])

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as arrays by name."""
        parts: dict[str, Any] = {"scaling": self.scaling, "shapes": self.shapes, "intervals": self.intervals}
        parts |= {f"banks.{number}": bank for number, bank in enumerate(self.banks)}
        arrays = {
            f"{name}.{key}": value for name, part in parts.items() for key, value in part.to_arrays().items()
        }
        arrays |= {f"bank_levels.{number}": level for number, level in enumerate(self.bank_levels)}
        is_motif = isinstance(self.shapes, MotifShapes)
        kinds = np.array([len(self.banks), int(self.derivatives), int(is_motif)])
        rest = ("level", "spread", "chosen", "chosen_prior", "sizes")
        return {**arrays, **{name: getattr(self, name) for name in rest}, "kinds": kinds}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Return what :meth:`to_arrays` was called on.

        Parameters
        ----------
        arrays
            What it returned.
        """
        n_banks, derivatives, is_motif = (int(kind) for kind in arrays["kinds"])
        return cls(
            scaling=Scaling.from_arrays(_below(arrays, "scaling.")),
            derivatives=bool(derivatives),
            shapes=(MotifShapes if is_motif else DilatedShapes).from_arrays(_below(arrays, "shapes.")),
            level=arrays["level"],
            spread=arrays["spread"],
            intervals=Intervals.from_arrays(_below(arrays, "intervals.")),
            chosen=arrays["chosen"],
            chosen_prior=arrays["chosen_prior"],
            sizes=arrays["sizes"],
            banks=tuple(
                DilatedShapes.from_arrays(_below(arrays, f"banks.{number}.")) for number in range(n_banks)
            ),
            bank_levels=tuple(arrays[f"bank_levels.{number}"] for number in range(n_banks)),
        )


def _below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _banks(
    series: Series,
    labels: np.ndarray,
    channels: np.ndarray,
    n_channels: int,
    recipe: Recipe,
    seed: int,
    report: Callable[[str], None] | None,
) -> tuple[DilatedShapes, ...]:
    """Draw the shapes that only the readout sees: of channels and of differences, normed and not."""
    if recipe.tokens == "value" or not recipe.readout_shapes:
        return ()
    parts = [
        part for part in (channels[channels < n_channels], channels[channels >= n_channels]) if len(part)
    ]
    kinds = [(part, is_normed) for part in parts for is_normed in (True, False)]
    n_shapes = _readable(len(series), recipe.readout_shapes, max(len(kinds), 1))
    if report is not None:
        report(f"{n_shapes * len(kinds):,} further shapes for the readout")
    return tuple(
        DilatedShapes.draw(
            series,
            labels,
            n_shapes,
            part,
            generator(seed, f"bank {number}"),
            most_channels=_MOST_CHANNELS,
            together=_TOGETHER,
            is_normed=is_normed,
        )
        for number, (part, is_normed) in enumerate(kinds)
    )


def _readable(n_cases: int, wanted: int, n_families: int) -> int:
    """Return how many shapes a family of the readout has, so that time and memory stay within bounds."""
    wanted = -(-wanted // n_families)
    by_memory = _MOST_NUMBERS // (_STATISTICS * n_cases * n_families)
    by_time = wanted if n_cases <= _LARGEST_SYSTEM else _LARGEST_SYSTEM // _STATISTICS
    return max(min(wanted, by_memory, by_time), 1)


def _matched(shapes: DilatedShapes | MotifShapes, series: Series) -> tuple[Matches, np.ndarray]:
    """Return the matches of shapes, and their statistics; NaN where nothing was observed."""
    matches = shapes.match(series)
    is_there = matches.observed[..., None] > 0
    return matches, np.where(is_there, matches.content[..., -_STATISTICS:], np.nan)


def _unmatched(n_cases: int, n_shapes: int) -> tuple[Matches, np.ndarray]:
    """Return matches of shapes of which nothing was observed."""
    content = np.zeros((n_cases, n_shapes, _STATISTICS))
    matches = Matches(content, np.zeros((n_cases, n_shapes, 2)), np.zeros((n_cases, n_shapes)))
    return matches, np.full_like(content, np.nan)


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
