"""Self-attentive models with random weights, as if fitted: for tests of what must hold for any weights."""

from __future__ import annotations

import numpy as np
import torch

from seqattn import SAHP, Sequences
from seqattn.train.history import History

# The structure of the paper, whatever the defaults are.
PLAIN = {
    "n_decays": 1,
    "own_kernels": 0,
    "gap_kernels": 0,
    "time_features": False,
    "time_decay": False,
    "clock": "gap",
}
ADDITIONS = {
    "n_decays": 3,
    "own_kernels": 2,
    "gap_kernels": 2,
    "time_features": True,
    "time_decay": True,
}
LOCAL = {**ADDITIONS, "max_context": 5}


def random_model(
    seed: int = 0, n_types: int = 3, dtype: torch.dtype = torch.float32, scale: float = 1.0, **options
) -> SAHP:
    """Return a model whose weights are far from their start, with kernels at distances around one model unit."""
    small = {"d_model": 16, "n_heads": 2, "n_layers": 2, "window": (0.0, 20.0), "device": "cpu"}
    model = SAHP(**{**PLAIN, **small, **options})
    model.labels_, model.n_types_ = tuple(range(n_types)), n_types
    model.unit_, model.window_, model.scale_ = None, model.window, scale
    model.baselines_, model.history_ = {}, History()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.module_ = model._module(torch.full((n_types,), 1.0 / n_types))
        for name, parameter in model.module_.named_parameters():
            if parameter.requires_grad:
                parameter.data.add_((0.5 if "embedding" in name else 0.2) * torch.randn_like(parameter))
        for bank in (model.module_.own, model.module_.gap):
            if bank is not None:
                centre, width = 0.5 + 2 * torch.rand(bank.shape), 0.1 + 0.2 * torch.rand(bank.shape)
                bank.place(centre, width, 0.05)
    model.module_.to(dtype).eval()
    return model


def random_histories(seed: int, lengths: tuple[int, ...], n_types: int = 3, t_end: float = 20.0) -> Sequences:
    rng = np.random.default_rng(seed)
    pairs = [(np.sort(rng.uniform(0, t_end, n)), rng.integers(0, n_types, n)) for n in lengths]
    return Sequences.from_lists(pairs, window=(0.0, t_end + 1.0), labels=n_types)
