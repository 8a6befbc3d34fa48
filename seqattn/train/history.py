"""What happened in each epoch of a fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["History", "history_of"]


@dataclass
class History:
    """What happened in each epoch.

    Attributes
    ----------
    records
        One dict per epoch: ``epoch`` (from 1), ``train_loss`` and ``valid_loss`` (means per counted term;
        ``valid_loss`` is None without validation), ``learning_rate`` (of the last step), ``seconds`` (training and
        validation), ``items_per_second`` (counted terms per second of training); where a loss has parts their means as
        ``train_parts`` and ``valid_parts``; of a model with routing attention
        also ``routers``, the use of its clusters as :func:`seqattn.attention.router.router_usage` gives it.
    best_epoch
        The epoch with the smallest validation loss, whose weights the module has; None without validation.
    stopped_early
        Whether `FitSettings.patience` or an observer ended training before the last epoch.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    stopped_early: bool = False

    def add(self, record: dict[str, Any]) -> bool:
        """Append an epoch, and return whether its validation loss is the best so far.

        Parameters
        ----------
        record
            The epoch's record; its ``epoch`` is one more than the last one's.

        Returns
        -------
        True if the record has a validation loss that is smaller than all before.
        """
        losses = [past["valid_loss"] for past in self.records if past["valid_loss"] is not None]
        loss = record["valid_loss"]
        is_best = loss is not None and loss < min(losses, default=math.inf)
        self.records.append(record)
        if is_best:
            self.best_epoch = record["epoch"]
        return is_best

    def to_json(self) -> dict[str, Any]:
        """Return the history as a dict of JSON values.

        Returns
        -------
        A copy with the keys ``records``, ``best_epoch`` and ``stopped_early``.
        """
        records = [dict(record) for record in self.records]
        return {"records": records, "best_epoch": self.best_epoch, "stopped_early": self.stopped_early}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> History:
        """Return the history from which `to_json` made ``values``.

        Parameters
        ----------
        values
            A mapping with the keys ``records``, ``best_epoch`` and ``stopped_early``.

        Returns
        -------
        An equal history with dicts of its own.
        """
        records = [dict(record) for record in values["records"]]
        return cls(records, values["best_epoch"], values["stopped_early"])


def history_of(model: Any) -> History | None:
    """Return what happened in each epoch of a fit, None of a model that learns at once.

    Parameters
    ----------
    model
        A fitted estimator. Recommenders keep it as ``fit_history_``, for their ``history_`` is that of the users.

    Examples
    --------
    >>> history_of(object()) is None
    True
    """
    kept = (getattr(model, name, None) for name in ("fit_history_", "history_"))
    return next((found for found in kept if isinstance(found, History)), None)
