"""How the classifier learns: tokens, readout and networks from the training cases alone."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from scipy.special import softmax
from sklearn.utils import check_random_state

from seqattn.classify.caching import learn_tokens
from seqattn.classify.cases import Cases, case_batch
from seqattn.classify.checking import check_parameters, class_weights
from seqattn.classify.explain import Explaining
from seqattn.classify.folds import cut
from seqattn.classify.members import left_out_by
from seqattn.classify.metrics import metrics
from seqattn.classify.model import VSFormer
from seqattn.classify.order import class_order, content_order, renumber
from seqattn.classify.predicting import LEAST_COLUMNS, LEAST_POINTS, PREDICTED_AT_ONCE
from seqattn.classify.reading import check_kind, check_known, labels_as_axis, pair_of, with_values
from seqattn.classify.readout import Readout, stacked
from seqattn.classify.recipe import Recipe, generator
from seqattn.classify.tokens import Tokens
from seqattn.classify.watching import Watch
from seqattn.data.panels import Panel, channel_names, row_length
from seqattn.errors import DataError, SeqattnWarning
from seqattn.train.callbacks import Progress
from seqattn.train.checkpoint import Part
from seqattn.train.history import History
from seqattn.train.loop import Observer, fit_module
from seqattn.train.settings import FitSettings, resolve_precision
from seqattn.train.threads import one_thread

__all__ = ["Fitting"]

# Fewest steps and epochs of a fit with epochs="auto".
_STEPS, _EPOCHS = 400, 10
# Factors of the readout and of the networks where no case was left out, and to which few cases hold them.
_USUAL_BLEND = (1.0, 0.3)
# Networks of a smaller factor are left out: they would cost most of a prediction and change next to nothing.
_LEAST_BLEND = 0.02
# How the figures of ``validation_`` came about: of everything, or of the readout where no network did without a case.
_LEFT_OUT = "training cases, each judged by parts that were fitted without it; what weighs the parts was chosen on them"
_READOUT_LEFT_OUT = (
    "the linear readout alone, on training cases left out one at a time; its penalty was chosen on them"
)
_SHARPNESS = np.logspace(-1.5, 1.0, 101)


class Fitting(Explaining):
    """The part of the classifier that learns."""

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

        A former fit is forgotten first. After a fit that was refused or interrupted the classifier is not fitted.

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
            File that is written after each epoch of a network and holds all networks. If it exists and belongs to this
            fit, with the same data, held-out and watched cases, training goes on from it. That takes a number as
            ``random_state``: with None each fit is another one.
        observers
            Told of every epoch, see :class:`seqattn.train.loop.Observer`; of several networks one after the other, with
            their number from 0 as ``member``.
        watch
            Further cases with labels, whose accuracy after each epoch is written into ``history_`` as
            ``watched_accuracy`` and changes nothing. With test data it shows what choosing the epoch on them, as some
            published figures do, would be worth. Without a network there are no epochs, and nothing is written.

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
        TypeError
            ``validation`` or ``watch`` is neither a panel nor a pair, or the series are of no known form.

        Warns
        -----
        SeqattnWarning
            There is one class only, a class has one case, a case has no value at all, ``patience`` is given and no
            held-out cases, or ``watch`` is given and no network is trained.
        """
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)
        check_parameters(self)
        # What is half learnt is nobody's: an interrupted fit leaves no trace.
        learnt = type(self)(**self.get_params(deep=False))
        learnt._fit(X, y, (validation, watch), None if checkpoint is None else Path(checkpoint), observers)
        self.__dict__.update({name: value for name, value in vars(learnt).items() if name.endswith("_")})
        return self

    def _fit(
        self, X: Any, y: Any, further: tuple[Any, Any], checkpoint: Path | None, observers: Sequence[Observer]
    ) -> None:
        """Check everything that was given, and learn."""
        began = time.perf_counter()
        panel = self._read(X, y)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        panel, codes = self._prepared(panel)
        self._case_weights(codes)
        held_out, watched = self._held_out(further[0], "validation"), self._held_out(further[1], "watch")
        if held_out is not None:
            self._codes(held_out)
        elif self.patience is not None and self.validation is None:
            warnings.warn(
                f"patience={self.patience} does nothing without held-out cases. Give validation, a share of the cases "
                "or cases of its own, or patience=None.",
                SeqattnWarning,
                stacklevel=3,
            )
        if watched is not None and self.network_weight == 0:
            warnings.warn(
                "watch does nothing with network_weight=0: without a network there are no epochs. Leave one of them "
                "out.",
                SeqattnWarning,
                stacklevel=3,
            )
        self.temperature_ = 1.0
        self.tokeniser_, self.readout_, self.modules_, self.history_ = None, None, [], History()
        self.validation_, self.blend_ = None, np.array([1.0, 0.0])
        self.fit_report_ = {"n_cases": len(panel), "n_classes": len(self.classes_)}
        if len(self.classes_) == 1:
            warnings.warn(
                f"All labels are {self.classes_.tolist()[0]!r}: every prediction will be that class.",
                SeqattnWarning,
                stacklevel=3,
            )
            return
        order, codes = self._renumbered(codes)
        epochs, chosen = self._epochs(len(codes)), None
        if held_out is None and self.validation is not None and self.network_weight != 0:
            epochs = chosen = self._chosen_epochs(panel, codes, seed, epochs)
        if self.calibration is not None:
            self._calibrate(panel, codes, seed, chosen, held_out)
        self._learn(panel, codes, seed, epochs, held_out, observers, checkpoint, watched)
        self._sort_classes(order)
        self.fit_report_ |= {"capped": self._capped(panel, codes), "seconds": time.perf_counter() - began}

    def _read(self, X: Any, y: Any) -> Panel:
        """Return the training cases with their labels, and remember their form."""
        if y is None and not isinstance(X, Panel | str | Path):
            raise DataError(
                "VSFormerClassifier requires y to be passed, but the target y is None. Give y, one label per case."
            )
        panel = Panel.of(X) if y is None else Panel.of(X, labels_as_axis(y))
        if panel.labels is None:
            raise DataError("There are no labels to learn from. Give y, one label per case.")
        check_kind(panel.labels)
        n_features = None if isinstance(X, Panel | str | Path) else row_length(X)
        panel.check_lengths(LEAST_POINTS if n_features is None else LEAST_COLUMNS)
        panel = panel.trimmed()
        if n_features is not None:
            self.n_features_in_ = n_features
        self.channel_names_ = channel_names(X)
        self.n_channels_ = panel.n_channels
        self.length_range_ = (int(panel.lengths.min()), int(panel.lengths.max()))
        return panel

    def _prepared(self, panel: Panel) -> tuple[Panel, np.ndarray]:
        """Return the cases that can be learnt from, in an order that depends on their content, and codes."""
        self.classes_, codes = np.unique(np.asarray(panel.labels), return_inverse=True)
        self.share_ = np.bincount(codes) / len(codes)
        panel, codes = with_values(panel, codes, self.classes_)
        rows = content_order(panel, codes)
        return panel.select(rows), codes[rows]

    def _renumbered(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Put the classes in the order of their first cases, and return that order and the cases' new codes."""
        order = class_order(codes)
        self.classes_ = self.classes_[order]
        return order, np.argsort(order)[codes]

    def _sort_classes(self, order: np.ndarray) -> None:
        """Put the classes, and everything that was learnt of them, in sorted order again."""
        back = np.argsort(order)
        self.classes_ = self.classes_[back]
        parts = (self._tokeniser(), self.readout_, self.modules_, self.means_)
        self.tokeniser_, self.readout_ = renumber(back, *parts)

    def _held_out(self, given: Any, name: str) -> Panel | None:
        """Return further cases, read as those to predict, with labels of which one at least is known."""
        if given is None:
            return None
        X, labels = pair_of(given, name)
        panel = Panel.of(self._read_new(X), labels)
        check_known(np.asarray(panel.labels), self.classes_, len(panel))
        return panel

    def _capped(self, panel: Panel, codes: np.ndarray) -> list[str]:
        """Return the parameters that bounded what was learnt, or were bounded themselves."""
        report = self._tokeniser().report()
        points = np.bincount(codes, weights=-(-panel.lengths // report["points_per_mean"]))
        found = {
            "max_length": report["points_per_mean"] > 1,
            "readout_shapes": 0 < report["readout_shapes"] < self.readout_shapes,
            # Two cases are searched whatever they hold.
            "profile_cap": self.shapes == "motif"
            and bool(((points > self.profile_cap) & (np.bincount(codes) > 2)).any()),
        }
        return [name for name, is_capped in found.items() if is_capped]

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
        # One network alone: the readout and the others would say nothing of the epoch.
        trial = self._apart(
            panel.select(kept), codes[kept], seed, epochs, part, n_members=1, readout_shapes=0
        )
        self.fit_report_["validation"] = {"cases": len(held), "best_epoch": trial.history_.best_epoch}
        return int(trial.history_.best_epoch or epochs)

    def _calibrate(
        self, panel: Panel, codes: np.ndarray, seed: int, epochs: int | None, held_out: Panel | None
    ) -> None:
        """Find the temperature for cases held out, tokens and all, by their log loss; epochs are chosen as for all."""
        kept, held = cut(codes, float(self.calibration or 0), seed)
        part = panel.select(kept)
        trial = self._apart(part, codes[kept], seed, epochs or self._epochs(len(kept)), held_out)
        logits = trial._logits(trial._tokeniser()(panel.select(held)))
        rows = np.arange(len(held))
        losses = [-np.log(softmax(logits * s, axis=1)[rows, codes[held]] + 1e-15).mean() for s in _SHARPNESS]
        # Few held-out cases, all of them right, would ask for probabilities of 0 and 1: one case speaks for 1.
        losses += np.log(_SHARPNESS) ** 2 / len(held)
        self.temperature_ = float(1 / _SHARPNESS[int(np.argmin(losses))])
        self.fit_report_["calibration"] = {"cases": len(held), "temperature": self.temperature_}

    def _apart(
        self, panel: Panel, codes: np.ndarray, seed: int, epochs: int, held_out: Panel | None, **other: Any
    ) -> Self:
        """Return a classifier of the same form, but for some parameters, that has seen some cases only."""
        part = type(self)(**self.get_params(deep=False) | other)
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
        self.tokeniser_, tokens = learn_tokens(self.memory, panel, codes, self._recipe(), seed, report)
        weights = self._case_weights(codes)
        self.readout_ = None
        if self.readout_shapes:
            with one_thread():
                self.readout_ = Readout.fit(tokens.families, codes, len(self.classes_), weights)
        self.fit_report_ |= self._tokeniser().report() | {"learnt": self._tokeniser().digest()}
        self.modules_, self.history_, self.blend_ = [], History(), np.array([1.0, 0.0])
        left_out = np.full((len(codes), len(self.classes_)), np.nan)
        if self.network_weight != 0:
            left_out = self._learn_networks(
                tokens, codes, weights, (seed, epochs), held_out, observers, checkpoint, watched
            )
        self.validation_ = self._judged(left_out, codes)
        self._remember_means(tokens)

    def _judged(self, left_out: np.ndarray, codes: np.ndarray) -> dict[str, Any] | None:
        """Return figures of training cases from parts that have not seen them."""
        rows, logits = np.flatnonzero(np.isfinite(left_out[:, 0])), self.blend_[1] * left_out
        if self.readout_ is not None:
            own = self.blend_[0] * self.readout_.left_out
            rows, logits = (rows, own + logits) if len(rows) else (np.arange(len(codes)), own)
        if len(np.unique(codes[rows])) < 2:
            return None
        protocol = _LEFT_OUT if np.isfinite(left_out[rows]).all() else _READOUT_LEFT_OUT
        given = softmax(logits[rows], axis=1)
        return {**metrics(self.classes_[codes[rows]], self.classes_, given), "protocol": protocol}

    @one_thread()
    def _learn_networks(
        self,
        tokens: Tokens,
        codes: np.ndarray,
        weights: np.ndarray,
        order: tuple[int, int],
        held_out: Panel | None,
        observers: Sequence[Observer],
        checkpoint: Path | None,
        watched: Panel | None,
    ) -> np.ndarray:
        """Train the members, each without a part of the cases, and let these parts tell what the members are worth.

        Returns the logits of each case from the member that did without it; NaN where there is none.
        """
        seed, epochs = order
        away = left_out_by(codes, self.n_members, generator(seed, "parts"))
        left_out = np.full((len(codes), len(self.classes_)), np.nan)
        watch = None if watched is None else Watch(self._tokeniser(), watched)
        digests = [None if panel is None else panel.digest() for panel in (held_out, watched)]
        for member in range(self.n_members):
            some = np.flatnonzero(away != member)
            module = self._module(tokens, seed, member)
            self.modules_.append(module)
            looking = (
                [] if watch is None else [watch.member(module, partial(self._member_logits, member=member))]
            )
            history = self._train(
                module,
                (tokens.select(some), codes[some], weights[some]),
                held_out,
                (seed, member, epochs),
                [*observers, *([Progress()] if self.verbose else []), *looking],
                None if checkpoint is None else Part(checkpoint, str(member)),
                {"held_out": digests[0], "watched": digests[1]},
            )
            rest = np.flatnonzero(away == member)
            if len(rest):
                left_out[rest] = self._member_logits(tokens.select(rest), member)
            self.history_ = self.history_ if member else history
        self.blend_ = self._blended(left_out, codes, weights)
        self.fit_report_["blend"] = self.blend_.tolist()
        if watch is not None:
            watch.write(self)
        return left_out

    def _blended(self, left_out: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the factors of the readout's logits and of the members' mean, from cases that neither has seen."""
        if self.readout_ is None:
            return np.array([0.0, 1.0])
        if self.network_weight is not None:
            return np.array([1.0, float(self.network_weight)])
        rows = np.flatnonzero(np.isfinite(left_out[:, 0]))
        if not len(rows):
            return np.array(_USUAL_BLEND)
        both = np.stack([self.readout_.left_out[rows], left_out[rows]])
        blend = stacked(both, codes[rows], weights[rows], np.array(_USUAL_BLEND))
        return np.where([True, blend[1] >= _LEAST_BLEND], blend, 0.0)

    def _train(
        self,
        module: VSFormer,
        data: tuple[Tokens, np.ndarray, np.ndarray],
        held_out: Panel | None,
        order: tuple[int, int, int],
        observers: Sequence[Observer],
        checkpoint: Part | None,
        digests: Mapping[str, str | None],
    ) -> History:
        (tokens, codes, weights), (seed, member, epochs) = data, order
        own, size = self._tokeniser().own(member), self._batch_size(len(codes))
        kind = resolve_precision(self.precision)
        whole, valid = case_batch(tokens, own, codes, weights, kind), None
        if held_out is not None:
            theirs = self._codes(held_out)
            valid = case_batch(self._tokeniser()(held_out), own, theirs, np.ones(len(theirs)), kind)
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
            "learnt": self._tokeniser().digest(),
            "member": member,
            **digests,
            "params": {name: repr(value) for name, value in sorted(self.get_params(deep=False).items())},
        }
        history = fit_module(
            module,
            lambda epoch: Cases.of(whole, size, generator(seed, f"batches {member} {epoch}")),
            None if valid is None else lambda: Cases.of(valid, PREDICTED_AT_ONCE),
            settings,
            observers=observers,
            checkpoint=checkpoint,
            identity=identity,
            about={"member": member} if self.n_members > 1 else None,
        )
        module.eval()
        return history

    def _recipe(self) -> Recipe:
        return Recipe(
            shapes=self.shapes,
            window_fractions=tuple(self.window_fractions),
            motifs_per_cell=self.motifs_per_cell,
            match=self.match,
            locality=self.locality,
            profile_cap=self.profile_cap,
            derivatives=self.derivatives,
            granularities=tuple(map(int, self.granularities)),
            shape_tokens=self.shape_tokens,
            value_tokens=self.value_tokens,
            tokens=self.tokens,
            readout_shapes=self.readout_shapes,
            max_length=self.max_length,
            n_jobs=self.n_jobs,
            n_members=self.n_members if self.network_weight != 0 else 1,
        )

    def _module(self, tokens: Tokens, seed: int, member: int) -> VSFormer:
        """Return the network of a member with its first weights."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(generator(seed, f"weights {member}").integers(2**31)))
            return self._network(self._facts(member, tokens.shape.shape[2]))

    def _case_weights(self, codes: np.ndarray) -> np.ndarray:
        return class_weights(self.class_weight, self.classes_, codes)

    def _codes(self, panel: Panel) -> np.ndarray:
        places = {label: code for code, label in enumerate(self.classes_.tolist())}
        unknown = [label for label in np.asarray(panel.labels).tolist() if label not in places]
        if unknown:
            raise DataError(
                f"The held-out cases have the class {unknown[0]!r}, which the training cases lack."
            )
        return np.array([places[label] for label in np.asarray(panel.labels).tolist()])


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
