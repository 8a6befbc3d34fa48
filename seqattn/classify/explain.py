"""What decided: the share of every token in the logits, exactly, where it lies in the series, and tables of tokens."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from sklearn.utils.validation import check_is_fitted

from seqattn.classify.cases import case_batch
from seqattn.classify.dilated import DilatedShapes
from seqattn.classify.motifs import MotifShapes
from seqattn.classify.pictures import draw_explanation, draw_shapes, drawn
from seqattn.classify.predicting import Predicting
from seqattn.classify.reading import number_of_case, require_count
from seqattn.classify.series import Series, known_length
from seqattn.classify.shapes import Matches
from seqattn.classify.tokens import Tokens
from seqattn.classify.values import STATISTICS
from seqattn.errors import DataError, SeqattnWarning, suggest

__all__ = ["Explaining", "Explanation"]


@dataclass(frozen=True)
class Pieces:
    """Things of one kind that a decision adds up: tokens of a network, or shapes or intervals of the readout.

    Attributes
    ----------
    kind
        What they are called in tables.
    number
        Row of each in the table of its kind.
    channels
        Channels of each, as the user counts them, filled up with -1, ``(pieces, most channels)``.
    is_difference
        Whether it lies in the first differences of its channels.
    spans
        Beginning and end in each case as shares of its length, ``(cases, pieces, 2)``.
    contribution
        Share in the logits minus its mean over the training cases, ``(cases, pieces, classes)``.
    prior
        Prior of each; NaN where it has none.
    received
        Mean attention that each token gets from the others of its encoder in each case; NaN outside networks.
    """

    kind: str
    number: np.ndarray
    channels: np.ndarray
    is_difference: np.ndarray
    spans: np.ndarray
    contribution: np.ndarray
    prior: np.ndarray
    received: np.ndarray


@dataclass(frozen=True)
class Explanation:
    """Why cases were classified as they were.

    The logit of a class is a sum over tokens and features, exactly. Each share is given minus its mean over the
    training cases, so that 0 means "as usual". Of a case without any value nothing is known: all its shares are 0.

    Attributes
    ----------
    classes
        The classes.
    target
        For each case, the number of the class whose logit is explained.
    logits
        Logits of all classes, ``(cases, classes)``.
    usual
        Mean logits over the training cases, ``(classes,)``.
    pieces
        What adds up.
    series
        The cases, in the user's units, ``(channels, time)`` each.
    """

    classes: np.ndarray
    target: np.ndarray
    logits: np.ndarray
    usual: np.ndarray
    pieces: tuple[Pieces, ...]
    series: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.target)

    @property
    def difference(self) -> np.ndarray:
        """Logit of the target minus its mean over the training cases: what the contributions sum to, ``(cases,)``."""
        rows = np.arange(len(self))
        return np.asarray(self.logits[rows, self.target] - self.usual[self.target])

    def contribution(self, piece: Pieces) -> np.ndarray:
        """Return the contributions of pieces to the target's logit, ``(cases, pieces)``.

        Parameters
        ----------
        piece
            One of ``pieces``.
        """
        return np.asarray(piece.contribution[np.arange(len(self)), :, self.target])

    def top(self, k: int = 10, case: int | None = None) -> pl.DataFrame:
        """Return what contributed most to the target's logit, either way.

        Parameters
        ----------
        k
            How many rows per case, at least 1.
        case
            Which case, from 0; None for all.

        Returns
        -------
        ``case, target, kind, number, channels, is_difference, start, end, contribution, prior, attention`` by falling
        size of the contribution; start and end in points of the series as given. A case without any value has no row.

        Raises
        ------
        DataError
            There is no such case.
        ParameterError
            ``k`` is not allowed.
        """
        require_count(k)
        cases = range(len(self)) if case is None else [number_of_case(case, len(self), "The explanation")]
        return pl.concat([self._top_of(one, k) for one in cases])

    def _top_of(self, case: int, k: int) -> pl.DataFrame:
        rows = []
        for piece in self.pieces:
            shares = piece.contribution[case, :, self.target[case]]
            largest = np.argsort(-np.abs(shares), kind="stable")[:k].tolist()
            rows += [
                (abs(shares[place]), self._row(piece, case, place, float(shares[place]))) for place in largest
            ]
        rows.sort(key=lambda row: -row[0])
        found = pl.DataFrame([row for _, row in rows[:k]], infer_schema_length=None)
        return found if known_length(self.series[case]) else found.clear()

    def _row(self, piece: Pieces, case: int, place: int, share: float) -> dict[str, Any]:
        start, end = piece.spans[case, place] * known_length(self.series[case])
        own = piece.channels[place]
        return {
            "case": case,
            "target": self.classes.tolist()[self.target[case]],
            "kind": piece.kind,
            "number": int(piece.number[place]),
            "channels": own[own >= 0].tolist(),
            "is_difference": bool(piece.is_difference[place]),
            "start": float(start),
            "end": float(end),
            "contribution": share,
            "prior": float(piece.prior[place]),
            "attention": float(piece.received[case, place]),
        }

    @property
    def map(self) -> np.ndarray:
        """Contributions spread evenly over the points they lie on, ``(cases, channels, time)``; sums to ``difference``.

        Times beyond the last known point of a case hold 0.
        """
        longest = max(values.shape[1] for values in self.series)
        found = np.zeros((len(self), len(self.series[0]), longest))
        for case, values in enumerate(self.series):
            for piece in self.pieces:
                shares = piece.contribution[case, :, self.target[case]]
                length = max(known_length(values), 1)
                _spread(found[case, :, :length], piece, piece.spans[case] * length, shares, length)
        return found


def _spread(found: np.ndarray, piece: Pieces, spans: np.ndarray, shares: np.ndarray, length: int) -> None:
    """Add shares to the points of a case: equal parts for the channels and points of each span."""
    first = np.clip(np.floor(spans[:, 0]).astype(np.int64), 0, length - 1)
    last = np.clip(np.ceil(spans[:, 1]).astype(np.int64), first + 1, length)
    counts = (piece.channels >= 0).sum(axis=1)
    steps = np.zeros((found.shape[0], found.shape[1] + 1))
    height = shares / (counts * (last - first))
    for place in range(piece.channels.shape[1]):
        own = piece.channels[:, place] >= 0
        np.add.at(steps, (piece.channels[own, place], first[own]), height[own])
        np.subtract.at(steps, (piece.channels[own, place], last[own]), height[own])
    found += np.cumsum(steps, axis=1)[:, :-1]


def _nearest(matches: Matches, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each shape the case that comes nearest to it, and the first point of the match there."""
    distances = np.where(matches.observed > 0, matches.content[..., -3], np.inf)
    cases = distances.argmin(axis=0)
    starts = matches.spans[cases, np.arange(len(cases)), 0] * lengths[cases]
    return cases, np.rint(starts).astype(np.int64)


class Explaining(Predicting):
    """The part of the classifier that says what decided."""

    def explain(self, X: Any, target: Any = None) -> Explanation:
        """Return which shapes and which values decided.

        Parameters
        ----------
        X
            Series as in :meth:`predict_proba`.
        target
            Class whose logit is explained; None takes the predicted class of each case.

        Returns
        -------
        Contributions that sum to the logit of the target minus its mean over the training cases, before the
        temperature.

        Raises
        ------
        DataError
            The series cannot be used, the classifier knows one class only, or the target is no class.

        Warns
        -----
        SeqattnWarning
            A case has no value at all, so that nothing is known of it: its logits are the usual ones.
        """
        panel = self._read_new(X)
        if self.tokeniser_ is None:
            raise DataError("The classifier knows one class only, so nothing decided.")
        tokens, series = self.tokeniser_(panel), self.tokeniser_.series(panel)
        empty = ~np.array([bool(known_length(case)) for case in panel.series])
        usual, pieces = self.means_["logits"], self._pieces(tokens, series)
        logits = np.where(empty[:, None], usual, self._logits(tokens))
        if empty.any():
            kept = ~empty[:, None, None]
            pieces = (replace(piece, contribution=piece.contribution * kept) for piece in pieces)
            warnings.warn(
                f"{empty.sum()} case(s) without any value, the first is case {empty.argmax()}: nothing is known.",
                SeqattnWarning,
                stacklevel=2,
            )
        if target is None:
            targets = np.where(empty, self.share_.argmax(), logits.argmax(axis=1))
        else:
            targets = np.full(len(panel), self._code(target, "target"))
        return Explanation(self.classes_, targets, logits, usual, tuple(pieces), panel.series)

    @property
    def shapes_(self) -> pl.DataFrame:
        """The shape tokens: ``id, class, channel, is_difference, source, start, end, prior, inside, outside, weight``.

        Start and end are points of the training case ``source`` (in the order of the fit, sorted by content, after
        shortening); ``weight`` is the mean size of the contribution over training cases and classes.
        """
        tokeniser = self._tokeniser()
        shapes = tokeniser.shapes
        spans = shapes.window if isinstance(shapes, MotifShapes) else shapes.spans
        return pl.DataFrame(
            {
                "id": np.arange(len(shapes)),
                "class": [self.classes_.tolist()[label] for label in shapes.label],
                "channel": shapes.channel % self.n_channels_,
                "is_difference": shapes.channel >= self.n_channels_,
                "source": shapes.source,
                "start": shapes.start * tokeniser.scaling.factor,
                "end": (shapes.start + spans) * tokeniser.scaling.factor,
                "prior": shapes.prior,
                "inside": shapes.inside,
                "outside": shapes.outside,
                "weight": self.means_["shape_weight"],
            }
        )

    @property
    def intervals_(self) -> pl.DataFrame:
        """The intervals: ``id, channel, is_difference, start, end, gain of each statistic, prior, is_token, weight``.

        Start and end are shares of the length; ``weight`` as in ``shapes_``, NaN for those that are no tokens.
        """
        tokeniser = self._tokeniser()
        intervals = tokeniser.intervals
        gains = {f"gain_{name}": intervals.gain[:, place] for place, name in enumerate(STATISTICS)}
        is_token = np.isin(np.arange(len(intervals)), tokeniser.chosen)
        return pl.DataFrame(
            {
                "id": np.arange(len(intervals)),
                "channel": intervals.channel % self.n_channels_,
                "is_difference": intervals.channel >= self.n_channels_,
                "start": intervals.spans[:, 0],
                "end": intervals.spans[:, 1],
                **gains,
                "prior": intervals.prior,
                "is_token": is_token,
                "weight": np.where(is_token, self.means_["interval_weight"], np.nan),
            }
        )

    def plot_shapes(self, class_: Any, path: str | Path, X: Any = None, k: int = 6) -> Path:
        """Draw the shape tokens of a class that weigh most, and save the picture.

        Parameters
        ----------
        class_
            The class from whose cases the shapes were taken.
        path
            File to write; its ending names the form, for example ``.png``, ``.pdf`` or ``.svg``.
        X
            Series as in :meth:`predict_proba`: each shape is drawn on the case that comes nearest to it, with the
            training cases on its own. The classifier keeps no series; None draws the shapes alone, at the place in time
            where they were found.
        k
            How many shapes at most, at least 1.

        Returns
        -------
        The path written.

        Raises
        ------
        DataError
            It is no class, no shape was taken from it, the series cannot be used, or the file cannot be written.
        MissingDependencyError
            matplotlib is not installed.
        ParameterError
            ``k`` is not allowed.
        """
        require_count(k)
        tokeniser, code = self._tokeniser(), self._code(class_, "class_")
        shapes = self.shapes_.filter(pl.Series(tokeniser.shapes.label == code))
        if shapes.is_empty():
            raise DataError(
                f"No shape token was taken from the class {class_!r}, so there is nothing to draw."
            )
        shapes = shapes.sort("weight", "prior", "id", descending=[True, True, False]).head(k)
        series = None if X is None else tokeniser.series(self._read_new(X))
        places = None if series is None else _nearest(tokeniser.shapes.match(series), series.lengths)
        found = []
        for row in shapes.iter_rows(named=True):
            number, case, where = row["id"], None, ""
            if series is not None and places is not None:
                nearest, start = places[0][number], places[1][number]
                values = series.values[nearest, tokeniser.shapes.channel[number], : series.lengths[nearest]]
                case, where = (values, int(start)), f", on case {nearest}"
            title = f"shape {number}{where}\nprior {row['prior']:.2f}, weight {row['weight']:.3f}"
            found.append(drawn(tokeniser.shapes, number, tokeniser.scaling, title, case))
        return draw_shapes(found, path, f"Shapes of class {class_} that weigh most")

    def plot_explanation(self, X: Any, case: int, path: str | Path, target: Any = None) -> Path:
        """Draw one case with the points that spoke for and against a class, and its ten largest contributions.

        Parameters
        ----------
        X
            Series as in :meth:`predict_proba`.
        case
            Which of them, from 0.
        path
            File to write; its ending names the form, as in :meth:`plot_shapes`.
        target
            The class; None takes the predicted one.

        Returns
        -------
        The path written.

        Raises
        ------
        DataError
            As in :meth:`explain`, there is no such case, it has no value at all, or the file cannot be written.
        MissingDependencyError
            matplotlib is not installed.
        """
        panel = self._read_new(X)
        case = number_of_case(case, len(panel), "X")
        if not known_length(panel.series[case]):
            raise DataError(
                f"Case {case} has no value at all, so nothing spoke for a class. Draw another one."
            )
        explanation = self.explain(panel.select([case]), target)
        return draw_explanation(explanation, 0, path, f"case {case}")

    def _code(self, label: Any, name: str) -> int:
        """Return the number of a class."""
        check_is_fitted(self, "classes_")
        labels = self.classes_.tolist()
        if label not in labels:
            raise DataError(
                f"{name}={label!r} is no class. Classes: {labels}.{suggest(str(label), map(str, labels))}"
            )
        return int(labels.index(label))

    def _remember_means(self, tokens: Tokens) -> None:
        """Note mean contributions and logits over the training cases."""
        tokeniser, n_shapes = self._tokeniser(), tokens.shape.shape[1]
        weight, interval_weight = np.zeros(tokens.share.shape[1]), np.zeros(len(tokeniser.intervals))
        self.means_ = {"logits": self._logits(tokens).mean(axis=0)}
        if self.readout_ is not None:
            self.means_["features"] = np.concatenate([part.mean(axis=0) for part in tokens.families])
        for member in range(len(self.modules_)):
            shares = self._network_shares(tokens, member)
            self.means_[f"network.{member}"] = shares.mean(axis=0)
            weight[tokeniser.own(member)] = np.abs(shares - shares.mean(axis=0)).mean(axis=(0, 2))
        np.add.at(interval_weight, tokeniser.chosen, weight[n_shapes:])
        self.means_ |= {"shape_weight": weight[:n_shapes], "interval_weight": interval_weight}
        self.means_["n_classes"] = np.array(len(self.classes_))

    @torch.inference_mode()
    def _network_shares(self, tokens: Tokens, member: int) -> np.ndarray:
        """Return what the tokens of a member add to the logits, ``(cases, tokens, classes)``."""
        module, own = self.modules_[member], self._tokeniser().own(member)
        batch = case_batch(tokens, own, dtype=module.decision.weight.dtype)
        device = module.decision.weight.device
        parts = [
            module.contributions(batch.select(rows).to(device)).double().cpu()
            for rows in torch.arange(len(tokens)).split(64)
        ]
        return np.asarray(self._member_weight() * torch.cat(parts).numpy())

    @torch.inference_mode()
    def _received(self, tokens: Tokens, member: int) -> np.ndarray:
        """Return the mean attention that each token of a member gets, ``(cases, tokens)``."""
        module, own = self.modules_[member], self._tokeniser().own(member)
        batch = case_batch(tokens, own, dtype=module.decision.weight.dtype).to(module.decision.weight.device)
        return np.asarray(module.received(batch).double().cpu().numpy())

    def _pieces(self, tokens: Tokens, series: Series) -> Iterator[Pieces]:
        tokeniser = self._tokeniser()
        channels, spans = tokeniser.channel, tokeniser.intervals.spans
        n_shapes = len(tokeniser.shapes)
        for member in range(len(self.modules_)):
            everything = tokeniser.own(member)
            own, values = everything[everything < n_shapes], everything[everything >= n_shapes]
            intervals = tokeniser.chosen[values - n_shapes]
            value_spans = np.broadcast_to(spans[intervals], (len(tokens), len(intervals), 2))
            shares = self._network_shares(tokens, member) - self.means_[f"network.{member}"]
            received = self._received(tokens, member)
            parts = (
                ("shape", own, own, tokens.shape_span[:, own], slice(0, len(own))),
                ("value", intervals, values, value_spans, slice(len(own), None)),
            )
            for kind, number, place_in_all, where, place in parts:
                yield Pieces(
                    kind=kind,
                    number=number,
                    channels=(channels[place_in_all] % self.n_channels_)[:, None],
                    is_difference=channels[place_in_all] >= self.n_channels_,
                    spans=where,
                    contribution=shares[:, place],
                    prior=tokeniser.prior[place_in_all],
                    received=received[:, place],
                )
        if self.readout_ is not None:
            yield from self._readout_pieces(tokens, series)

    def _readout_pieces(self, tokens: Tokens, series: Series) -> Iterator[Pieces]:
        tokeniser, first = self._tokeniser(), 0
        assert self.readout_ is not None
        groups: list[DilatedShapes | np.ndarray] = [*tokeniser.banks, *tokeniser.interval_families()]
        for number, (group, features) in enumerate(zip(groups, tokens.families, strict=True)):
            size = features.shape[1]
            weights = self.blend_[0] * self.readout_.weights[first : first + size]
            centred = features - self.means_["features"][first : first + size]
            # A shape and an interval have three features each.
            shares = np.einsum(
                "npf,pfc->npc", centred.reshape(len(tokens), -1, 3), weights.reshape(-1, 3, weights.shape[1])
            )
            first += size
            if isinstance(group, DilatedShapes):
                own, spans, kind = group.channels, group.match(series).spans, f"readout shape {number}"
                rows = np.arange(len(group))
            else:
                own = tokeniser.intervals.channel[group][:, None]
                spans = np.broadcast_to(tokeniser.intervals.spans[group], (len(tokens), len(group), 2))
                rows, kind = group, "readout value"
            nothing = np.full((len(tokens), len(rows)), np.nan)
            yield Pieces(
                kind=kind,
                number=rows,
                channels=np.where(own >= 0, own % self.n_channels_, -1),
                is_difference=own[:, 0] >= self.n_channels_,
                spans=spans,
                contribution=shares,
                prior=np.full(len(rows), np.nan),
                received=nothing,
            )
