"""What tables of results need to know of point processes: values by sequence, and whether data are the known ones."""

from __future__ import annotations

from collections.abc import Mapping

from seqattn.data import catalog
from seqattn.data.sequences import Sequences
from seqattn.hawkes.process import PointProcess

__all__ = ["cases", "deviations"]


def cases(model: PointProcess, X: Sequences, convention: str = "full") -> tuple[list[float], list[int]]:
    """Return the log-likelihood and the number of scored events of each sequence.

    Both summed, the one divided by the other is ``loglik_per_event`` of :meth:`seqattn.SAHP.evaluate`.

    Parameters
    ----------
    model
        A fitted point process.
    X
        Held-out data.
    convention
        Which events and intervals count, as in :meth:`seqattn.SAHP.log_likelihood`.

    Returns
    -------
    Totals in nats and counts, in the order of the sequences.
    """
    scores = model._scores(X)
    totals, counts = scores.per_sequence(convention, len(X)), scores.events_per_sequence(convention, len(X))
    return totals.tolist(), counts.tolist()


def deviations(name: str, parts: Mapping[str, Sequences]) -> list[str]:
    """Return in what data differ from what the catalogue says of the data set of that name.

    Parameters
    ----------
    name
        Known name of the data set.
    parts
        The data by split.

    Returns
    -------
    One text per split that holds another number of sequences or events.

    Examples
    --------
    >>> from seqattn import load_dataset
    >>> dev = load_dataset("taxi", "dev")
    >>> deviations("taxi", {"dev": dev}), deviations("taxi", {"dev": dev.select([0, 1])})
    ([], ['dev holds 2 of 200 sequences'])
    """
    known, found = catalog.entry(name), []
    for split, X in parts.items():
        part = known.parts[split]
        if part.sequences not in (None, len(X)):
            found.append(f"{split} holds {len(X):,} of {part.sequences:,} sequences")
        elif part.events not in (None, X.n_events):
            found.append(f"{split} holds {X.n_events:,} of {part.events:,} events")
    return found
