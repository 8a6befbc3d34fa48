"""The estimator of a scan-and-snap study, and sweeps over its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

import seqattn
from seqattn.dynamics.classes import SequenceClasses
from seqattn.dynamics.own import classes_from_sequences
from seqattn.dynamics.pairwise import Examples, Parameters, forward
from seqattn.dynamics.parameters import StudyParameters
from seqattn.dynamics.pictures import Pictures
from seqattn.dynamics.recorder import Schedule
from seqattn.dynamics.result import StudyResult
from seqattn.dynamics.running import Budget, Progress, budget, run_all
from seqattn.dynamics.trainers import Runs
from seqattn.errors import DataError, ParameterError, SeqattnWarning
from seqattn.train.artifact import Artifact, decode_label, encode_label, save_artifact
from seqattn.train.parameters import decode_parameter, encode_parameters

__all__ = ["ScanAndSnapStudy", "sweep"]

# What the decomposition puts on, one after the other.
_DECOMPOSITION: dict[str, dict[str, Any]] = {
    "flow": {"trainer": "flow", "momentum": 0.0, "init": "zero"},
    "batch": {"trainer": "batch"},
    "momentum": {"momentum": 0.9},
    "start": {"init": "uniform"},
    "sampled": {"trainer": "sgd"},
}


class ScanAndSnapStudy(Pictures, StudyParameters):
    r"""Train the one-layer attention model at several rates and seeds, and record who gains and loses attention.

    The model has attention logits :math:`Z` and decoder logits :math:`Y` as free parameters. Class :math:`k` pays the
    attention :math:`c_k = \mathrm{softmax}(\log P_k + z_{\psi(k)})`; the decoder sees it scaled to length 1 and
    predicts the next token from :math:`Y^T f_k`. All runs train in one vectorised call, with gradients written out.

    Parameters
    ----------
    model
        ``"pairwise"`` is the model above. ``"standard"`` has embeddings and matrices in place of the free
        parameters, and attends through :func:`seqattn.attention.attend`; queries and outputs must then be tokens.
    trainer
        ``"sgd"`` samples sequences, ``"batch"`` takes the mean over all classes, ``"flow"`` is the limit of small
        steps.
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
    d_model, gain, lr_u
        Of the standard model: width (as many as tokens by default), factor of the logits, and rate of the embedding
        (``lr_y`` by default). Attention moves little unless the embedding is frozen with ``lr_u=0`` or slow.
    n_outputs
        Columns of the decoder; those of the classes by default.
    context, min_context, min_count, max_vocab, label_space, columns, allow_missing
        How classes are made of sequences, see :func:`seqattn.dynamics.classes_from_sequences`.
    wanted_entropy
        Attention entropy in nats that a search for rates aims at; it changes nothing in a fit.
    max_bytes
        Most memory; a study that needs more is refused before it trains.
    precision
        ``"float64"`` or ``"float32"``.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``. ``"auto"`` is the CPU, which is faster at these sizes.
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
    own_
        After a fit to sequences: their classes and what was left out, a :class:`seqattn.dynamics.own.OwnData`.
    n_iter_
        Steps taken.

    Notes
    -----
    Recorded quantities. Of runs: ``loss``, ``speed`` (length of the velocity of attention logits per step; of noisy
    runs the mean over the tenth of a decade before), ``grad_norm_y``, ``grad_norm_z``, ``balance_residual`` (how far
    the balance law fails, relative; nan where there is no such law) and ``row_sum_drift``. Of classes:
    ``one_minus_alpha`` (probability not given to the label), ``margin`` (own minus best other logit),
    ``common_mass``, ``entropy`` and ``entropy_distinct`` in nats, ``top_token``. Of tokens, at snapshots: ``z``,
    ``c`` (attention), ``f2`` (squared input of the decoder), ``chi`` (growth of the odds) and ``ratio`` (``f2`` over
    that of the class's rarest distinct token, minus 1). All are taken over class expectations, sampled runs too.

    Nothing converges here: attention creeps on as the logarithm of time, so no attribute says so. In gradient flow
    raising both rates is only training longer; what rates do at a fixed number of steps comes from finite steps,
    momentum, start and sampling.

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
            Sequence classes; or sequences of whole numbers or texts, a table, :class:`seqattn.Sequences`.
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
        """Return what a fit would need, without training.

        Parameters
        ----------
        X
            As in :meth:`fit`.

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
        if X is None:
            return -float(np.mean(self._final_loss()))
        if self.model != "pairwise":
            raise ParameterError(
                "A study of the standard model is scored on its own classes only. Call score()."
            )
        examples = Examples.of_classes(classes, self.parameters_.Y.dtype)
        shape = (classes.n_queries, classes.n_tokens, classes.n_outputs)
        own = (self.classes_.n_queries, self.classes_.n_tokens, self.classes_.n_outputs)
        if shape != own:
            raise DataError(
                f"X has (queries, tokens, outputs) = {shape}, the fit {own}. Give classes of the same sizes."
            )
        state = forward(self.parameters_, examples, self.norm, self.residual)
        return float((examples.weight * state.log_probability).sum(-1).mean())

    def decompose(self, X: Any, lr_z: Sequence[float] = (0.5, 3.0), n_seeds: int = 10) -> pl.DataFrame:
        """Show where the effect of the rate on attention comes from, at a fixed ratio and number of steps.

        The flow, whole batches, momentum, the random start and sampled batches are put on one after the other. Flows
        are compared at equal rate times time, where they are one path; all else at ``n_steps``.

        Parameters
        ----------
        X
            As in :meth:`fit`.
        lr_z
            Rates of attention to compare.
        n_seeds
            Seeds of the last two steps.

        Returns
        -------
        One row per step and rate: ``step``, ``lr_z``, ``entropy_distinct`` (mean over seeds and classes at the end) and
        ``std`` over seeds. The study itself is not fitted; its ``ratio`` (1 by default) and ``n_steps`` hold.
        """
        ratio = self.ratio if self.ratio is not None else 1.0
        base = clone(self).set_params(lr_y=None, ratio=ratio, record=("loss", "entropy_distinct"))
        rows: list[dict[str, Any]] = []
        settings: dict[str, Any] = {}
        for step, changes in _DECOMPOSITION.items():
            settings |= changes
            for rate in lr_z:
                n_steps = self.n_steps * (max(lr_z) / rate if step == "flow" else 1)
                seeds = n_seeds if settings["init"] == "uniform" else 1
                study = clone(base).set_params(
                    **settings, lr_z=rate, n_seeds=seeds, n_steps=n_steps, record_at=[n_steps]
                )
                ends = study.fit(X).result_.array("entropy_distinct")[:, -1].mean(-1)
                spread = float(ends.std(ddof=1)) if seeds > 1 else 0.0
                rows.append(
                    {"step": step, "lr_z": float(rate), "entropy_distinct": float(ends.mean()), "std": spread}
                )
        return pl.DataFrame(rows)

    def _final_loss(self) -> NDArray[np.float64]:
        weight = torch.as_tensor(self.classes_.weight)
        if "loss" in self.result_.arrays:
            return self.result_.array("loss")[:, -1]
        if self.model != "pairwise":
            raise ParameterError("The loss of the standard model was not recorded. Add 'loss' to record.")
        examples = Examples.of_classes(self.classes_, self.parameters_.Y.dtype)
        state = forward(self.parameters_, examples, self.norm, self.residual)
        return -(weight * state.log_probability).sum(-1).numpy()

    def to_parquet(self, path: str | Path) -> Path:
        """Write all records to a Parquet file, see :meth:`seqattn.dynamics.result.StudyResult.to_parquet`.

        Parameters
        ----------
        path
            File to write.
        """
        check_is_fitted(self, "result_")
        return self.result_.to_parquet(path)

    def save(self, path: str | Path) -> Path:
        """Write the fitted study to a file that :func:`seqattn.load` opens, and return its path.

        Parameters
        ----------
        path
            File to write.

        Raises
        ------
        ArtifactError
            A parameter or token name cannot be written.
        """
        check_is_fitted(self, "result_")
        result, classes = self.result_, self.classes_
        tensors: dict[str, Any] = {f"array/{name}": values for name, values in result.arrays.items()}
        tensors |= {"Y": self.parameters_.Y, "Z": self.parameters_.Z}
        tensors |= {
            "times": result.times,
            "snapshots": result.schedule.snapshots,
            "tokens": result.schedule.tokens,
        }
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

    def _classes(self, X: Any) -> SequenceClasses:
        if not isinstance(X, SequenceClasses):
            names = (
                "context",
                "min_context",
                "min_count",
                "max_vocab",
                "label_space",
                "columns",
                "allow_missing",
            )
            self.own_ = classes_from_sequences(X, **{name: getattr(self, name) for name in names})
            X = self.own_.classes
        if self.n_outputs is None or self.n_outputs == X.n_outputs:
            return X
        return X.with_outputs(self.n_outputs)

    def _identity(self, classes: SequenceClasses, runs: Runs) -> dict[str, Any]:
        params = {name: repr(value) for name, value in self.get_params(deep=False).items()}
        for name in ("device", "max_bytes", "random_state", "wanted_entropy"):
            params.pop(name)
        return params | {"seeds": runs.seed.tolist(), "data": classes.digest()}

    def _metadata(self, classes: SequenceClasses, runs: Runs) -> dict[str, Any]:
        versions = {"seqattn": seqattn.__version__, "torch": torch.__version__, "numpy": np.__version__}
        params = {name: repr(value) for name, value in self.get_params(deep=False).items()}
        start = self.init if isinstance(self.init, str) else "arrays"
        theory = {"norm": self.norm, "optimizer": self.optimizer, "momentum": self.momentum, "init": start}
        theory |= {"seq_len": float(self.seq_len) if self.trainer == "sgd" else float("inf")}
        theory |= {"n_steps": float(self.n_steps)}
        seeds = np.unique(runs.seed).tolist()
        return {
            "versions": versions,
            "params": params,
            "seeds": seeds,
            "data": classes.digest(),
            "theory": theory,
        }


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


def _classes_of(arrays: Mapping[str, NDArray], metadata: Mapping[str, Any]) -> SequenceClasses:
    from scipy import sparse

    K, M, V, Q = metadata["shape"]
    P = sparse.csr_array((arrays["P/data"], arrays["P/indices"], arrays["P/indptr"]), shape=(K, M))
    names = ("query", "label", "weight", "query_tokens", "label_tokens")
    parts: dict[str, Any] = {name: arrays.get(f"classes/{name}") for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeqattnWarning)  # said when the classes were made
        return SequenceClasses(
            P,
            token_names=[decode_label(name) for name in metadata["names"]],
            n_outputs=V,
            n_queries=Q,
            **parts,
        )
