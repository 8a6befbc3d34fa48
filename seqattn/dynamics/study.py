"""The estimator of a scan-and-snap study, and sweeps over its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

import seqattn
from seqattn.dynamics.classes import SequenceClasses
from seqattn.dynamics.pairwise import NORMS, Examples, Parameters, forward
from seqattn.dynamics.recorder import QUANTITIES, Schedule, known_quantities, record_times
from seqattn.dynamics.result import StudyResult
from seqattn.dynamics.running import Budget, Progress, budget, run_all
from seqattn.dynamics.trainers import OPTIMIZERS, TRAINERS, Plan, Runs
from seqattn.errors import DataError, ParameterError, SeqattnWarning, suggest
from seqattn.train.artifact import Artifact, decode_label, encode_label, save_artifact
from seqattn.train.parameters import decode_parameter, encode_parameters
from seqattn.train.settings import resolve_device, resolve_precision

__all__ = ["RECORDED", "ScanAndSnapStudy"]

RECORDED = tuple(name for name in QUANTITIES if name not in ("f2", "ratio"))


class ScanAndSnapStudy(BaseEstimator):
    r"""Train the one-layer attention model at several rates and seeds, and record who gains and loses attention.

    The model has attention logits :math:`Z` and decoder logits :math:`Y` as free parameters. Class :math:`k` pays the
    attention :math:`c_k = \mathrm{softmax}(\log P_k + z_{\psi(k)})`; the decoder sees it scaled to length 1 and predicts the
    next token from :math:`Y^T f_k`. All runs train in one vectorised call, with gradients written out.

    Parameters
    ----------
    trainer
        ``"sgd"`` samples sequences, ``"batch"`` takes the mean over all classes, ``"flow"`` is the limit of small steps.
    optimizer
        ``"sgd"`` or ``"adam"``; of no meaning to the flow.
    lr_y, lr_z
        Rates of decoder and attention, 0 or more; 0 freezes a part. Arrays of one length give a run for each pair.
        ``lr_y=None`` is 1, or ``ratio * lr_z``.
    ratio
        ``lr_y / lr_z``, in place of ``lr_y``.
    n_steps
        Steps, or length of the flow in steps.
    momentum
        From 0 to below 1, of ``optimizer="sgd"``.
    batch_size
        Sequences per step of ``trainer="sgd"``.
    seq_len
        Tokens of each sampled sequence with its query, at least 2; ``inf`` puts class expectations in their place.
    norm
        ``"l2"`` is the paper's, ``"none"`` or ``"layernorm"``.
    residual
        Whether the query's own token is added before a second norm.
    init
        ``"zero"``, ``"uniform"`` (within one over the root of the number of tokens), or a pair of arrays Y and Z.
    dt
        Step of the flow's fixed fourth-order solver; None for the adaptive one.
    rtol
        Relative error allowed to the adaptive solver.
    n_seeds
        Seeds per pair of rates. Runs with one seed see the same sequences, which pairs comparisons of rates.
    record
        Quantities to record.
    record_at
        ``"log"`` or ``"linear"`` times, or the times themselves; 0 and the end are always recorded.
    n_records
        Most times of ``"log"`` and ``"linear"``.
    n_snapshots
        Times at which every token is recorded.
    top_tokens
        How many tokens snapshots hold, the most frequent ones; None for all.
    n_outputs
        Columns of the decoder; those of the classes by default.
    max_bytes
        Most memory; a study that needs more is refused before it trains.
    precision
        ``"float64"`` or ``"float32"``.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    random_state
        Whole number from which seeds count up; None draws one.

    Attributes
    ----------
    result_
        Trajectories, a :class:`seqattn.dynamics.result.StudyResult`.
    parameters_
        Final logits of all runs.
    classes_
        The data.
    budget_
        What the study was to need.
    n_iter_
        Steps taken.

    Notes
    -----
    Nothing converges here: attention creeps on as the logarithm of time, so no attribute says so. In gradient flow raising
    both rates is only training longer; what rates do at a fixed number of steps comes from finite steps, momentum, start
    and sampling.

    References
    ----------
    Tian, Wang, Chen, Du (2023), Scan and Snap: understanding training dynamics and token composition in 1-layer
    transformer, arXiv 2305.16380.

    Examples
    --------
    >>> from seqattn.dynamics import syn_medium
    >>> study = ScanAndSnapStudy(trainer="flow", lr_y=[1.0, 10.0], n_steps=30, n_records=5)
    >>> study.fit(syn_medium(1)).result_.array("common_mass").shape  # runs, times, classes
    (2, 5, 2)
    """

    def __init__(
        self,
        *,
        trainer: str = "sgd",
        optimizer: str = "sgd",
        lr_y: Any = None,
        lr_z: Any = 1.0,
        ratio: Any = None,
        n_steps: float = 100,
        momentum: float = 0.0,
        batch_size: int = 128,
        seq_len: float = 128,
        norm: str = "l2",
        residual: bool = False,
        init: Any = "zero",
        dt: float | None = None,
        rtol: float = 1e-8,
        n_seeds: int = 1,
        record: Sequence[str] = RECORDED,
        record_at: Any = "log",
        n_records: int = 400,
        n_snapshots: int = 32,
        top_tokens: int | None = None,
        n_outputs: int | None = None,
        max_bytes: float = 1e9,
        precision: str = "float64",
        device: str = "auto",
        random_state: Any = 0,
    ) -> None:
        self.trainer = trainer
        self.optimizer = optimizer
        self.lr_y = lr_y
        self.lr_z = lr_z
        self.ratio = ratio
        self.n_steps = n_steps
        self.momentum = momentum
        self.batch_size = batch_size
        self.seq_len = seq_len
        self.norm = norm
        self.residual = residual
        self.init = init
        self.dt = dt
        self.rtol = rtol
        self.n_seeds = n_seeds
        self.record = record
        self.record_at = record_at
        self.n_records = n_records
        self.n_snapshots = n_snapshots
        self.top_tokens = top_tokens
        self.n_outputs = n_outputs
        self.max_bytes = max_bytes
        self.precision = precision
        self.device = device
        self.random_state = random_state

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        checkpoint: str | Path | None = None,
        observers: Sequence[Callable[[Progress], None]] = (),
    ) -> Self:
        """Train all runs and record them.

        Parameters
        ----------
        X
            Sequence classes.
        y
            Ignored.
        checkpoint
            File that keeps the state every few seconds; an interrupted fit goes on from it to the same bits.
        observers
            Called after each record with a :class:`seqattn.dynamics.running.Progress`.

        Returns
        -------
        The study itself.

        Raises
        ------
        DataError
            The data cannot be used.
        ParameterError
            A parameter is not allowed, or more memory is needed than is allowed.
        """
        classes = self._classes(X)
        runs, plan, schedule = self._runs(), self._plan(), self._schedule(classes)
        self.budget_ = budget(classes, len(runs), plan, schedule, self.max_bytes)
        arrays, self.parameters_ = run_all(
            classes,
            runs,
            plan,
            schedule,
            runs_at_once=self.budget_.runs_at_once,
            observers=tuple(observers),
            checkpoint=None if checkpoint is None else Path(checkpoint),
            identity=self._identity(classes, runs),
        )
        self.classes_ = classes
        self.n_iter_ = float(schedule.times[-1])
        self.result_ = StudyResult(classes, runs, schedule, arrays, self._metadata(classes, runs))
        n_diverged = int(self.result_.is_diverged.sum())
        if n_diverged:
            warnings.warn(
                f"{n_diverged} of {len(runs)} runs diverged; their records end with nan. Lower lr_y or lr_z.",
                SeqattnWarning,
                stacklevel=2,
            )
        return self

    def estimate(self, X: Any) -> Budget:
        """Return what a fit to ``X`` would need, without training.

        Raises
        ------
        ParameterError
            It would need more than ``max_bytes``.
        """
        classes = self._classes(X)
        return budget(classes, len(self._runs()), self._plan(), self._schedule(classes), self.max_bytes)

    def score(self, X: Any = None, y: Any = None) -> float:
        """Return the mean log-probability of the next token, over runs and classes; higher is better.

        Parameters
        ----------
        X
            Sequence classes over the same tokens, queries and outputs; those of the fit by default.
        y
            Ignored.
        """
        check_is_fitted(self, "result_")
        classes = self.classes_ if X is None else self._classes(X)
        examples = Examples.of_classes(classes, self.parameters_.Y.dtype)
        shape = (classes.n_queries, classes.n_tokens, classes.n_outputs)
        own = (self.classes_.n_queries, self.classes_.n_tokens, self.classes_.n_outputs)
        if shape != own:
            raise DataError(f"X has (queries, tokens, outputs) = {shape}, the fit {own}. Give classes of the same sizes.")
        state = forward(self.parameters_, examples, self.norm, self.residual)
        return float((examples.weight * state.log_probability).sum(-1).mean())

    def to_parquet(self, path: str | Path) -> Path:
        """Write all records to a Parquet file, see :meth:`seqattn.dynamics.result.StudyResult.to_parquet`."""
        check_is_fitted(self, "result_")
        return self.result_.to_parquet(path)

    def save(self, path: str | Path) -> Path:
        """Write the fitted study to a file that :func:`seqattn.load` opens, and return its path.

        Raises
        ------
        ArtifactError
            A parameter or token name cannot be written.
        """
        check_is_fitted(self, "result_")
        result, classes = self.result_, self.classes_
        tensors: dict[str, Any] = {f"array/{name}": values for name, values in result.arrays.items()}
        tensors |= {"Y": self.parameters_.Y, "Z": self.parameters_.Z}
        tensors |= {"times": result.times, "snapshots": result.schedule.snapshots, "tokens": result.schedule.tokens}
        tensors |= {f"runs/{name}": getattr(result.runs, name) for name in ("lr_y", "lr_z", "seed")}
        tensors |= {f"P/{name}": getattr(classes.matrix, name) for name in ("data", "indices", "indptr")}
        for name in ("query", "label", "weight", "query_tokens", "label_tokens"):
            if getattr(classes, name) is not None:
                tensors[f"classes/{name}"] = getattr(classes, name)
        metadata = {
            "params": encode_parameters(self.get_params(deep=False)),
            "names": [encode_label(name) for name in classes.token_names],
            "shape": [len(classes), classes.n_tokens, classes.n_outputs, classes.n_queries],
            "quantities": list(result.schedule.quantities),
            "result": dict(result.metadata),
            "budget": vars(self.budget_),
        }
        return save_artifact(path, type(self).__name__, tensors, metadata)

    @classmethod
    def _from_artifact(cls, artifact: Artifact) -> Self:
        params = {name: decode_parameter(value) for name, value in artifact.metadata["params"].items()}
        study, metadata = cls(**params), artifact.metadata
        arrays = {name: values.numpy() for name, values in artifact.tensors.items() if name not in ("Y", "Z")}
        study.classes_ = _classes_of(arrays, metadata)
        schedule = Schedule(
            arrays["times"], arrays["snapshots"], tuple(metadata["quantities"]), arrays["tokens"]
        )
        runs = Runs(*(arrays[f"runs/{name}"] for name in ("lr_y", "lr_z", "seed")))
        records = {name: arrays[f"array/{name}"] for name in schedule.quantities}
        study.result_ = StudyResult(study.classes_, runs, schedule, records, metadata["result"])
        study.parameters_ = Parameters(artifact.tensors["Y"], artifact.tensors["Z"])
        study.budget_ = Budget(**metadata["budget"])
        study.n_iter_ = float(schedule.times[-1])
        return study

    # -- what the parameters mean ------------------------------------------------------------------------------

    def _classes(self, X: Any) -> SequenceClasses:
        if not isinstance(X, SequenceClasses):
            raise TypeError(f"A study takes SequenceClasses, not {type(X).__name__}.")
        if self.n_outputs is None or self.n_outputs == X.n_outputs:
            return X
        return X.with_outputs(self.n_outputs)

    def _runs(self) -> Runs:
        if self.lr_y is not None and self.ratio is not None:
            raise ParameterError("Both lr_y and ratio are given. Give one of them; ratio is lr_y / lr_z.")
        rates = {"lr_z": _rates("lr_z", self.lr_z)}
        given = "ratio" if self.ratio is not None else "lr_y"
        rates[given] = _rates(given, 1.0 if self.lr_y is None and self.ratio is None else getattr(self, given))
        lengths = {name: len(values) for name, values in rates.items()}
        n_rates = max(lengths.values())
        if not set(lengths.values()) <= {1, n_rates}:
            raise ParameterError(f"Rates have different lengths: {lengths}. Give arrays of one length, or single numbers.")
        lr_z, other = (np.broadcast_to(rates[name], n_rates) for name in ("lr_z", given))
        lr_y = other * lr_z if given == "ratio" else other
        n_seeds = _whole("n_seeds", self.n_seeds, 1)
        seeds = self._first_seed() + np.arange(n_seeds)
        return Runs(np.repeat(lr_y, n_seeds), np.repeat(lr_z, n_seeds), np.tile(seeds, n_rates))

    def _first_seed(self) -> int:
        if self.random_state is None:
            return int(np.random.default_rng().integers(2**31))
        if isinstance(self.random_state, np.random.RandomState):
            return int(self.random_state.randint(2**31 - 1))
        return _whole("random_state", self.random_state, 0)

    def _plan(self) -> Plan:
        for name, allowed in (("trainer", TRAINERS), ("optimizer", OPTIMIZERS), ("norm", NORMS)):
            value = getattr(self, name)
            if value not in allowed:
                raise ParameterError(f"{name}={value!r} is not known. Allowed: {', '.join(allowed)}.{suggest(value, allowed)}")
        if isinstance(self.init, str) and self.init not in ("zero", "uniform"):
            raise ParameterError(f"init={self.init!r} is not known. Allowed: 'zero', 'uniform', or a pair of arrays.")
        if not 0 <= self.momentum < 1:
            raise ParameterError(f"momentum={self.momentum!r} is not allowed. Give a number from 0 to below 1.")
        if self.trainer == "flow" and (self.momentum or self.optimizer != "sgd"):
            raise ParameterError("A flow has no momentum and no optimizer. Use trainer='batch' or 'sgd'.")
        for name, value in (("dt", self.dt or 1.0), ("rtol", self.rtol)):
            if not 0 < value < np.inf:
                raise ParameterError(f"{name}={value!r} is not allowed. Give a positive number.")
        if np.isfinite(self.seq_len):
            _whole("seq_len", self.seq_len, 2)
        return Plan(
            trainer=self.trainer,
            optimizer=self.optimizer,
            momentum=self.momentum,
            batch_size=_whole("batch_size", self.batch_size, 1),
            seq_len=self.seq_len,
            norm=self.norm,
            residual=self.residual,
            init=self.init,
            dt=self.dt,
            rtol=self.rtol,
            dtype=resolve_precision(self.precision),
            device=resolve_device(self.device) if self.device != "auto" else torch.device("cpu"),
        )

    def _schedule(self, classes: SequenceClasses) -> Schedule:
        if not 0 < self.n_steps < np.inf:
            raise ParameterError(f"n_steps={self.n_steps!r} is not allowed. Give a positive number.")
        whole = self.trainer != "flow"
        n_steps = _whole("n_steps", self.n_steps, 1) if whole else float(self.n_steps)
        times = record_times(self.record_at, n_steps, _whole("n_records", self.n_records, 2), whole)
        n_snapshots = min(len(times), _whole("n_snapshots", self.n_snapshots, 1))
        snapshots = np.unique(np.round(np.linspace(0, len(times) - 1, n_snapshots)).astype(np.int64))
        snapshots = np.unique(np.r_[snapshots, len(times) - 1])
        frequent = np.argsort(-(classes.weight @ classes.P), kind="stable")[: self.top_tokens]
        return Schedule(times, snapshots, known_quantities(self.record), np.sort(frequent))

    def _identity(self, classes: SequenceClasses, runs: Runs) -> dict[str, Any]:
        params = {name: repr(value) for name, value in self.get_params(deep=False).items()}
        for name in ("device", "max_bytes", "random_state"):
            params.pop(name)
        return params | {"seeds": runs.seed.tolist(), "data": classes.digest()}

    def _metadata(self, classes: SequenceClasses, runs: Runs) -> dict[str, Any]:
        versions = {"seqattn": seqattn.__version__, "torch": torch.__version__, "numpy": np.__version__}
        params = {name: repr(value) for name, value in self.get_params(deep=False).items()}
        return {"versions": versions, "params": params, "seeds": np.unique(runs.seed).tolist(), "data": classes.digest()}


def sweep(
    study: ScanAndSnapStudy, grid: Mapping[str, Sequence[float]], seeds: int, X: SequenceClasses
) -> StudyResult:
    """Train every pair of rates of a grid with several seeds, in one vectorised call.

    Parameters
    ----------
    study
        Its parameters hold, rates and seeds apart; it stays as it is.
    grid
        Values of ``lr_z``, and of ``lr_y`` or ``ratio``; all pairs are run.
    seeds
        Number of seeds; runs with one seed see the same sequences.
    X
        The classes.

    Returns
    -------
    The result; runs are ordered by the first name of the grid, then by the second, then by seed.

    Raises
    ------
    ParameterError
        The grid names something else.

    Examples
    --------
    >>> from seqattn.dynamics import syn_medium
    >>> study = ScanAndSnapStudy(n_steps=3, record_at=[3])
    >>> result = sweep(study, {"lr_z": [0.5, 1.0], "ratio": [1, 10]}, 2, syn_medium(1))
    >>> result.runs.lr_y.tolist()
    [0.5, 0.5, 5.0, 5.0, 1.0, 1.0, 10.0, 10.0]
    """
    names = set(grid)
    if not names <= {"lr_y", "lr_z", "ratio"} or len(names) == 3:
        raise ParameterError(f"The grid names {sorted(names)}. Give lr_z, and lr_y or ratio.")
    lists = [np.atleast_1d(np.asarray(values, dtype=np.float64)) for values in grid.values()]
    pairs = [axis.ravel() for axis in np.meshgrid(*lists, indexing="ij")]
    rates: dict[str, Any] = {"lr_y": None, "ratio": None} if names & {"lr_y", "ratio"} else {}
    rates |= {name: values.tolist() for name, values in zip(grid, pairs, strict=True)}
    return clone(study).set_params(**rates, n_seeds=seeds).fit(X).result_


def _rates(name: str, value: Any) -> NDArray[np.float64]:
    rates = np.atleast_1d(np.asarray(value, dtype=np.float64))
    wrong = rates[~(np.isfinite(rates) & (rates >= 0))] if rates.ndim == 1 else rates
    if wrong.size:
        raise ParameterError(f"{name} holds {float(wrong.flat[0])!r}. Give numbers of 0 or more, one or a list.")
    return rates


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer) or int(value) != value or value < least:
        raise ParameterError(f"{name}={value!r} is not allowed. Give a whole number, at least {least}.")
    return int(value)


def _classes_of(arrays: Mapping[str, NDArray], metadata: Mapping[str, Any]) -> SequenceClasses:
    from scipy import sparse

    K, M, V, Q = metadata["shape"]
    P = sparse.csr_array((arrays["P/data"], arrays["P/indices"], arrays["P/indptr"]), shape=(K, M))
    names = ("query", "label", "weight", "query_tokens", "label_tokens")
    parts = {name: arrays.get(f"classes/{name}") for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeqattnWarning)  # said when the classes were made
        return SequenceClasses(
            P, token_names=[decode_label(name) for name in metadata["names"]], n_outputs=V, n_queries=Q, **parts
        )
