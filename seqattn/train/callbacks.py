"""Observers of a fit: progress on a screen, a log in a file, and scikit-learn's callbacks."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from seqattn.train.history import History
from seqattn.train.loop import Observer
from seqattn.train.settings import FitSettings

try:
    from sklearn.callback import CallbackSupportMixin as CallbackSupport
    from sklearn.callback import with_callbacks
except ImportError:  # scikit-learn before 1.9

    class CallbackSupport:  # type: ignore[no-redef]
        """Base class of estimators that accept scikit-learn's callbacks; this scikit-learn has none."""

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method as it is: this scikit-learn has no callbacks to close after it."""
        return method


__all__ = ["CallbackSupport", "JsonLog", "Observer", "Progress", "ScikitLearnCallbacks", "with_callbacks"]


@runtime_checkable
class _Stream(Protocol):
    def write(self, text: str, /) -> Any: ...
    def flush(self) -> Any: ...
    def isatty(self) -> bool: ...


class Progress(Observer):
    """An observer that tells a person how far training is.

    On a terminal one line is kept up to date; elsewhere each epoch writes a line.

    Parameters
    ----------
    stream
        A text stream to write to; None takes the standard error stream.
    """

    def __init__(self, stream: _Stream | None = None) -> None:
        self._stream = stream
        self._epochs = 0
        self._seconds: list[float] = []
        self._best: tuple[float, int] | None = None

    def begin(self, settings: FitSettings) -> None:
        self._epochs = settings.epochs
        self._seconds = []
        self._best = None

    def epoch(self, record: dict[str, Any]) -> None:
        self._seconds.append(record["seconds"])
        if record["valid_loss"] is not None:
            latest = (record["valid_loss"], record["epoch"])
            self._best = latest if self._best is None else min(self._best, latest)
        text = "  ".join(self._parts(record))
        if self._is_terminal():
            # A line that wraps could not be overwritten.
            text = f"\r{text[: shutil.get_terminal_size().columns - 1]}\x1b[K"
        self._write(text if self._is_terminal() else f"{text}\n")

    def end(self, history: History) -> None:
        if self._is_terminal() and self._seconds:
            self._write("\n")
        if self._seconds and history.stopped_early:
            text = f"stopped after epoch {len(history.records)} of {self._epochs}"
            best = history.best_epoch
            self._write(f"{text}\n" if best is None else f"{text}; the weights are those of epoch {best}\n")

    def _parts(self, record: Mapping[str, Any]) -> list[str]:
        width = len(str(self._epochs))
        parts = [f"epoch {record['epoch']:{width}d}/{self._epochs}", f"train {record['train_loss']:.4f}"]
        if self._best is not None:
            if record["valid_loss"] is not None:
                parts.append(f"valid {record['valid_loss']:.4f}")
            parts.append(f"best {self._best[0]:.4f} (epoch {self._best[1]})")
        parts.append(f"{record['items_per_second']:,.0f} items/s")
        left = sum(self._seconds) / len(self._seconds) * (self._epochs - record["epoch"])
        return [*parts, f"{_clock(left)} left"] if left else parts

    def _is_terminal(self) -> bool:
        return (self._stream or sys.stderr).isatty()

    def _write(self, text: str) -> None:
        stream = self._stream or sys.stderr
        stream.write(text)
        stream.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class JsonLog(Observer):
    """An observer that keeps one line of JSON per epoch in a file.

    A resumed fit goes on in the same file: lines of epochs that are trained again are replaced, so that each
    epoch has one line. A new fit begins the file anew.

    Parameters
    ----------
    path
        The file; missing parent folders are made.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._is_cut = False

    def begin(self, settings: FitSettings) -> None:
        self._is_cut = False

    def epoch(self, record: dict[str, Any]) -> None:
        if not self._is_cut:
            self._cut(_place(record))
            self._is_cut = True
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def end(self, history: History) -> None:
        self._is_cut = False

    def _cut(self, place: tuple[float, float]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        kept = [line for line in lines if _place_of(line) < place]
        self._path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _place(record: Mapping[str, Any]) -> tuple[float, float]:
    """Return what lines are ordered by: module and epoch."""
    return float(record.get("member", 0)), float(record["epoch"])


def _place_of(line: str) -> tuple[float, float]:
    """The place of a line; infinite for one that a kill left unfinished, since its epoch is trained again."""
    try:
        return _place(json.loads(line))
    except (ValueError, LookupError, TypeError, AttributeError):
        return math.inf, math.inf


class ScikitLearnCallbacks(Observer):
    """An observer that runs the callbacks of a scikit-learn estimator, one task per epoch.

    ``fit`` is the root task and each epoch a task within it. A callback that returns True at the end of an epoch
    stops training. With a scikit-learn before 1.9, or an estimator without callbacks, nothing happens.

    Parameters
    ----------
    estimator
        The estimator being fitted; its class derives from `CallbackSupport`, and its ``fit`` is decorated by
        `with_callbacks`, which closes the callbacks.
    X, y
        What the callbacks are shown as training data.
    metadata
        What ``fit`` was given besides, for example ``{"sample_weight": weights}``.
    fitted
        Returns the fitted attributes with which a copy of the estimator can predict as if training had stopped
        now, for example ``lambda: {"module_": copy.deepcopy(module)}``. Only called if a callback asks for
        ``fitted_estimator``, which then also has, as ``history_``, the epochs since training began or was resumed.

    Notes
    -----
    At the end of an epoch callbacks get ``metadata`` together with the epoch's record. If ``y`` is given they get
    ``metadata`` alone, since scikit-learn's ``ScoringMonitor`` passes it on to the scorer as keyword arguments;
    the record is then found in ``fitted_estimator.history_``.
    """

    def __init__(
        self,
        estimator: Any,
        X: Any = None,
        y: Any = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        fitted: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        self._estimator = estimator
        self._data = {"estimator": estimator, "X": X, "y": y}
        self._metadata = dict(metadata or {})
        self._fitted = fitted
        self._history = History()
        self._root: Any = None
        self._task: Any = None

    def begin(self, settings: FitSettings) -> None:
        if hasattr(self._estimator, "_init_callback_context"):
            self._root = self._estimator._init_callback_context(max_subtasks=settings.epochs)
            self._root.call_on_fit_task_begin(**self._data, metadata=self._metadata)

    def begin_epoch(self, number: int) -> None:
        """Open the task of an epoch.

        Parameters
        ----------
        number
            The epoch, from 1.
        """
        if self._root is not None:
            self._task = self._root.subcontext(task_name="epoch")
            self._task.call_on_fit_task_begin(**self._data, metadata=self._metadata)

    def epoch(self, record: dict[str, Any]) -> bool:
        if self._root is None:
            return False
        self._history.add(record)
        return bool(self._close(self._task, record))

    def end(self, history: History) -> None:
        if self._root is not None:
            self._history = history
            self._close(self._root, {})

    def _close(self, task: Any, record: Mapping[str, Any]) -> Any:
        metadata = {**self._metadata, **record} if self._data["y"] is None else self._metadata
        return task.call_on_fit_task_end(
            **self._data, metadata=metadata, reconstruction_attributes=self._attributes
        )

    def _attributes(self) -> dict[str, Any] | None:
        if self._fitted is None:
            return None
        return {"history_": History.from_json(self._history.to_json()), **self._fitted()}
