"""Accuracy on left-out training cases: VSFormer, attention over time and channels in turn, and both together.

The other network cuts each channel (with its first differences) into patches, and attends over the patches of a channel
and over the channels of a patch by turns, as networks for several channels do that have no shapes. Both are fitted anew
on the training folds; test cases are never read. "together" adds their log-probabilities with equal weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from processes import RESULTS, clocks, told, write
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn

from seqattn import VSFormerClassifier, load_dataset
from seqattn.attention import Layout
from seqattn.nn.blocks import EncoderBlock

DATA = ["RacketSports", "UWaveGestureLibrary", "SelfRegulationSCP1", "NATOPS", "FingerMovements"]
PATCHES, EPOCHS, STEPS, BATCH, RATE = 12, 60, 400, 32, 1e-3


class DualAttention(nn.Module):
    """Classify ``(cases, channels, patches, points)`` by attention within channels and across them, in turn."""

    def __init__(self, sizes: Sequence[int], n_classes: int, d_model: int = 32, n_layers: int = 2) -> None:
        super().__init__()
        channels, patches, points = sizes
        self.content = nn.Linear(points, d_model)
        self.channel = nn.Parameter(torch.randn(channels, 1, d_model) * 0.02)
        self.place = nn.Parameter(torch.randn(patches, d_model) * 0.02)
        self.over_time, self.over_channels = (
            nn.ModuleList(EncoderBlock(d_model, 4, 0.2, expansion=2) for _ in range(n_layers))
            for _ in range(2)
        )
        self.decision = nn.Sequential(
            nn.LayerNorm(d_model),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(channels * patches * d_model, n_classes),
        )

    def forward(self, patches: Tensor) -> Tensor:
        cases, channels, places, _ = patches.shape
        x = self.content(patches) + self.channel + self.place
        rows, columns = Layout.of([places] * cases * channels), Layout.of([channels] * cases * places)
        for over_time, over_channels in zip(self.over_time, self.over_channels, strict=True):
            x = over_time(x.flatten(0, 2), rows).view(cases, channels, places, -1).transpose(1, 2)
            x = over_channels(x.flatten(0, 2), columns).view(cases, places, channels, -1).transpose(1, 2)
        return self.decision(x.flatten(1, 2))


def patched(values: np.ndarray) -> Tensor:
    """Return the patches of series and their differences, ``(cases, 2 channels, patches, points)``."""
    both = np.concatenate([values, np.diff(values, axis=2, prepend=values[..., :1])], axis=1)
    size = -(-both.shape[2] // PATCHES)
    room = -both.shape[2] % size
    padded = np.pad(both, ((0, 0), (0, 0), (0, room)), mode="edge")
    return torch.from_numpy(padded.reshape(*both.shape[:2], -1, size)).float()


def dual(train: np.ndarray, codes: np.ndarray, left: np.ndarray, seed: int) -> np.ndarray:
    """Fit the network of both attentions; return the probabilities of left-out cases."""
    torch.manual_seed(seed)
    values = [patched(some) for some in (train, left)]
    mean, spread = (part((0, 2, 3), keepdim=True) for part in (values[0].mean, values[0].std))
    fitted, judged = ((some - mean) / spread.clamp(min=1e-6) for some in values)
    module = DualAttention(fitted.shape[1:], int(codes.max()) + 1)
    steps = max(EPOCHS * -(-len(codes) // BATCH), STEPS)
    optimiser = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=1e-2)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    wanted, order = torch.from_numpy(codes), torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if not len(order):
            order = torch.randperm(len(codes))
        some, order = order[:BATCH], order[BATCH:]
        loss = nn.functional.cross_entropy(module(fitted[some]), wanted[some], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        rates.step()
    module.eval()
    with torch.inference_mode():
        return torch.cat([module(part) for part in judged.split(64)]).double().softmax(1).numpy()


def compare(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    panel = load_dataset(name, split="train")
    values, codes = panel.to_array(), np.unique(panel.labels, return_inverse=True)[1]
    found: dict[str, Any] = {"VSFormer": [], "dual": []}
    seconds = np.zeros(2)
    folds = StratifiedKFold(options.folds, shuffle=True, random_state=0)
    rows = list(folds.split(values, codes))
    for number, (kept, left) in enumerate(rows):
        start = clocks()
        model = VSFormerClassifier(random_state=number).fit(panel.select(kept))
        found["VSFormer"].append(model.predict_proba(panel.select(left)))
        middle = clocks()
        found["dual"].append(dual(values[kept], codes[kept], values[left], number))
        seconds += [(middle - start)[0], (clocks() - middle)[0]]
    truth = codes[np.concatenate([left for _, left in rows])]
    given = {side: np.concatenate(parts) for side, parts in found.items()}
    product = np.sqrt(given["VSFormer"] * given["dual"])
    given["together"] = product / product.sum(1, keepdims=True)
    records = [
        {
            "data": name,
            "side": side,
            "cases": len(truth),
            "accuracy": round(float((p.argmax(1) == truth).mean()), 4),
            "log_loss": round(float(log_loss(truth, np.clip(p, 1e-9, 1))), 4),
            "fit_cpu_s": round(float(cost) / options.folds, 1),
        }
        for (side, p), cost in zip(given.items(), [*seconds, seconds.sum()], strict=True)
    ]
    for record in records:
        told(" ".join(f"{key}={value}" for key, value in record.items()))
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=DATA)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS / "classify_dual.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    write([record for name in options.data for record in compare(name, options)], options.results)


if __name__ == "__main__":
    sys.exit(main())
