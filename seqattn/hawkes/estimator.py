"""The estimator of the self-attentive Hawkes process."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils import check_random_state

from seqattn.attention import Dense, Segments
from seqattn.attention.check import check_promises
from seqattn.attention.named import as_pattern
from seqattn.attention.pattern import Pattern
from seqattn.data.batches import Batches, EventBatch, batches, pack
from seqattn.data.sequences import Sequences
from seqattn.data.splits import split_sequences
from seqattn.errors import BackendError, DataError, ParameterError, SeqattnWarning
from seqattn.hawkes.baselines import EmpiricalMarkov, PoissonProcess, RenewalProcess
from seqattn.hawkes.counting import (
    event_rates,
    inner_gaps,
    manageable,
    mean_positive_gap,
    recurrences,
    scored_counts,
)
from seqattn.hawkes.exponential import ExponentialHawkes
from seqattn.hawkes.histories import Attended, Histories
from seqattn.hawkes.intensity import Intensity
from seqattn.hawkes.kernels import kernel_starts
from seqattn.hawkes.model import SelfAttentiveHawkes
from seqattn.hawkes.process import PointProcess
from seqattn.hawkes.reading import check_whole
from seqattn.train.callbacks import CallbackSupport, Progress, ScikitLearnCallbacks, with_callbacks
from seqattn.train.distributed import processes
from seqattn.train.history import History
from seqattn.train.loop import Observer, fit_module
from seqattn.train.settings import FitSettings, resolve_device, resolve_precision

BASELINES = {
    "poisson": PoissonProcess,
    "renewal": RenewalProcess,
    "markov": EmpiricalMarkov,
    "exponential_hawkes": ExponentialHawkes,
}


# Events of one sequence that dense attention takes: a pass over 20,000 needs some 4e8 scores per head and layer.
MAX_EVENTS = 20_000


class SAHP(CallbackSupport, PointProcess):
    r"""Self-attentive Hawkes process: intensities of typed events from attention over their history.

    .. math:: \lambda_k(t) = s_k\,\mathrm{softplus}\Bigl(\bigl(\mu_k + \sum_c \alpha_{kc}
        e^{-\gamma_{kc} (t - t_i)}\bigr) / s_k\Bigr) + \sum_m A_{km} N(e_k(t);\, c_{km}, w_{km}),
        \qquad t_i < t \le t_{i+1}

    :math:`\mu, \alpha, \gamma, A` are functions of the encoder's state at event i, which has seen the events up to and
    including i and nothing later; :math:`e_k` is the time since the last event of type k or of any type. The paper's
    form is one decay with :math:`\alpha = \eta - \mu` and no kernels.

    Parameters
    ----------
    form
        ``"mark"``: the equation above. ``"hidden"``: hidden units decay and a linear map mixes them into types.
    d_model, n_heads, n_layers
        Width (even, a multiple of the heads), heads and layers of the encoder.
    dropout
        Share of units dropped while training, in [0, 1).
    n_decays
        Decays per type (or hidden unit); 1 is the paper.
    own_kernels, gap_kernels
        Gaussian kernels per type on the time since the last event of that type, and since the last event of any
        type: peaks of the intensity at a distance. 0 for none. Own kernels begin with the first event of their type;
        of a sequence cut by ``chunk=`` with the first one in the history that is kept.
    clock
        What the positional encoding is shifted by: ``"gap"``, ``"log_gap"`` (heavy tails) or ``"time"``.
    time_features
        Whether a small network of gap and age is added to each token.
    time_decay
        Whether attention decays with the age of the other token, at a learned rate per head and layer.
    max_context
        Number of events that each state sees besides the start token; ``None`` for all. Memory and time then grow
        linearly with the length.
    type_scale
        Factor on type embeddings, ``"one"`` or ``"sqrt_d"``.
    share_layers
        Whether all layers use one set of weights.
    mu_eta_activation
        ``"linear"``, or ``"gelu"`` as printed in the paper.
    learn_scale
        Whether every type learns its sharpness s (1 otherwise).
    integral
        Rule for the compensator while training and scoring: ``"graded"``, ``"gauss"``, ``"trapezoid"`` or
        ``"monte_carlo"`` (training only; scores then use ``"graded"``).
    nodes
        Number of its nodes.
    attention
        Who sees whom: a pattern of :mod:`seqattn.attention`, or its text such as ``"local(32) | prefix(1)"`` or
        ``"2 * local(32) + 2 * routing(clusters=8)"``.
    epochs, batch_size, learning_rate, weight_decay
        Passes over the data; events and window starts per batch; peak of the one-cycle rate of Adam; its decay.
    patience
        Epochs without a better held-out log-likelihood before training stops; ``None`` never stops early.
    validation
        Share of the training sequences held out to choose the epoch, in (0, 1); ``None`` trains on all of them and
        keeps the last weights. Held-out data of one's own go to :meth:`fit`.
    baselines
        Whether ``fit`` also trains the baselines that :meth:`evaluate` prints beside the model.
    types, columns, window, unknown
        How data are read, as in :class:`PoissonProcess`.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    precision
        ``"float32"``, ``"bf16"`` (encoder only) or ``"float64"``.
    random_state
        Seed of initial weights, batches, dropout and the held-out share.
    verbose
        0: silent. 1: progress on standard error.

    Attributes
    ----------
    labels_
        Type labels; the order of :meth:`predict_proba`.
    scale_
        The user's time units per model unit: the mean positive gap of the training data.
    history_
        Training and held-out loss by epoch.
    baselines_
        Fitted baselines by name.

    Notes
    -----
    Of a saved folder (:meth:`seqattn.Sequences.prepare`) only the events of a batch are loaded. Where there are more
    than two million events, the starting points of kernels and all baselines but the Poisson process are taken from a
    sample of whole sequences with a fixed seed.

    Differences from the paper: a start token at T0, gaps instead of time stamps in the encoding, linear
    :math:`\mu, \eta` and a learned sharpness, usual scaled softmax attention, and the four additions that a single
    argument each switches off: ``n_decays=1``, ``own_kernels=0`` and ``gap_kernels=0``, ``time_features=False``,
    ``time_decay=False``. The preset "paper" has the printed form: ``seqattn fit hawkes --config paper``, in which no
    intensity can fall below 0.612 events per model unit and type (``mu_eta_activation="gelu"`` and
    ``learn_scale=False``).

    References
    ----------
    Zhang, Lipani, Kirnap, Yilmaz (2020), Self-attentive Hawkes process, ICML, arXiv 1907.07561.

    Examples
    --------
    >>> rows = [([0.5, 1.0, 2.5], ["a", "b", "a"]), ([0.2, 1.1], ["b", "a"]), ([1.0, 1.5], ["a", "a"])]
    >>> model = SAHP(epochs=1, validation=None, window=(0.0, 3.0), random_state=0).fit(rows)
    >>> model.predict(rows)["k"].len()
    7
    """

    def __init__(
        self,
        *,
        form: str = "mark",
        d_model: int = 32,
        n_heads: int = 4,
        n_layers: int = 2,
        dropout: float = 0.2,
        n_decays: int = 8,
        own_kernels: int = 8,
        gap_kernels: int = 8,
        clock: str = "log_gap",
        time_features: bool = True,
        time_decay: bool = True,
        max_context: int | None = None,
        type_scale: str = "one",
        share_layers: bool = False,
        mu_eta_activation: str = "linear",
        learn_scale: bool = True,
        integral: str = "graded",
        nodes: int = 8,
        attention: str | Pattern = "dense",
        epochs: int = 40,
        batch_size: int = 1024,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.0,
        patience: int | None = 15,
        validation: float | None = 0.1,
        baselines: bool = True,
        types: int | Sequence[Any] | None = None,
        columns: Mapping[str, str] | None = None,
        window: Any = "last_event",
        unknown: str = "error",
        device: str = "auto",
        precision: str = "float32",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.form = form
        self.d_model = d_model
        self.n_heads = n_heads
        self.n_layers = n_layers
        self.dropout = dropout
        self.n_decays = n_decays
        self.own_kernels = own_kernels
        self.gap_kernels = gap_kernels
        self.clock = clock
        self.time_features = time_features
        self.time_decay = time_decay
        self.max_context = max_context
        self.type_scale = type_scale
        self.share_layers = share_layers
        self.mu_eta_activation = mu_eta_activation
        self.learn_scale = learn_scale
        self.integral = integral
        self.nodes = nodes
        self.attention = attention
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.patience = patience
        self.validation = validation
        self.baselines = baselines
        self.types = types
        self.columns = columns
        self.window = window
        self.unknown = unknown
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    @with_callbacks
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        validation: Any = None,
        checkpoint: str | Path | None = None,
        observers: Sequence[Observer] = (),
    ) -> Self:
        """Maximise the log-likelihood of the scored events over their whole windows.

        Parameters
        ----------
        X
            Event table (polars, pandas; columns ``seq_id``, ``t``, ``k``), list of (times, types),
            :class:`seqattn.Sequences`, or a file's path.
        y
            Ignored.
        validation
            Held-out sequences that choose the epoch; by default a share of ``X``, see the parameter of that name.
        checkpoint
            File that is written after each epoch. If it exists and belongs to this fit, training goes on from it
            exactly as if it had never stopped.
        observers
            Objects that are told of every epoch, see :class:`seqattn.train.loop.Observer`.

        Returns
        -------
        The estimator.

        Raises
        ------
        DataError
            The data cannot be read, or there are too few sequences to hold some out.
        ParameterError
            A parameter has a value that is not allowed.
        ArtifactError
            The checkpoint belongs to another fit.

        Warns
        -----
        SeqattnWarning
            A type never occurs in the training data.
        """
        seed = processes().first(lambda: int(check_random_state(self.random_state).randint(2**31 - 1)))
        settings = self._settings(seed)
        _check_pattern(as_pattern(self.attention))
        train, held_out = self._split(self._read_training(X), validation, seed)
        self._warn_of_unseen(train)
        self.scale_ = mean_positive_gap(train)
        device, dtype = resolve_device(self.device), resolve_precision(self.precision)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            rates = torch.from_numpy(event_rates(train) * self.scale_)
            self.module_ = self._module(rates)
            self._place_kernels(train)
            self.module_.to(device=device, dtype=dtype)
        now = {"labels_": self.labels_, "n_types_": self.n_types_, "unit_": self.unit_, "scale_": self.scale_}
        scikit = ScikitLearnCallbacks(
            self, train, train, fitted=lambda: {**now, "module_": copy.deepcopy(self.module_).eval()}
        )
        watching = [*observers, *([Progress()] if self.verbose else []), scikit]
        packed = partial(batches, scale=self.scale_, dtype=dtype, recency=self.module_.needs_recency)
        self.history_ = fit_module(
            self.module_,
            lambda epoch: packed(train, self.batch_size, seed=seed, epoch=epoch),
            None if held_out is None else lambda: packed(held_out, 4 * self.batch_size),
            settings,
            observers=watching,
            checkpoint=None if checkpoint is None else Path(checkpoint),
            identity=self._identity(train, held_out, seed),
        )
        self.module_.eval()
        self.baselines_ = self._fit_baselines(train) if self.baselines else {}
        return self

    def _read(self, X: Any, **options: Any) -> Sequences:
        """Refuse sequences that are too long for dense attention; none is ever cut in silence."""
        sequences = super()._read(X, **options)
        long = np.flatnonzero(sequences.lengths > MAX_EVENTS)
        if len(long) and self.max_context is None and as_pattern(self.attention) == Dense():
            raise DataError(
                f"Sequence {sequences.ids[long[0]]!r} has {sequences.lengths[long[0]]:,} events; dense attention takes "
                f"at most {MAX_EVENTS:,}. Pass max_context= (for example 200: each state then sees that many events), "
                "or cut the data with chunk=1000."
            )
        return sequences

    def _settings(self, seed: int) -> FitSettings:
        check_whole("batch_size", self.batch_size, 1)
        return FitSettings(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            patience=self.patience,
            weight_decay=self.weight_decay,
            device=self.device,
            precision=self.precision,
            seed=seed,
        )

    def _module(self, rates: torch.Tensor) -> SelfAttentiveHawkes:
        return SelfAttentiveHawkes(
            rates.float(),
            form=self.form,
            d_model=self.d_model,
            n_heads=self.n_heads,
            n_layers=self.n_layers,
            dropout=self.dropout,
            n_decays=self.n_decays,
            own_kernels=self.own_kernels,
            gap_kernels=self.gap_kernels,
            clock=self.clock,
            time_features=self.time_features,
            time_decay=self.time_decay,
            max_context=self.max_context,
            type_scale=self.type_scale,
            share_layers=self.share_layers,
            mu_eta_activation=self.mu_eta_activation,
            learn_scale=self.learn_scale,
            integral=self.integral,
            nodes=self.nodes,
            attention=self.attention,
        )

    def _place_kernels(self, train: Sequences) -> None:
        """Start the kernels at the gaps of the training data, no narrower than a grid of its times."""
        grid, sample = train.grid(), manageable(train)
        narrowest = 0.0 if grid is None else grid.spacing / self.scale_
        for bank, gaps in ((self.module_.own, recurrences), (self.module_.gap, inner_gaps)):
            if bank is not None:
                types, lengths = gaps(sample)
                bank.place(*kernel_starts(types, lengths / self.scale_, *bank.shape[::-1]), narrowest)

    def _split(self, sequences: Sequences, validation: Any, seed: int) -> tuple[Sequences, Sequences | None]:
        """Return what is trained on and what is held out."""
        if validation is not None:
            return sequences, self._read(validation, labels=self.labels_, unknown=self.unknown)
        if self.validation is None:
            return sequences, None
        if isinstance(self.validation, bool) or not 0 < self.validation < 1:
            raise ParameterError(f"validation={self.validation!r} is not a share between 0 and 1, nor None.")
        scored = np.flatnonzero(sequences.lengths > sequences.context)
        if len(scored) < 2:
            raise DataError(
                f"Sequences with scored events: {len(scored)}, so none can be held out. Pass validation=None, "
                "held-out sequences to fit, or cut a long sequence with chunk=."
            )
        held_out = scored[split_sequences(len(scored), self.validation, seed)[1]]
        train = np.setdiff1d(np.arange(len(sequences)), held_out)
        return sequences.select(train), sequences.select(held_out)

    def _warn_of_unseen(self, train: Sequences) -> None:
        counts = scored_counts(train)
        unseen = [self.labels_[code] for code in np.flatnonzero(counts == 0)]
        if unseen and processes().rank == 0:
            warnings.warn(
                f"{len(unseen)} of {self.n_types_} types never occur in the training data, for example {unseen[0]!r}. "
                "Their rate starts at half an event, and their embedding stays untrained.",
                SeqattnWarning,
                stacklevel=4,
            )

    def _identity(self, train: Sequences, held_out: Sequences | None, seed: int) -> dict[str, Any]:
        """Return what must agree for a checkpoint to be this fit's."""
        params = {name: repr(value) for name, value in self.get_params(deep=False).items()}
        for name in ("verbose", "device", "baselines", "random_state"):  # the seed follows from the last
            params.pop(name)
        held = None if held_out is None else held_out.digest()
        return {"model": "SAHP", "seed": seed, "train": train.digest(), "validation": held, **params}

    def _fit_baselines(self, train: Sequences) -> dict[str, PointProcess]:
        """Fit every baseline that the data allow; those with too many types are left out."""
        kinds = {
            name: kind
            for name, kind in BASELINES.items()
            if self.n_types_ <= getattr(kind, "MAX_TYPES", self.n_types_)
        }
        options = {"window": self.window, "unknown": self.unknown, "columns": self.columns}
        models = processes().map(lambda kind: kind(**options).fit(train), list(kinds.values()))
        return dict(zip(kinds, models, strict=True))

    def _packed(self, sequences: Sequences) -> Batches:
        return self._buckets(sequences, self._place()[1], self.module_.needs_recency)

    @torch.no_grad()
    def _state(self, batch: EventBatch) -> tuple[EventBatch, Intensity]:
        moved = batch.to(self._place()[0])
        return moved, self.module_(moved).detach()

    def _histories(self, sequences: Sequences) -> Histories:
        rows = np.arange(len(sequences))
        batch = pack(sequences, rows, scale=self.scale_, dtype=torch.float64)
        return Attended.after(self.module_, batch.to(self._place()[0]))

    def _place(self) -> tuple[torch.device, torch.dtype]:
        weight = self.module_.type_embedding.weight
        return weight.device, weight.dtype

    def _export(self) -> tuple[dict[str, Any], dict[str, Any]]:
        tensors, metadata = super()._export()
        tensors |= {f"module.{name}": value for name, value in self.module_.state_dict().items()}
        inner = {}
        for name, model in self.baselines_.items():
            own, inner[name] = model._export()
            tensors |= {f"baselines.{name}.{key}": value for key, value in own.items()}
        extra = {"scale": self.scale_, "history": self.history_.to_json(), "baselines": inner}
        return tensors, metadata | extra

    @classmethod
    def _restored(cls, tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> Self:
        model = super()._restored(tensors, metadata)
        model.scale_ = metadata["scale"]
        model.history_ = History.from_json(metadata["history"])
        with torch.random.fork_rng(devices=[]):
            module = model._module(torch.ones(model.n_types_))
        weights = _below(tensors, "module.")
        module.to(dtype=weights["type_embedding.weight"].dtype).load_state_dict(weights)
        model.module_ = module.to(_device_here(model.device)).eval()
        model.baselines_ = {
            name: BASELINES[name]._restored(_below(tensors, f"baselines.{name}."), own)
            for name, own in metadata["baselines"].items()
        }
        return model


def _check_pattern(pattern: Pattern) -> None:
    """Refuse a pattern whose states would see later events, or that labels the tokens of one batch."""
    if isinstance(pattern, Segments):
        raise ParameterError(
            f"The pattern {pattern.name!r} holds a label for each token of one batch, so an estimator cannot use it. "
            "Use local, blocked, dilated or routing."
        )
    check_promises(pattern, causal=True, cross=False)


def _device_here(device: str) -> torch.device:
    """Return the device a model was fitted with, or the CPU with a warning where there is none such."""
    try:
        return resolve_device(device)
    except BackendError:
        warnings.warn(
            f"The model was fitted with device={device!r}, which is not there. It is opened on the CPU.",
            SeqattnWarning,
            stacklevel=2,
        )
        return torch.device("cpu")


def _below(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
