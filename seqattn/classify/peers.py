"""Classifiers of aeon as models of the task, to run on the same data and in the same job as ours."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from seqattn.classify.baselines import PanelClassifier
from seqattn.classify.series import Scaling
from seqattn.data.panels import Panel
from seqattn.errors import MissingDependencyError

__all__ = ["MiniRocket", "MultiRocketHydra"]


class _Rocket(PanelClassifier):
    """Base of the classifiers by random convolutions, which want series of one length without gaps."""

    # Fewest points that aeon's classifier takes.
    _shortest: int
    random_state: Any
    n_jobs: int

    @abstractmethod
    def _foreign(self, seed: int) -> Any:
        """Return aeon's classifier, not yet fitted."""

    def _learn(self, panel: Panel, codes: NDArray[np.intp]) -> None:
        drawn = self.random_state is None or not isinstance(self.random_state, int | np.integer)
        self.seed_ = int(
            check_random_state(self.random_state).randint(2**31 - 1) if drawn else self.random_state
        )
        self.length_ = max(int(panel.lengths.max()), self._shortest)
        with _alone():
            self.foreign_ = self._foreign(self.seed_).fit(self._block(panel), codes)

    def _probabilities(self, panel: Panel) -> NDArray[np.float64]:
        with _alone():
            return np.asarray(self.foreign_.predict_proba(self._block(panel)), dtype=np.float64)

    def _block(self, panel: Panel) -> NDArray[np.float64]:
        """Return unscaled series of the training data's length: later points are cut, absent ones are the last one."""
        channels = panel.n_channels
        as_given = Scaling(np.zeros(channels), np.ones(channels), np.zeros(channels, bool), 1, self.length_)
        series = as_given.apply(panel)
        # Better than zeros or stretching in cross-validation on the training data: JapaneseVowels 0.985 against 0.978
        # and 0.970 with MiniRocket.
        places = np.minimum(np.arange(self.length_), series.lengths[:, None] - 1)
        return np.take_along_axis(series.values, places[:, None], axis=2)

    def _seed(self) -> int:
        return self.seed_


class MiniRocket(_Rocket):
    """aeon's ``MiniRocketClassifier``: shares of positive values after 9,996 fixed convolutions, and ridge regression.

    Series are taken as they are. Gaps are filled by straight lines; series shorter than the longest of the training
    data, or than 9 points, continue with their last value, and longer ones are cut. Probabilities are 0 and 1.

    Parameters
    ----------
    n_kernels
        Number of features, at least 84.
    class_weight
        Weights of the classes in the ridge regression: None, ``"balanced"`` or a mapping from positions in
        ``classes_``.
    n_jobs
        Threads.
    random_state
        Seed; a saved classifier keeps the one that was used.

    Raises
    ------
    MissingDependencyError
        At fit: aeon is not installed.

    References
    ----------
    Dempster, Schmidt, Webb (2021), MiniRocket: a very fast (almost) deterministic transform for time series
    classification.
    """

    _shortest = 9

    def __init__(
        self, *, n_kernels: int = 10_000, class_weight: Any = None, n_jobs: int = 1, random_state: Any = None
    ) -> None:
        self.n_kernels = n_kernels
        self.class_weight = class_weight
        self.n_jobs = n_jobs
        self.random_state = random_state

    def _foreign(self, seed: int) -> Any:
        return _of_aeon("MiniRocketClassifier")(
            n_kernels=self.n_kernels, class_weight=self.class_weight, n_jobs=self.n_jobs, random_state=seed
        )


class MultiRocketHydra(_Rocket):
    """aeon's ``MultiRocketHydraClassifier``: two sets of random convolutions, and ridge regression.

    Series are brought to one length as in :class:`MiniRocket`, with at least 10 points. Probabilities are 0 and 1.

    Parameters
    ----------
    n_kernels
        Kernels in each group of Hydra.
    n_groups
        Groups of Hydra at each dilation.
    class_weight, n_jobs, random_state
        As in :class:`MiniRocket`.

    Raises
    ------
    MissingDependencyError
        At fit: aeon is not installed.

    References
    ----------
    Dempster, Schmidt, Webb (2023), Hydra: competing convolutional kernels for fast and accurate time series
    classification.
    """

    # With 9 points their first differences, of 8, are too short for a kernel of 9.
    _shortest = 10

    def __init__(
        self,
        *,
        n_kernels: int = 8,
        n_groups: int = 64,
        class_weight: Any = None,
        n_jobs: int = 1,
        random_state: Any = None,
    ) -> None:
        self.n_kernels = n_kernels
        self.n_groups = n_groups
        self.class_weight = class_weight
        self.n_jobs = n_jobs
        self.random_state = random_state

    def _foreign(self, seed: int) -> Any:
        return _of_aeon("MultiRocketHydraClassifier")(
            n_kernels=self.n_kernels,
            n_groups=self.n_groups,
            class_weight=self.class_weight,
            n_jobs=self.n_jobs,
            random_state=seed,
        )


def _of_aeon(name: str) -> Any:
    try:
        from aeon.classification import convolution_based
    except ImportError as error:
        raise MissingDependencyError(f"{name} is part of aeon: pip install 'seqattn[aeon]'.") from error
    return getattr(convolution_based, name)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep what aeon sets for the whole process as it was: seeds of numpy and torch, and torch's threads."""
    state, threads = np.random.get_state(), torch.get_num_threads()  # noqa: NPY002 - aeon seeds this very generator
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
        torch.set_num_threads(threads)
