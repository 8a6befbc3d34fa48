"""The settings of SAHP that are compared, and SAHP with the batches of the comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from processes import D_MODEL, N_HEADS, N_LAYERS, Data

import seqattn
from seqattn.hawkes.counting import event_rates

# "paper": equations 11 to 14 as printed. "defaults": SAHP() as it is. Width, heads, layers and dropout are equal.
SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {
        "form": "mark",
        "n_decays": 1,
        "own_kernels": 0,
        "gap_kernels": 0,
        "time_features": False,
        "time_decay": False,
        "clock": "gap",
        "mu_eta_activation": "gelu",
        "learn_scale": False,
    },
    "defaults": {},
}


def sides(names: list[str], given: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return the parameters of each of our sides; parameters of the caller's own are one more side."""
    unknown = sorted(set(names) - set(SETTINGS))
    if unknown:
        raise SystemExit(f"There are no settings {unknown}. Settings: {sorted(SETTINGS)}.")
    return {name: SETTINGS[name] for name in names} | ({} if given is None else {"given": given})


def version() -> str:
    return f"seqattn {seqattn.__version__}, torch {torch.__version__}"


def sequences_of(data: Data) -> seqattn.Sequences:
    """Return the data with windows from first to last event."""
    return seqattn.Sequences.from_lists(list(data.rows()), labels=data.n_types)


def estimator(parameters: dict[str, Any], **more: Any) -> seqattn.SAHP:
    """Return an estimator of the compared size."""
    size = {"d_model": D_MODEL, "n_heads": N_HEADS, "n_layers": N_LAYERS, "dropout": 0.0}
    return seqattn.SAHP(**{**size, **parameters, **more, "device": "cpu"})


def begin(model: seqattn.SAHP, sequences: seqattn.Sequences, seed: int) -> None:
    """Bring an estimator to where its ``fit`` starts to train; the module then is ``model.module_``."""
    gaps = np.concatenate([np.diff(sequences.sequence(row)[0]) for row in range(len(sequences))])
    model._read_training(sequences)
    model.scale_ = float(gaps[gaps > 0].mean())
    torch.manual_seed(seed)
    model.module_ = model._module(torch.from_numpy(event_rates(sequences) * model.scale_))
    model._place_kernels(sequences)


def fit_and_save(job: dict[str, Any]) -> dict[str, Any]:
    """Train for a short while, so that states are not trivial, and write the model to a file."""
    short = {"epochs": job["epochs"], "validation": None, "patience": None, "baselines": False}
    model = estimator(job["parameters"], **short, random_state=job["seed"])
    model.fit(sequences_of(Data.read(job["train"])))
    model.save(job["weights"])
    return {"loss": model.history_.records[-1]["train_loss"] + np.log(model.scale_)}
