"""What a fitted classifier does with cases: probabilities, tokens, and its file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from scipy.special import softmax
from sklearn.utils.validation import check_is_fitted

from seqattn.classify.cases import case_batch
from seqattn.classify.model import TokenFacts, VSFormer
from seqattn.classify.parameters import Parameters
from seqattn.classify.reading import check_known, check_names, labels_as_axis, weights_of
from seqattn.classify.readout import Readout
from seqattn.classify.tokens import Tokeniser, Tokens
from seqattn.data.panels import Panel, channel_names, row_length
from seqattn.errors import ArtifactError, DataError, SeqattnWarning
from seqattn.train.artifact import Artifact, decode_label, encode_label, save_artifact
from seqattn.train.history import History
from seqattn.train.parameters import decode_parameter, encode_parameters
from seqattn.train.settings import resolve_device, resolve_precision
from seqattn.train.threads import one_thread, share_out

__all__ = ["LEAST_COLUMNS", "LEAST_POINTS", "PREDICTED_AT_ONCE", "Predicting"]

LEAST_POINTS = 3
# Rows of a table may be that short: what is made for tables of any kind is tried with two columns.
LEAST_COLUMNS = 2
PREDICTED_AT_ONCE = 512


class Predicting(Parameters):
    """The part of the classifier that predicts, and opens and writes its file."""

    classes_: np.ndarray
    share_: np.ndarray
    n_channels_: int
    length_range_: tuple[int, int]
    n_features_in_: int
    channel_names_: tuple[str, ...] | None
    tokeniser_: Tokeniser | None
    readout_: Readout | None
    modules_: list[VSFormer]
    means_: dict[str, np.ndarray]
    temperature_: float
    blend_: np.ndarray
    history_: History
    fit_report_: dict[str, Any]
    validation_: dict[str, Any] | None

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
        tokeniser, n_classes = self._tokeniser(), len(self.classes_)
        own, n_shapes = tokeniser.own(member), len(tokeniser.shapes)
        spans = tokeniser.intervals.spans[tokeniser.chosen[own[own >= n_shapes] - n_shapes]]
        return TokenFacts(
            channel=torch.from_numpy(tokeniser.channel[own]),
            label=torch.from_numpy(tokeniser.label(n_classes)[own]),
            prior=torch.from_numpy(tokeniser.prior[own]).float(),
            interval_span=torch.from_numpy(spans).float(),
            n_channels=self.n_channels_ * (2 if self.derivatives else 1),
            n_classes=n_classes,
            shape_features=shape_features,
        )

    def _check_channels(self, panel: Panel) -> None:
        if panel.n_channels != self.n_channels_:
            raise DataError(
                f"The cases have {panel.n_channels} channel(s), but the classifier was fitted with "
                f"{self.n_channels_}. Give the same channels in the same order."
            )

    def _read_new(self, X: Any) -> Panel:
        check_is_fitted(self, "classes_")
        expected = getattr(self, "n_features_in_", None)
        found = None if expected is None else row_length(X)
        if found is not None and found != expected:
            raise DataError(
                f"X has {found} features, but {type(self).__name__} is expecting {expected} features as input. Rows of "
                "a table have one length; give a list of arrays for series of other lengths."
            )
        panel = Panel.of(X)
        self._check_channels(panel)
        check_names(channel_names(X), self.channel_names_)
        panel.check_lengths(LEAST_POINTS if expected is None else LEAST_COLUMNS)
        return panel.trimmed()

    def _tokeniser(self) -> Tokeniser:
        """Return the tokeniser of a classifier that has one."""
        check_is_fitted(self, "classes_")
        if self.tokeniser_ is None:
            raise DataError("The classifier knows one class only, so it has no tokens.")
        return self.tokeniser_

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
            The series cannot be used, or have another number of channels than those of the fit, or a frame has the same
            channels in another order.

        Warns
        -----
        SeqattnWarning
            A case has no value at all; it gets the class shares of the training data. Or a frame names other channels
            than that of the fit; they are taken in the order given.
        """
        panel = self._read_new(X)
        if self.tokeniser_ is None:
            return np.ones((len(panel), 1))
        found = np.tile(self.share_, (len(panel), 1))
        full = np.array([bool(np.isfinite(case).any()) for case in panel.series])
        if not full.all():
            warnings.warn(
                f"{(~full).sum()} case(s) without any value, the first is case {full.argmin()}, get the class shares "
                "of the training data.",
                SeqattnWarning,
                stacklevel=2,
            )
        rows = np.flatnonzero(full)
        for first in range(0, len(rows), PREDICTED_AT_ONCE):
            some = rows[first : first + PREDICTED_AT_ONCE]
            tokens = self._read_tokens(panel.select(some))
            found[some] = softmax(self._logits(tokens) / self.temperature_, axis=1)
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
            Weights of the cases, at least 0; None weighs all alike.

        Raises
        ------
        DataError
            As in :meth:`predict_proba`; there is not one label or weight per case; or none of the labels is a class, as
            numbers are where the classes are text. Single labels that are no class count as errors.
        """
        labels = Panel.of(X).labels if y is None else labels_as_axis(y)
        if labels is None:
            raise DataError("There are no labels to compare with. Give y, one label per case.")
        predicted = self.predict(X)
        check_known(labels, self.classes_, len(predicted))
        weights = weights_of(sample_weight, len(predicted))
        return float(np.average(predicted == labels, weights=weights))

    def _read_tokens(self, panel: Panel) -> Tokens:
        """Return the tokens of cases as far as readout and network take them into account."""
        families = [] if self.readout_ is None else np.flatnonzero(self.readout_.share).tolist()
        return self._tokeniser()(panel, families, has_shapes=bool(self.modules_ and self.blend_[1]))

    def _logits(self, tokens: Tokens) -> np.ndarray:
        """Return the logits of cases before the temperature."""
        found = np.zeros((len(tokens), len(self.classes_)))
        if self.readout_ is not None:
            with one_thread():
                found += self.blend_[0] * self.readout_.outputs(tokens.families)
        members = range(len(self.modules_) if self.blend_[1] else 0)
        logits = np.empty((len(members), *found.shape))

        def write(member: int) -> None:
            logits[member] = self._member_logits(tokens, member)

        share_out(write, members)
        for member in members:
            found += self._member_weight() * logits[member]
        return found

    @torch.inference_mode()
    def _member_logits(self, tokens: Tokens, member: int) -> np.ndarray:
        """Return the logits of one network; for one thread."""
        module = self.modules_[member]
        weight = module.decision.weight
        batch = case_batch(tokens, self._tokeniser().own(member), dtype=weight.dtype)
        rows = torch.arange(len(tokens)).split(256)
        parts = [module(batch.select(some).to(weight.device)).double().cpu() for some in rows]
        return np.asarray(torch.cat(parts).numpy())

    def _member_weight(self) -> float:
        """Return the factor of one network's logits."""
        return float(self.blend_[1]) / max(len(self.modules_), 1)

    def tokenise(self, X: Any) -> Tokens:
        """Return the tokens of cases.

        Parameters
        ----------
        X
            Series as in :meth:`predict_proba`.
        """
        panel = self._read_new(X)
        return self._tokeniser()(panel)

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
        arrays: dict[str, Any] = {"share": self.share_, "blend": self.blend_}
        if self.tokeniser_ is not None:
            arrays |= {f"tokeniser.{name}": value for name, value in self.tokeniser_.to_arrays().items()}
            arrays |= {f"means.{name}": value for name, value in self.means_.items()}
        if self.readout_ is not None:
            arrays |= {f"readout.{name}": value for name, value in self.readout_.to_arrays().items()}
        for member, module in enumerate(self.modules_):
            arrays |= {f"module.{member}.{name}": value for name, value in module.state_dict().items()}
        about = {
            "params": encode_parameters(self.get_params(deep=False) | {"memory": None}),
            "classes": [encode_label(label) for label in self.classes_.tolist()],
            "labels": self.classes_.dtype.str,
            "n_channels": self.n_channels_,
            "channel_names": self.channel_names_,
            "length_range": list(self.length_range_),
            "n_features_in": getattr(self, "n_features_in_", None),
            "temperature": self.temperature_,
            "history": self.history_.to_json(),
            "validation": self.validation_,
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
        model.share_, model.blend_ = arrays["share"], arrays["blend"]
        model.temperature_ = float(about["temperature"])
        model.n_channels_, model.length_range_ = int(about["n_channels"]), tuple(about["length_range"])
        names = about.get("channel_names")
        model.channel_names_ = None if names is None else tuple(names)
        if about["n_features_in"] is not None:
            model.n_features_in_ = int(about["n_features_in"])
        model.history_, model.fit_report_ = History.from_json(about["history"]), dict(about["fit_report"])
        model.validation_ = about["validation"]
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


def _below(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
