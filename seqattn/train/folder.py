"""The folder of a training run: what was run, where it stands, the model and its figures."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from seqattn.errors import DataError, ParameterError
from seqattn.train.callbacks import JsonLog
from seqattn.train.config import Run, json_ready
from seqattn.train.distributed import processes
from seqattn.train.history import History
from seqattn.train.loop import Observer
from seqattn.train.settings import FitSettings

__all__ = ["Afterwards", "RunFolder", "make_folder", "mend_lines"]

_WORK = ("model.safetensors", "checkpoint.safetensors", "figures.json")
_FILES = (*_WORK, "history.jsonl", "config.toml")


def make_folder(path: str | Path) -> Path:
    """Make a folder with its parents, and check that files can be written into it.

    Parameters
    ----------
    path
        The folder.

    Raises
    ------
    ParameterError
        It cannot be made, or not be written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ParameterError(
            f"Nothing can be written to the folder {str(path)!r}: {error.strerror}. Choose another output folder."
        ) from error
    return folder


def mend_lines(path: Path) -> None:
    """Remove a last line that was only half written, as after a power failure.

    Parameters
    ----------
    path
        A file of whole lines; it need not exist. No other process may write to it meanwhile.
    """
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


class Afterwards(Observer):
    """An observer that calls a function after the last epoch, when what follows may take as long as several.

    Parameters
    ----------
    tell
        The function.
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def begin(self, settings: FitSettings) -> None:
        """Do nothing."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Do nothing."""

    def end(self, history: History) -> None:
        """Call the function."""
        self._tell()


class RunFolder:
    """A folder that holds one run: ``config.toml``, ``history.jsonl``, ``model.safetensors``, ``figures.json``.

    While training lasts there is ``checkpoint.safetensors`` too. The figures come last, so that a folder with them is
    complete. Of several processes the first one reads and writes, and tells the others what it found.

    Parameters
    ----------
    path
        The folder; it is made if it is not there.

    Raises
    ------
    ParameterError
        The folder cannot be written to.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = processes().first(lambda: make_folder(path))
        self.model = self.path / "model.safetensors"
        self.config = self.path / "config.toml"
        self.history = self.path / "history.jsonl"
        self._checkpoint = self.path / "checkpoint.safetensors"
        self._figures = self.path / "figures.json"

    @property
    def has_begun(self) -> bool:
        """Whether there is a checkpoint from which :meth:`fit` goes on."""
        return self._checkpoint.exists()

    def figures(self) -> dict[str, Any] | None:
        """Return the figures of a complete run, None while there are none.

        Raises
        ------
        DataError
            The file is damaged.
        """
        return processes().first(self._read_figures)

    def _read_figures(self) -> dict[str, Any] | None:
        if not (self._figures.exists() and self.model.exists()):
            return None
        try:
            values: dict[str, Any] = json.loads(self._figures.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{str(self._figures)!r} is damaged: {error}. Delete it to go on.") from error
        return values

    def begin(self, run: Run, versions: Mapping[str, str] | None = None, overwrite: bool = False) -> None:
        """Write down what is run; a folder with the same run is left as it is.

        Parameters
        ----------
        run
            What is run.
        versions
            Versions of packages, for the reader.
        overwrite
            Whether another run's files may be removed.

        Raises
        ------
        ParameterError
            The folder holds another run, or a model of unknown origin.
        """
        processes().first(lambda: self._begin(run, versions, overwrite))

    def _begin(self, run: Run, versions: Mapping[str, str] | None, overwrite: bool) -> None:
        there = Run.load(self.config) if self.config.exists() else None
        if there is not None and not run.differences(there):
            return
        taken = [name for name in _WORK if (self.path / name).exists()]
        if taken and not overwrite:
            differences = [] if there is None else run.differences(there)
            why = f"another run (asked for and there: {'; '.join(differences)})" if differences else taken[0]
            raise ParameterError(
                f"The folder {str(self.path)!r} already holds {why}. "
                "Choose another --output, or pass --overwrite to replace it."
            )
        self.clear()
        self.config.write_text(run.to_toml(versions), encoding="utf-8")

    def clear(self) -> None:
        """Remove the run's files."""
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)

    def fit(
        self,
        task: ModuleType,
        model: Any,
        train: Any,
        dev: Any,
        observers: Sequence[Observer] = (),
        watch: Any = None,
    ) -> Any:
        """Fit a model and save it, going on from where an interrupted call stopped.

        Parameters
        ----------
        task
            Module of the task.
        model
            The estimator.
        train, dev
            Training data, and held-out data or None.
        observers
            Told of each epoch.
        watch
            Data that are looked at after each epoch and change nothing, for tasks that can; None for none.

        Returns
        -------
        The fitted estimator.
        """
        watching = [JsonLog(self.history), *observers]
        further = {} if watch is None else {"watch": watch}
        task.fit(model, train, dev, checkpoint=self._checkpoint, observers=watching, **further)
        processes().first(lambda: model.save(self.model))
        return model

    def finish(self, figures: Mapping[str, Any]) -> None:
        """Write the figures and remove the checkpoint: the run is complete.

        Parameters
        ----------
        figures
            What is to be told of the run; numbers that are not finite become null.
        """
        processes().first(lambda: self._finish(figures))

    def _finish(self, figures: Mapping[str, Any]) -> None:
        part = self._figures.with_suffix(".part")
        part.write_text(json.dumps(json_ready(figures), indent=2, allow_nan=False), encoding="utf-8")
        part.replace(self._figures)
        self._checkpoint.unlink(missing_ok=True)
