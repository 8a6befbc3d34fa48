"""Events as they come: intensity, forecast and surprise of one growing sequence, at a constant cost per event."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from seqattn.data.clock import Clock, clock_of, moment
from seqattn.data.labels import label_list
from seqattn.data.sequences import Sequences
from seqattn.data.table import column_of
from seqattn.errors import ArtifactError, DataError, ParameterError
from seqattn.hawkes.forecast import next_event
from seqattn.hawkes.intensity import Intensity
from seqattn.hawkes.reading import EventEstimator
from seqattn.hawkes.tables import check_levels, float_times, forecast_columns, forecast_frame
from seqattn.train.artifact import encode_label, load_artifact, save_artifact

if TYPE_CHECKING:
    from seqattn.hawkes.process import PointProcess


class Stream:
    """One growing sequence of a fitted process, made by :meth:`seqattn.hawkes.SAHP.stream`.

    Parameters
    ----------
    model
        The fitted process; not to be fitted again while the stream is in use.
    start
        Beginning of the window, number or datetime. ``None``: the first event is the beginning; it is then history
        and has no surprise.

    Attributes
    ----------
    n_events
        Events pushed so far.
    last
        Time of the last event in the user's unit, or of the beginning; None before both.

    Examples
    --------
    >>> from seqattn import PoissonProcess
    >>> model = PoissonProcess(window=(0.0, 10.0)).fit([([1.0, 2.0, 7.0], ["a", "b", "a"])])
    >>> stream = model.stream(start=0.0)
    >>> round(float(stream.push(2.0, "a")[0]), 4)  # 0.3 * 2 - log 0.2
    2.2094
    >>> stream.intensity(2.5).tolist()
    [0.2, 0.1]
    """

    def __init__(self, model: PointProcess, start: Any = None) -> None:
        check_is_fitted(model, "labels_")
        self._model = model
        self._codes = {label: code for code, label in enumerate(model.labels_)}
        self._clock: Clock | None = None
        self._histories: Any = None
        self._time = np.nan
        self.n_events = 0
        if start is not None:
            self._begin(start)

    def __repr__(self) -> str:
        return f"Stream({type(self._model).__name__}, {self.n_events:,} events, last={self.last!r})"

    @property
    def last(self) -> Any:
        """Time of the last event in the user's unit, or of the beginning; None before both."""
        return None if self._clock is None or np.isnan(self._time) else self._clock.series([self._time])[0]

    def push(self, t: Any, k: Any) -> NDArray[np.float64]:
        r"""Take up events and return the surprise of each: :math:`\int\lambda - \log\lambda_k(t)` since the last one.

        Parameters
        ----------
        t
            Time of one event, or of many in order; numbers, or datetimes as the training data had.
        k
            Its type, or as many types as times.

        Returns
        -------
        Nats per event, in the user's time unit; the sum is the negative log-likelihood up to the last event. The
        first event of a stream without ``start`` has nan.

        Raises
        ------
        DataError
            A time lies before the one before it, is missing, or a type is unknown. Nothing is then taken up.
        ParameterError
            There are not as many types as times. Nothing is then taken up.
        """
        if _is_many(t) and not len(t) and _is_many(k) and not len(k):
            return np.zeros(0)
        times, clock = self._times(t)
        codes = self._checked(times, _kinds(t, k), clock)
        self._clock = clock
        surprises = np.full(len(times), np.nan)
        for place, (time, code) in enumerate(zip(times, codes, strict=True)):
            surprises[place] = self._take(float(time), code)
        return surprises

    def intensity(self, t: Any = None) -> NDArray[np.float64]:
        """Return the intensity of each type at a time from the last event on, as long as nothing has happened since.

        Parameters
        ----------
        t
            The time; None for just after the last event.

        Returns
        -------
        Events per time unit of the user, of shape (types,), in the order of ``labels_``.
        """
        waited = self._waited(t)
        rates = self._state().rates(waited[:, None])[0, 0]
        return rates.double().cpu().numpy() / self._model.scale_

    def next_event(self, now: Any = None, quantiles: Iterable[float] = ()) -> pl.DataFrame:
        """Forecast the next event.

        Parameters
        ----------
        now
            Time up to which nothing has happened; None for the time of the last event.
        quantiles
            Levels in (0, 1) of which the times are added as columns ``t_q<level>``.

        Returns
        -------
        A table with one row: ``t_mean``, ``t_median``, ``k``, ``p`` and what was asked for, as
        :meth:`seqattn.hawkes.SAHP.predict_next` gives them.
        """
        levels = check_levels(tuple(quantiles))
        waited = self._waited(now)
        at = np.array([self._time + float(waited[0]) * self._model.scale_])
        answer = next_event(self._state().shift(waited), levels)
        columns = forecast_columns(answer, at, self._model.scale_, levels)
        return forecast_frame(self._as_sequences(), np.array([0]), columns).drop("seq_id")

    def save(self, path: str | Path) -> Path:
        """Write the state of the stream to one file, to go on with :meth:`resume` later or elsewhere.

        Parameters
        ----------
        path
            File to write.
        """
        clock = self._clock
        tensors = {} if self._histories is None else self._histories.tensors()
        zero = None if clock is None or clock.zero is None else str(clock.zero)
        facts = {
            "model": type(self._model).__name__,
            "digest": _digest(self._model),
            "n_events": self.n_events,
            "time": self._time,
            "begun": clock is not None,
            "unit": None if clock is None else clock.unit,
            "zero": zero,
            "resolution": None if clock is None else clock.resolution,
            "time_zone": None if clock is None else clock.time_zone,
        }
        return save_artifact(path, "Stream", tensors, facts)

    def resume(self, path: str | Path) -> Self:
        """Go on where :meth:`save` left off, and return the stream.

        Parameters
        ----------
        path
            The file.

        Raises
        ------
        ArtifactError
            The file holds no stream, or one of another model.
        """
        artifact = load_artifact(path)
        facts = artifact.metadata
        if artifact.kind != "Stream":
            raise ArtifactError(
                f"{str(path)!r} holds a {artifact.kind}, not a stream. Use seqattn.load for it."
            )
        if facts["digest"] != _digest(self._model):
            raise ArtifactError(
                f"{str(path)!r} is a stream of another model ({facts['model']}) or another fit of it. "
                "Resume it with the very model it was made with, or one opened from its file."
            )
        self.n_events, self._time = facts["n_events"], facts["time"]
        self._clock = self._histories = None
        if facts["begun"]:
            zero = None if facts["zero"] is None else np.datetime64(facts["zero"], facts["resolution"])
            self._clock = Clock(facts["unit"], zero, facts["time_zone"])
            self._histories = self._model._histories(self._as_sequences())
            self._histories.restore(artifact.tensors)
        return self

    # Inside

    def _begin(self, start: Any) -> None:
        self._clock = self._model._clock_at(start)
        self._time = moment(start, self._clock, "start")
        if not np.isfinite(self._time):
            raise DataError(f"start={start!r} is missing or infinite. Give the beginning of the window.")
        self._histories = self._model._histories(self._as_sequences())

    def _as_sequences(self) -> Sequences:
        """Return one window without events that begins at the last time."""
        clock, at = self._begun_clock(), np.array([self._time])
        return Sequences(
            times=np.zeros(0),
            types=np.zeros(0),
            offsets=np.zeros(2),
            start=at,
            end=at,
            context=np.zeros(1),
            ids=np.zeros(1, dtype=np.int64),
            labels=self._model.labels_,
            unit=clock.unit,
            zero=clock.zero,
            time_zone=clock.time_zone,
        )

    def _begun_clock(self) -> Clock:
        if self._clock is None:
            raise DataError("The stream has no beginning yet. Push an event, or make it with start=.")
        return self._clock

    def _times(self, t: Any) -> tuple[NDArray[np.float64], Clock]:
        """Return times with their clock, which begins with the first of them if it has not begun."""
        if self._clock is None:
            many = t if _is_many(t) else np.asarray([t]) if isinstance(t, np.generic) else [t]
            if not len(many):
                return np.zeros(0), Clock()
            column = column_of("t", many)
            first = clock_of(column.cast(pl.Datetime("us")) if column.dtype == pl.Date else column)
            if first.unit != self._model.unit_:
                wanted = "dates" if self._model.unit_ else "numbers"
                raise DataError(
                    f"t={t!r} does not fit the model, which was fitted to {wanted}. Give {wanted}."
                )
            return float_times(first, t, "t"), first
        return float_times(self._clock, t, "t"), self._clock

    def _checked(self, times: NDArray[np.float64], kinds: list[Any], clock: Clock) -> list[int]:
        if len(kinds) != len(times):
            raise ParameterError(f"k holds {len(kinds)} types for {len(times)} times. Give one each.")
        if not np.isfinite(times).all():
            raise DataError(
                f"Time {int(np.flatnonzero(~np.isfinite(times))[0])} of the burst is missing or infinite."
            )
        before = np.concatenate([[-np.inf if np.isnan(self._time) else self._time], times[:-1]])
        late = np.flatnonzero(times < before)
        if len(late):
            place = int(late[0])
            raise DataError(
                f"Event {place} of the burst, at {clock.show(times[place])}, lies before the event before it, at "
                f"{clock.show(before[place])}. Push events in the order of their times."
            )
        return [self._code(kind) for kind in kinds]

    def _code(self, kind: Any) -> int:
        try:
            return self._codes[kind]
        except (KeyError, TypeError):  # unknown, or nothing that could be a label
            raise DataError(
                f"Type {kind!r} was not in the training data. Types: {label_list(self._model.labels_)}."
            ) from None

    def _take(self, time: float, code: int) -> float:
        surprise = np.nan
        if self._histories is None:
            self._time = time
            self._histories = self._model._histories(self._as_sequences())
        else:
            surprise = self._surprise(time, code)
        place = self._state().floor().device
        self._histories.add(self._in_model_units(time).to(place), torch.tensor([code], device=place))
        self._time = time
        self.n_events += 1
        return surprise

    def _surprise(self, time: float, code: int) -> float:
        state = self._state()
        gap = self._in_model_units(time).to(state.floor())
        kind = torch.tensor([code], device=gap.device)
        gain = float(state.log_rate(gap, kind)[0].double()) - np.log(self._model.scale_)
        return float(state.compensator(gap)[0].double()) - gain

    def _state(self) -> Intensity:
        self._begun_clock()
        return self._histories.intensity

    def _waited(self, now: Any) -> torch.Tensor:
        """Return the time since the last event in model units."""
        clock = self._begun_clock()
        at = self._time if now is None else moment(now, clock, "now")
        if not np.isfinite(at):
            raise DataError(f"Time {now!r} is missing or infinite. Give a finite one.")
        if at < self._time:
            raise DataError(f"Time {now!r} is before the last event, at {self.last!r}. Ask for a later one.")
        return self._in_model_units(at).to(self._state().floor())

    def _in_model_units(self, at: float) -> torch.Tensor:
        """Return the time since the last event in float64."""
        return torch.tensor([(at - self._time) / self._model.scale_], dtype=torch.float64)


class Streaming(EventEstimator):
    """A point process that is told of events as they come."""

    def stream(self, start: Any = None) -> Stream:
        """Return an empty stream: events go in one by one or in bursts, intensities and forecasts come out.

        Parameters
        ----------
        start
            Beginning of the window, number or datetime; ``None``: the first event is the beginning.

        Returns
        -------
        A :class:`Stream`. Its memory and its time per event do not grow if the model has ``max_context``; otherwise
        the keys and values of all events are kept, since all of them count.

        Notes
        -----
        What comes out equals the methods on whole sequences to about 1e-5 (float32).
        """
        return Stream(self, start)


def _is_many(t: Any) -> bool:
    return isinstance(t, pl.Series) or (np.ndim(t) > 0 and not isinstance(t, str))


def _kinds(t: Any, k: Any) -> list[Any]:
    """Return the types that belong to one time or to many."""
    if not _is_many(t):
        return [k]
    return list(k) if isinstance(k, pl.Series) or (np.ndim(k) > 0 and not isinstance(k, str)) else [k]


def _digest(model: PointProcess) -> str:
    """Return a SHA-256 of what the model has learned."""
    sha = hashlib.sha256(type(model).__name__.encode())
    facts = ([encode_label(label) for label in model.labels_], model.unit_, model.scale_)
    tensors, metadata = model._export()
    sha.update(repr((*facts, metadata["fitted"])).encode())
    for name, value in sorted(tensors.items()):
        array = np.ascontiguousarray(torch.as_tensor(value).cpu().numpy())
        sha.update(f"{name}:{array.dtype}:{array.shape};".encode())
        sha.update(array.data)
    return sha.hexdigest()
