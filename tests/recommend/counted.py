"""Small sequences with their transitions, and arrays drawn from a seed."""

from __future__ import annotations

import numpy as np
import torch

from seqattn.recommend.transitions import Transitions

N = 50
LISTS = [[0, 1, 2], [0, 1, 0, 2], [3, 3, 1], [4], [0, 1, 5, 6, 7, 8]]


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng([seed, *shape]).normal(size=shape))


def transitions(lists=LISTS, n_items=N, **settings):
    offsets = np.concatenate([[0], np.cumsum([len(values) for values in lists])])
    return Transitions.of(offsets, np.concatenate(lists), n_items, **settings)


def dense_counts(found):
    counts = np.zeros((found.n_items, found.n_items))
    for i in range(found.n_items):
        part = slice(found.offsets[i], found.offsets[i + 1])
        counts[i, found.successors[part]] = found.counts[part]
    return counts
