"""The estimator of the value and shape-aware transformer."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from seqattn.attention.pattern import Pattern
from seqattn.classify.cases import Cases, case_batch
from seqattn.classify.explain import Explaining
from seqattn.classify.folds import cut
from seqattn.classify.model import TokenFacts, VSFormer
from seqattn.classify.readout import Readout
from seqattn.classify.tokens import KINDS, Recipe, Tokeniser, Tokens, generator
from seqattn.data.panels import Panel
from seqattn.errors import ArtifactError, DataError, ParameterError, SeqattnWarning
from seqattn.train.artifact import Artifact, decode_label, encode_label, save_artifact
from seqattn.train.callbacks import Progress
from seqattn.train.history import History
from seqattn.train.loop import Observer, fit_module
from seqattn.train.parameters import decode_parameter, encode_parameters
from seqattn.train.settings import FitSettings, resolve_device, resolve_precision

__all__ = ["VSFormerClassifier"]

_CHOICES: dict[str, tuple[Any, ...]] = {
    "shapes": KINDS,
    "match": ("znorm", "raw"),
    "tokens": ("both", "shape", "value"),
    "prior": ("key", "logit", "none"),
    "fusion": ("late", "joint"),
    "head": ("flatten", "mean"),
}
_LEAST_POINTS = 3
# Fewest steps and epochs of a fit with epochs="auto".
_STEPS, _EPOCHS = 600, 10
_PREDICTED_AT_ONCE = 512
_SHARPNESS = np.logspace(-1.5, 1.0, 101)


class VSFormerClassifier(Explaining, ClassifierMixin, BaseEstimator):
    r"""Classify series of several channels by their shapes and values, with attention that is weighted by priors.

    Each case becomes two sets of tokens. *Shape tokens* tell where and how closely the case comes to prototypes from
    the training data, *value tokens* tell mean, deviation and slope of intervals. Both carry their channel, their span
    in time and a prior of how much they say about the classes. A transformer attends to them with scores

    .. math:: s_{ij} = q_i \cdot k_j / \sqrt{d} + \gamma \log \max(p_j, \mathrm{floor}),

    and its decision is linear in all token outputs. Beside it stands a linear readout of the statistics of many more
    shapes and of all intervals, whose logits are added; each part can be switched off.

    Parameters
    ----------
    shapes
        ``"dilated"``: prototypes are short pieces of training cases, stretched at random. ``"motif"``: the paper's, the
        windows of a class that come back most exactly in other cases of the class.
    window_fractions
        Motifs: window lengths as shares of the median length.
    motifs_per_cell
        Motifs: how many per class, channel and window.
    match
        Motifs: ``"znorm"`` compares without level and spread, ``"raw"`` with them.
    locality
        Motifs: share of the length by which a match may lie away from the prototype's own place; None for anywhere.
    profile_cap
        Motifs: most points of a class that are searched at once.
    derivatives
        Whether first differences are further channels.
    granularities
        Into how many equal parts the time axis is cut for value tokens.
    shape_tokens, value_tokens
        Most tokens of each kind.
    tokens
        ``"both"``, ``"shape"`` or ``"value"``: which kinds are used, in the readout too.
    prior
        Form of the prior in attention: ``"key"`` as above, which equals weights times priors with rows normed again;
        ``"logit"`` for scores times :math:`p_i p_j`; ``"none"``.
    prior_strength, prior_floor
        :math:`\gamma`, and the least prior in the logarithm.
    learn_prior_strength
        Whether each head learns its :math:`\gamma`.
    prior_encoding
        Whether the prior is part of the tokens' encoding.
    fusion
        ``"late"``: an encoder per kind of token. ``"joint"``: one for both.
    head
        ``"flatten"``: linear in all token outputs. ``"mean"``: in their mean.
    readout_shapes
        How many dilated shapes the linear readout has in all; 0 for no readout, which is the network of the paper.
    network_weight
        Factor of the network's logits beside those of the readout; 0 trains no network.
    max_length
        Longer series are shortened to this many points by means of neighbours.
    d_model, n_heads, n_layers, dropout
        Width, heads and layers of the encoders, and share of units dropped while training.
    label_smoothing
        Share of the target that is spread over all classes.
    class_weight
        Weights of the classes: None, ``"balanced"``, or a mapping from class to weight.
    n_members
        Networks with weights and shapes of their own, whose logits are averaged.
    calibration
        Share of the cases, for example 0.2, that is held out in a first fit to find the temperature of the
        probabilities; then all are fitted. None leaves them as they are.
    learning_rate, weight_decay
        Peak of the one-cycle rate, and decoupled decay of AdamW.
    epochs
        Passes over the training cases; ``"auto"`` takes at least 600 steps and 10 passes.
    batch_size
        Cases per step; ``"auto"`` an eighth of them, between 8 and 64.
    validation
        Share of the cases, or None. They choose the number of epochs: tokens and network are first learnt without them;
        then all are fitted for that many.
    patience
        Epochs without a better validation loss after which training stops; None goes on to the last.
    attention
        Pattern of which tokens see which: a name or an object of :mod:`seqattn.attention`.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    precision
        As in :func:`seqattn.train.settings.resolve_precision`.
    n_jobs
        Threads of the search for motifs; None for one.
    random_state
        Seed of all draws.
    verbose
        1 tells of progress on the standard error stream.

    Attributes
    ----------
    classes_
        The classes, sorted.
    n_channels_, length_range_
        Channels, and shortest and longest training case.
    shapes_, intervals_
        Tables of the tokens, see :class:`seqattn.classify.explain.Explaining`.
    history_
        What happened in each epoch, of the last member.
    fit_report_
        What was done to the data: sizes, what was capped, seconds, and a hash of everything that was learnt before
        training.

    Notes
    -----
    This is an implementation after the paper: its text leaves windows, distances, the maps from distance ratio and
    entropy to priors, the place of the product in attention and the pooling open, and no code was released. What stands
    here for each is told where it is computed. Dilated shapes, the linear readout and differences are additions;
    ``shapes="motif", readout_shapes=0, derivatives=False`` leaves them out.

    References
    ----------
    Xi, Zuo, Alvarez, Zhang, Choi, Lin (2024), VSFormer: value and shape-aware transformer with prior-enhanced
    self-attention for multivariate time series classification, arXiv 2412.16515.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(20, 2, 30))
    >>> y = np.repeat(["flat", "rising"], 10)
    >>> X[10:] += np.linspace(0, 5, 30)
    >>> model = VSFormerClassifier(readout_shapes=64, epochs=1, shape_tokens=8, random_state=0).fit(X, y)
    >>> model.predict(X[[0, 15]]).tolist()
    ['flat', 'rising']
    """

    def __init__(
        self,
        *,
        shapes: str = "dilated",
        window_fractions: Sequence[float] = (0.2, 0.4, 0.8),
        motifs_per_cell: int = 2,
        match: str = "znorm",
        locality: float | None = 0.15,
        profile_cap: int = 4000,
        derivatives: bool = True,
        granularities: Sequence[int] = (1, 2, 4, 8),
        shape_tokens: int = 128,
        value_tokens: int = 64,
        tokens: str = "both",
        prior: str = "key",
        prior_strength: float = 1.0,
        prior_floor: float = 0.05,
        learn_prior_strength: bool = False,
        prior_encoding: bool = True,
        fusion: str = "late",
        head: str = "flatten",
        readout_shapes: int = 4096,
        network_weight: float = 0.5,
        max_length: int = 1024,
        d_model: int = 32,
        n_heads: int = 4,
        n_layers: int = 1,
        dropout: float = 0.5,
        label_smoothing: float = 0.1,
        class_weight: Any = None,
        n_members: int = 1,
        calibration: float | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        epochs: int | str = "auto",
        batch_size: int | str = "auto",
        validation: float | None = None,
        patience: int | None = None,
        attention: str | Pattern = "dense",
        device: str = "auto",
        precision: str = "float32",
        n_jobs: int | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.shapes = shapes
        self.window_fractions = window_fractions
        self.motifs_per_cell = motifs_per_cell
        self.match = match
        self.locality = locality
        self.profile_cap = profile_cap
        self.derivatives = derivatives
        self.granularities = granularities
        self.shape_tokens = shape_tokens
        self.value_tokens = value_tokens
        self.tokens = tokens
        self.prior = prior
        self.prior_strength = prior_strength
        self.prior_floor = prior_floor
        self.learn_prior_strength = learn_prior_strength
        self.prior_encoding = prior_encoding
        self.fusion = fusion
        self.head = head
        self.readout_shapes = readout_shapes
        self.network_weight = network_weight
        self.max_length = max_length
        self.d_model = d_model
        self.n_heads = n_heads
        self.n_layers = n_layers
        self.dropout = dropout
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.n_members = n_members
        self.calibration = calibration
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.validation = validation
        self.patience = patience
        self.attention = attention
        self.device = device
        self.precision = precision
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        validation: Any = None,
        checkpoint: str | Path | None = None,
        observers: Sequence[Observer] = (),
        watch: Any = None,
    ) -> Self:
        """Learn tokens, readout and network from labelled cases.

        Parameters
        ----------
        X
            Series of any form that :meth:`seqattn.data.panels.Panel.of` takes: an array ``(cases, channels, time)``, a
            list of ``(channels, time)`` of any lengths, a frame of sktime's panel types, a ``.ts`` file; ``(cases,
            time)`` is one channel. NaN is a missing value.
        y
            One label per case; None takes those of a panel or a file.
        validation
            Held-out cases with labels, a panel or a pair ``(X, y)``, that choose the epoch; nothing is fitted again.
        checkpoint
            File that is written after each epoch of a network. If it exists and belongs to this fit, training goes on
            from it.
        observers
            Told of every epoch, see :class:`seqattn.train.loop.Observer`.
        watch
            Further cases with labels, whose accuracy after each epoch is written into ``history_`` as
            ``watched_accuracy`` and changes nothing. With test data it shows what choosing the epoch on them, as some
            published figures do, would be worth.

        Returns
        -------
        The classifier.

        Raises
        ------
        DataError
            Series or labels cannot be used.
        ParameterError
            A parameter has a value that is not allowed.
        ArtifactError
            The checkpoint belongs to another fit.

        Warns
        -----
        SeqattnWarning
            There is one class only, a class has one case, or a case has no value at all.
        """
        self._check_parameters()
        began = time.perf_counter()
        panel = self._read(X, y)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        panel, codes = self._prepared(panel)
        self.temperature_ = 1.0
        self.tokeniser_, self.readout_, self.modules_, self.history_ = None, None, [], History()
        self.fit_report_ = {"n_cases": len(panel), "n_classes": len(self.classes_)}
        if len(self.classes_) == 1:
            warnings.warn(
                f"All labels are {self.classes_[0]!r}: every prediction will be that class.",
                SeqattnWarning,
                stacklevel=2,
            )
            return self
        held_out = None if validation is None else self._held_out(validation)
        if self.calibration is not None:
            self._calibrate(panel, codes, seed)
        epochs = self._epochs(len(codes))
        if held_out is None and self.validation is not None:
            epochs = self._chosen_epochs(panel, codes, seed, epochs)
        watched = None if watch is None else self._held_out(watch)
        place = None if checkpoint is None else Path(checkpoint)
        self._learn(panel, codes, seed, epochs, held_out, observers, place, watched)
        self.fit_report_ |= {"seconds": time.perf_counter() - began}
        return self

    def _check_parameters(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                words = " or ".join(map(repr, allowed))
                raise ParameterError(f"{name}={value!r} is not allowed. Give {words}.")
        for name in (
            "shape_tokens",
            "value_tokens",
            "n_members",
            "motifs_per_cell",
            "max_length",
            "profile_cap",
        ):
            _require_whole(name, getattr(self, name), 1)
        _require_whole("readout_shapes", self.readout_shapes, 0)
        for name in ("epochs", "batch_size"):
            if getattr(self, name) != "auto":
                _require_whole(name, getattr(self, name), 1)
        for name in ("d_model", "n_heads", "n_layers"):
            _require_whole(name, getattr(self, name), 1)
        if self.d_model % self.n_heads:
            raise ParameterError(f"d_model={self.d_model} is no multiple of n_heads={self.n_heads}.")
        for name, low, high in (("dropout", 0, 1), ("label_smoothing", 0, 1), ("network_weight", 0, np.inf)):
            value = getattr(self, name)
            if not low <= value < high:
                raise ParameterError(
                    f"{name}={value!r} is not allowed. Give a number from {low} to below {high}."
                )
        for name in ("validation", "calibration"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not 0 < value < 1):
                raise ParameterError(
                    f"{name}={value!r} is not allowed. Give a share between 0 and 1, or None."
                )
        if not self.readout_shapes and not self.network_weight:
            raise ParameterError("readout_shapes=0 and network_weight=0 leave nothing to predict with.")

    def _read(self, X: Any, y: Any) -> Panel:
        """Return the training cases with their labels, and remember their form."""
        if y is None and not isinstance(X, Panel | str | Path):
            raise ValueError("VSFormerClassifier requires y to be passed, but the target y is None.")
        panel = Panel.of(X) if y is None else Panel.of(X, _labels(y))
        if panel.labels is None:
            raise DataError("There are no labels to learn from. Give y, one label per case.")
        check_classification_targets(panel.labels)
        panel.check_lengths(_LEAST_POINTS if panel.n_channels > 1 else min(_LEAST_POINTS, 2))
        self.__dict__.pop("n_features_in_", None)
        if getattr(X, "ndim", 3) == 2:
            self.n_features_in_ = int(np.shape(X)[1])
        self.n_channels_ = panel.n_channels
        self.length_range_ = (int(panel.lengths.min()), int(panel.lengths.max()))
        return panel

    def _prepared(self, panel: Panel) -> tuple[Panel, np.ndarray]:
        """Return the cases that can be learnt from, in an order that depends on what they hold only, and their codes."""
        self.classes_, codes = np.unique(np.asarray(panel.labels), return_inverse=True)
        self.share_ = np.bincount(codes) / len(codes)
        empty = np.array([not np.isfinite(case).any() for case in panel.series])
        if empty.all():
            raise DataError("No case has a finite value. Check how missing values are written.")
        if empty.any():
            warnings.warn(
                f"{empty.sum()} training cases have no value at all, the first is case {empty.argmax()}. They are "
                "left out.",
                SeqattnWarning,
                stacklevel=3,
            )
        single = np.flatnonzero(np.bincount(codes) == 1)
        if len(single) and len(self.classes_) > 1:
            warnings.warn(
                f"{len(single)} of {len(self.classes_)} classes have one training case, for example "
                f"{self.classes_[single[0]]!r}: nothing tells what its cases share, so its shapes have no prior.",
                SeqattnWarning,
                stacklevel=3,
            )
        rows = np.flatnonzero(~empty)
        keys = [case.tobytes() for case in panel.series]
        rows = np.array(sorted(rows.tolist(), key=lambda row: (keys[row], codes[row])))
        return panel.select(rows), codes[rows]

    def _held_out(self, given: Any) -> Panel:
        panel = Panel.of(given) if isinstance(given, Panel | str | Path) else Panel.of(*given)
        if panel.labels is None:
            raise DataError("The held-out cases have no labels. Give a pair (X, y).")
        self._check_channels(panel)
        return panel

    def _epochs(self, n_cases: int) -> int:
        if self.epochs != "auto":
            return int(self.epochs)
        return max(_EPOCHS, -(-_STEPS // -(-n_cases // self._batch_size(n_cases))))

    def _batch_size(self, n_cases: int) -> int:
        return int(np.clip(n_cases // 8, 8, 64)) if self.batch_size == "auto" else int(self.batch_size)

    def _chosen_epochs(self, panel: Panel, codes: np.ndarray, seed: int, epochs: int) -> int:
        """Return the number of epochs that is best for cases held out, tokens and all."""
        kept, held = cut(codes, float(self.validation or 0), seed)
        part = panel.select(held)
        trial = self._apart(panel.select(kept), codes[kept], seed, epochs, part)
        self.fit_report_["validation"] = {"cases": len(held), "best_epoch": trial.history_.best_epoch}
        return int(trial.history_.best_epoch or epochs)

    def _calibrate(self, panel: Panel, codes: np.ndarray, seed: int) -> None:
        """Find the temperature with the smallest log loss on cases held out, tokens and all."""
        kept, held = cut(codes, float(self.calibration or 0), seed)
        trial = self._apart(panel.select(kept), codes[kept], seed, self._epochs(len(kept)), None)
        logits = trial._logits(trial.tokeniser_(panel.select(held)))
        rows = np.arange(len(held))
        losses = [-np.log(softmax(logits * s, axis=1)[rows, codes[held]] + 1e-15).mean() for s in _SHARPNESS]
        self.temperature_ = float(1 / _SHARPNESS[int(np.argmin(losses))])
        self.fit_report_["calibration"] = {"cases": len(held), "temperature": self.temperature_}

    def _apart(self, panel: Panel, codes: np.ndarray, seed: int, epochs: int, held_out: Panel | None) -> Self:
        """Return a classifier of the same form that has seen some cases only."""
        part = type(self)(**self.get_params(deep=False))
        part.classes_, part.n_channels_, part.temperature_ = self.classes_, self.n_channels_, 1.0
        part.fit_report_ = {}
        part._learn(panel, codes, seed, epochs, held_out, [], None, None)
        return part

    def _learn(
        self,
        panel: Panel,
        codes: np.ndarray,
        seed: int,
        epochs: int,
        held_out: Panel | None,
        observers: Sequence[Observer],
        checkpoint: Path | None,
        watched: Panel | None,
    ) -> None:
        """Learn everything from cases; nothing else is looked at, but for the epoch where cases are held out."""
        report = _tell if self.verbose else None
        self.tokeniser_, tokens = Tokeniser.learn(panel, codes, self._recipe(), seed, report)
        weights = self._case_weights(codes)
        self.readout_ = None
        if self.readout_shapes:
            self.readout_ = Readout.fit(tokens.families, codes, len(self.classes_), weights)
        self.fit_report_ |= self.tokeniser_.report() | {"learnt": self.tokeniser_.digest()}
        self.modules_, self.history_ = [], History()
        for member in range(self.n_members if self.network_weight else 0):
            watching = [*observers, *([Progress()] if self.verbose else [])]
            watcher = None if watched is None or member else _Watcher(self, watched)
            place = checkpoint if checkpoint is None or not member else checkpoint.with_suffix(f".{member}")
            module = self._module(tokens, seed, member)
            self.modules_.append(module)
            history = self._train(
                module,
                (tokens, codes, weights),
                held_out,
                (seed, member, epochs),
                [*watching, *([watcher] if watcher else [])],
                place,
            )
            if watcher is not None:
                watcher.write(history)
            self.history_ = self.history_ if member else history
        self._remember_means(tokens)

    def _train(
        self,
        module: VSFormer,
        data: tuple[Tokens, np.ndarray, np.ndarray],
        held_out: Panel | None,
        order: tuple[int, int, int],
        observers: Sequence[Observer],
        checkpoint: Path | None,
    ) -> History:
        (tokens, codes, weights), (seed, member, epochs) = data, order
        shapes, size = self._own_shapes(member), self._batch_size(len(codes))
        whole, valid = case_batch(tokens, shapes, codes, weights), None
        if held_out is not None:
            theirs = self._codes(held_out)
            valid = case_batch(self.tokeniser_(held_out), shapes, theirs, np.ones(len(theirs)))
        settings = FitSettings(
            epochs=epochs,
            learning_rate=self.learning_rate,
            patience=self.patience if valid is not None else None,
            clip=1.0,
            weight_decay=self.weight_decay,
            is_decoupled=True,
            device=self.device,
            precision=self.precision,
            seed=int(generator(seed, f"training {member}").integers(2**31)),
        )
        identity = {
            "model": type(self).__name__,
            "learnt": self.tokeniser_.digest(),
            "member": member,
            "params": {name: repr(value) for name, value in sorted(self.get_params(deep=False).items())},
        }
        history = fit_module(
            module,
            lambda epoch: Cases.of(whole, size, generator(seed, f"batches {member} {epoch}")),
            None if valid is None else lambda: Cases.of(valid, _PREDICTED_AT_ONCE),
            settings,
            observers=observers,
            checkpoint=checkpoint,
            identity=identity,
        )
        module.eval()
        return history

    def _recipe(self) -> Recipe:
        own = self.n_members if self.shapes == "dilated" and self.network_weight else 1
        return Recipe(
            shapes=self.shapes,
            window_fractions=tuple(self.window_fractions),
            motifs_per_cell=self.motifs_per_cell,
            match=self.match,
            locality=self.locality,
            profile_cap=self.profile_cap,
            derivatives=self.derivatives,
            granularities=tuple(self.granularities),
            shape_tokens=self.shape_tokens * own,
            value_tokens=self.value_tokens,
            tokens=self.tokens,
            readout_shapes=self.readout_shapes,
            max_length=self.max_length,
            n_jobs=self.n_jobs,
        )

    def _own_shapes(self, member: int) -> slice:
        """Return which shape tokens a member takes: its own where they are drawn, all where they are found."""
        n_shapes = len(self.tokeniser_.shapes)
        if self.shapes == "motif" or not n_shapes:
            return slice(0, n_shapes)
        return slice(member * self.shape_tokens, (member + 1) * self.shape_tokens)

    def _module(self, tokens: Tokens, seed: int, member: int) -> VSFormer:
        """Return the network of a member with its first weights."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(generator(seed, f"weights {member}").integers(2**31)))
            return self._network(self._facts(member, tokens.shape.shape[2]))

    def _network(self, facts: TokenFacts) -> VSFormer:
        module = VSFormer(
            facts,
            d_model=self.d_model,
            n_heads=self.n_heads,
            n_layers=self.n_layers,
            dropout=self.dropout,
            fusion=self.fusion,
            prior=self.prior,
            prior_strength=self.prior_strength,
            prior_floor=self.prior_floor,
            learn_prior_strength=self.learn_prior_strength,
            prior_encoding=self.prior_encoding,
            head=self.head,
            label_smoothing=self.label_smoothing,
            attention=self.attention,
        )
        return module.to(dtype=resolve_precision(self.precision))

    def _facts(self, member: int, shape_features: int) -> TokenFacts:
        tokeniser, shapes = self.tokeniser_, self._own_shapes(member)
        n_shapes, n_classes = len(tokeniser.shapes), len(self.classes_)
        own = np.concatenate([np.arange(n_shapes)[shapes], np.arange(n_shapes, len(tokeniser.channel))])
        spans = tokeniser.intervals.spans[: tokeniser.n_intervals]
        return TokenFacts(
            channel=torch.from_numpy(tokeniser.channel[own]),
            label=torch.from_numpy(tokeniser.label(n_classes)[own]),
            prior=torch.from_numpy(tokeniser.prior[own]).float(),
            interval_span=torch.from_numpy(spans).float(),
            n_channels=self.n_channels_ * (2 if self.derivatives else 1),
            n_classes=n_classes,
            shape_features=shape_features,
        )

    def _case_weights(self, codes: np.ndarray) -> np.ndarray:
        if self.class_weight is None:
            return np.ones(len(codes))
        given = self.class_weight
        if isinstance(given, Mapping):
            unknown = [label for label in given if label not in self.classes_.tolist()]
            if unknown:
                raise ParameterError(
                    f"class_weight names {unknown[0]!r}, which is no class. Classes: {self.classes_.tolist()}."
                )
        by_class = compute_class_weight(given, classes=self.classes_, y=self.classes_[codes])
        weights = by_class[codes]
        return np.asarray(weights * len(codes) / weights.sum())

    def _codes(self, panel: Panel) -> np.ndarray:
        places = {label: code for code, label in enumerate(self.classes_.tolist())}
        unknown = [label for label in np.asarray(panel.labels).tolist() if label not in places]
        if unknown:
            raise DataError(
                f"The held-out cases have the class {unknown[0]!r}, which the training cases lack."
            )
        return np.array([places[label] for label in np.asarray(panel.labels).tolist()])

    def _check_channels(self, panel: Panel) -> None:
        if panel.n_channels != self.n_channels_:
            raise DataError(
                f"The cases have {panel.n_channels} channels, but the classifier was fitted with {self.n_channels_}. "
                "Give the same channels in the same order."
            )

    def _read_new(self, X: Any) -> Panel:
        check_is_fitted(self, "classes_")
        if getattr(self, "n_features_in_", None) is not None and getattr(X, "ndim", 3) == 2:
            n_features = int(np.shape(X)[1])
            if n_features != self.n_features_in_:
                raise DataError(
                    f"X has {n_features} features, but VSFormerClassifier is expecting {self.n_features_in_} features "
                    "as input. Rows of a table have one length; give a list of arrays for series of other lengths."
                )
        panel = Panel.of(X)
        self._check_channels(panel)
        panel.check_lengths(min(_LEAST_POINTS, self.length_range_[0]))
        return panel

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class.

        Parameters
        ----------
        X
            Series as in :meth:`fit`; they may be shorter or longer than those of the fit.

        Returns
        -------
        ``(cases, classes)`` in the order of ``classes_``; rows sum to 1.

        Raises
        ------
        DataError
            The series cannot be used, or have another number of channels than those of the fit.

        Warns
        -----
        SeqattnWarning
            A case has no value at all; it gets the class shares of the training data.
        """
        panel = self._read_new(X)
        if self.tokeniser_ is None:
            return np.ones((len(panel), 1))
        found = np.tile(self.share_, (len(panel), 1))
        full = np.array([bool(np.isfinite(case).any()) for case in panel.series])
        if not full.all():
            warnings.warn(
                f"{(~full).sum()} cases have no value at all, the first is case {full.argmin()}. They get the class "
                "shares of the training data.",
                SeqattnWarning,
                stacklevel=2,
            )
        rows = np.flatnonzero(full)
        for first in range(0, len(rows), _PREDICTED_AT_ONCE):
            some = rows[first : first + _PREDICTED_AT_ONCE]
            found[some] = softmax(
                self._logits(self.tokeniser_(panel.select(some))) / self.temperature_, axis=1
            )
        return found

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each case, in the kind of the labels of the fit.

        Parameters
        ----------
        X
            Series as in :meth:`predict_proba`.
        """
        check_is_fitted(self, "classes_")
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy.

        Parameters
        ----------
        X, y
            Series and labels; y of a panel or file may be left out.
        sample_weight
            Weights of the cases; None weighs all alike.
        """
        labels = Panel.of(X).labels if y is None else np.asarray(y)
        if labels is None:
            raise DataError("There are no labels to compare with. Give y, one label per case.")
        return float(np.average(self.predict(X) == labels, weights=sample_weight))

    @torch.inference_mode()
    def _logits(self, tokens: Tokens) -> np.ndarray:
        """Return the logits of cases before the temperature."""
        found = np.zeros((len(tokens), len(self.classes_)))
        if self.readout_ is not None:
            found += self.readout_.outputs(tokens.families)
        weight = self._member_weight()
        for member, module in enumerate(self.modules_):
            device = module.decision.weight.device
            batch = case_batch(tokens, self._own_shapes(member), dtype=module.decision.weight.dtype)
            logits = [module(batch.select(rows).to(device)) for rows in torch.arange(len(tokens)).split(256)]
            found += weight * torch.cat(logits).double().cpu().numpy()
        return found

    def _member_weight(self) -> float:
        """Return the factor of one network's logits; without a readout they stand as they are."""
        whole = float(self.network_weight) if self.readout_ is not None else 1.0
        return whole / max(len(self.modules_), 1)

    def tokenise(self, X: Any) -> Tokens:
        """Return the tokens of cases.

        Parameters
        ----------
        X
            Series as in :meth:`predict_proba`.
        """
        panel = self._read_new(X)
        if self.tokeniser_ is None:
            raise DataError("The classifier knows one class only and has no tokens.")
        return self.tokeniser_(panel)

    def save(self, path: str | Path) -> Path:
        """Write the fitted classifier to one safetensors file; open it with :func:`seqattn.load`.

        Parameters
        ----------
        path
            File to write, or an existing folder, in which it becomes ``model.safetensors``.

        Returns
        -------
        The path of the file.

        Raises
        ------
        ArtifactError
            A parameter or label cannot be written as JSON.
        """
        check_is_fitted(self, "classes_")
        arrays: dict[str, Any] = {"share": self.share_}
        if self.tokeniser_ is not None:
            arrays |= {f"tokeniser.{name}": value for name, value in self.tokeniser_.to_arrays().items()}
            arrays |= {f"means.{name}": value for name, value in self.means_.items()}
        if self.readout_ is not None:
            arrays |= {f"readout.{name}": value for name, value in self.readout_.to_arrays().items()}
        for member, module in enumerate(self.modules_):
            arrays |= {f"module.{member}.{name}": value for name, value in module.state_dict().items()}
        about = {
            "params": encode_parameters(self.get_params(deep=False)),
            "classes": [encode_label(label) for label in self.classes_.tolist()],
            "labels": self.classes_.dtype.str,
            "n_channels": self.n_channels_,
            "length_range": list(self.length_range_),
            "n_features_in": getattr(self, "n_features_in_", None),
            "temperature": self.temperature_,
            "history": self.history_.to_json(),
            "fit_report": self.fit_report_,
        }
        return save_artifact(path, type(self).__name__, arrays, about)

    @classmethod
    def _from_artifact(cls, artifact: Artifact) -> Self:
        try:
            return cls._restored(artifact)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"The file holds a {cls.__name__} whose parts do not fit together ({type(error).__name__}). "
                "Save the model again just after fit, with its parameters unchanged."
            ) from error

    @classmethod
    def _restored(cls, artifact: Artifact) -> Self:
        about = artifact.metadata
        arrays = {name: tensor.numpy() for name, tensor in artifact.tensors.items()}
        model = cls(**{name: decode_parameter(value) for name, value in about["params"].items()})
        labels = [decode_label(label) for label in about["classes"]]
        model.classes_ = np.array(labels, dtype=about["labels"])
        model.share_, model.temperature_ = arrays["share"], float(about["temperature"])
        model.n_channels_, model.length_range_ = int(about["n_channels"]), tuple(about["length_range"])
        if about["n_features_in"] is not None:
            model.n_features_in_ = int(about["n_features_in"])
        model.history_, model.fit_report_ = History.from_json(about["history"]), dict(about["fit_report"])
        model.tokeniser_, model.readout_, model.modules_ = None, None, []
        if parts := _below(arrays, "tokeniser."):
            model.tokeniser_, model.means_ = Tokeniser.from_arrays(parts), _below(arrays, "means.")
        if parts := _below(arrays, "readout."):
            model.readout_ = Readout.from_arrays(parts)
        n_members = len({name.split(".")[1] for name in arrays if name.startswith("module.")})
        for member in range(n_members):
            weights = _below(artifact.tensors, f"module.{member}.")
            with torch.random.fork_rng(devices=[]):
                features = weights["shape_content.weight"].shape[1]
                module = model._network(model._facts(member, features))
            module.load_state_dict(weights)
            model.modules_.append(module.to(resolve_device(model.device)).eval())
        return model


class _Watcher(Observer):
    """Notes the accuracy on cases after each epoch; training goes on as if it were not there."""

    def __init__(self, model: VSFormerClassifier, panel: Panel) -> None:
        self._model, self._labels = model, np.asarray(panel.labels)
        self._tokens: Tokens = model.tokeniser_(panel)
        self._found: dict[int, dict[str, float]] = {}

    def begin(self, settings: FitSettings) -> None:
        """Do nothing."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Classify the cases as the model stands."""
        began, module = time.perf_counter(), self._model.modules_[0]
        module.eval()
        predicted = self._model.classes_[self._model._logits(self._tokens).argmax(axis=1)]
        module.train()
        accuracy = float((predicted == self._labels).mean())
        seconds = time.perf_counter() - began
        self._found[record["epoch"]] = {"watched_accuracy": accuracy, "watched_seconds": seconds}

    def end(self, history: History) -> None:
        """Do nothing."""

    def write(self, history: History) -> None:
        """Add what was noted to the epochs' records."""
        for record in history.records:
            record.update(self._found.get(record["epoch"], {}))


def _labels(y: Any) -> np.ndarray:
    """Return labels as one axis; a column is taken with scikit-learn's warning."""
    given = y.to_numpy() if hasattr(y, "to_numpy") else np.asarray(y)
    return np.asarray(column_or_1d(given, warn=True))


def _require_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ParameterError(f"{name}={value!r} is not allowed. Give a whole number, at least {least}.")


def _below(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
