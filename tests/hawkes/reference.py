"""Reference processes and independent formulas for the tests of this folder."""

from __future__ import annotations

import numpy as np

from seqattn import ExponentialHawkes, Sequences

HAWKES = (np.array([0.3, 0.2]), np.array([[0.4, 0.3], [0.0, 0.5]]), 2.0)
CROSS = (np.array([0.1, 0.1]), np.array([[0.0, 0.9], [0.9, 0.0]]), 2.0)


def hawkes_process(parameters) -> ExponentialHawkes:
    """Return a process with given base rates, excitations and decay."""
    model = ExponentialHawkes()
    model.mu_, model.excitation_ = parameters[0].copy(), parameters[1].copy()
    model.decay_ = np.array([parameters[2]])
    model.labels_ = tuple(range(len(model.mu_)))
    model.n_types_, model.unit_, model.window_ = len(model.mu_), None, model.window
    return model


def hawkes_data(parameters, n: int, seed: int, t_end: float = 100.0) -> Sequences:
    return hawkes_process(parameters).sample(n, t_end, random_state=seed)


def poisson_data(n: int, seed: int, n_types: int = 4, rate: float = 0.25, t_end: float = 100.0) -> Sequences:
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(n):
        count = rng.poisson(n_types * rate * t_end)
        pairs.append((np.sort(rng.uniform(0, t_end, count)), rng.integers(0, n_types, count)))
    return Sequences.from_lists(pairs, window=(0.0, t_end), labels=n_types)


def double_sum_log_likelihood(times, kinds, start, end, parameters, first: int = 0):
    """The Hawkes log-likelihood as an O(n^2) double sum over pairs of events: time part and type part."""
    mu, matrix, decay = parameters
    log_total = log_type = 0.0
    for i in range(first, len(times)):
        rates = mu.copy()
        for j in range(i):
            rates = rates + matrix[:, kinds[j]] * decay * np.exp(-decay * (times[i] - times[j]))
        log_total += np.log(rates.sum())
        log_type += np.log(rates[kinds[i]] / rates.sum())
    begin = start if first == 0 else times[first - 1]
    mass = mu.sum() * (end - begin)
    for j in range(len(times)):
        low, high = max(begin - times[j], 0.0), end - times[j]
        if high > 0:
            mass += matrix[:, kinds[j]].sum() * (np.exp(-decay * low) - np.exp(-decay * high))
    return log_total - mass, log_type


def paired_error(left, right, counts) -> float:
    """Return the standard error of a difference of per-event means, sequences being the independent units."""
    difference = left - right
    mean = difference.sum() / counts.sum()
    return float(np.sqrt(((difference - mean * counts) ** 2).sum()) / counts.sum())
