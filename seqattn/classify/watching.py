"""Cases that are looked at after each epoch of a fit and change nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqattn.classify.predicting import Predicting
from seqattn.classify.tokens import Tokeniser, Tokens
from seqattn.data.panels import Panel
from seqattn.train.history import History
from seqattn.train.loop import Observer
from seqattn.train.settings import FitSettings

__all__ = ["Watch"]

_PREFIX = "watched."


class Watch:
    """What the members of a classifier say of some cases after each of their epochs.

    Parameters
    ----------
    tokeniser
        Makes the tokens of the cases, once for all members.
    panel
        The cases, with labels.

    Attributes
    ----------
    seconds
        Time that this call has spent on looking.
    """

    def __init__(self, tokeniser: Tokeniser, panel: Panel) -> None:
        began = time.perf_counter()
        self._labels, self._tokens = np.asarray(panel.labels), tokeniser(panel)
        self._members: list[_Member] = []
        self.seconds = time.perf_counter() - began

    def member(self, module: torch.nn.Module, logits: Callable[[Tokens], np.ndarray]) -> Observer:
        """Return an observer of the next member's training.

        Parameters
        ----------
        module
            The member.
        logits
            Returns what the member says of tokens, as it stands.
        """

        def look() -> np.ndarray:
            began = time.perf_counter()
            module.eval()
            found = logits(self._tokens)
            module.train()
            self.seconds += time.perf_counter() - began
            return found

        self._members.append(_Member(look))
        return self._members[-1]

    def write(self, model: Predicting) -> None:
        """Write the accuracy of readout and members together after each epoch into the history of a classifier.

        Parameters
        ----------
        model
            The classifier, whose members have been trained.
        """
        began = time.perf_counter()
        readout = 0.0
        if model.readout_ is not None:
            readout = model.blend_[0] * model.readout_.outputs(self._tokens.families)
        for record in model.history_.records:
            epoch = record["epoch"]
            # A member that ran out of patience has not come to every epoch.
            if all(epoch in member.logits for member in self._members):
                networks = np.mean([member.logits[epoch] for member in self._members], axis=0)
                predicted = model.classes_[(readout + model.blend_[1] * networks).argmax(axis=1)]
                record["watched_accuracy"] = float((predicted == self._labels).mean())
        self.seconds += time.perf_counter() - began
        model.fit_report_["watched_seconds"] = self.seconds


class _Member(Observer):
    """Notes the logits of one member, and keeps them in its checkpoint."""

    def __init__(self, look: Callable[[], np.ndarray]) -> None:
        self._look = look
        self.logits: dict[int, np.ndarray] = {}

    def begin(self, settings: FitSettings) -> None:
        """Do nothing."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Take the logits as the member stands."""
        self.logits[record["epoch"]] = self._look()

    def end(self, history: History) -> None:
        """Do nothing."""

    def state(self) -> dict[str, Tensor]:
        """Return the logits of all epochs so far."""
        return {f"{_PREFIX}{epoch}": torch.from_numpy(logits) for epoch, logits in self.logits.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back the logits of the epochs before an interruption."""
        ours = {name: value for name, value in tensors.items() if name.startswith(_PREFIX)}
        self.logits = {int(name.removeprefix(_PREFIX)): value.numpy() for name, value in ours.items()}
