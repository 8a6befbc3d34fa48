"""Attention as the definition reads, one row after the other, and ragged batches to compare it with.

Nothing here is shared with the kernels: what a query may see is written down again, one pair at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import torch


def label(i):
    """Three labels in uneven turns."""
    return (7 * i + i // 3) % 3


def head_label(i, h):
    """Labels that differ from head to head; in head 1 the tokens of one label lie far apart."""
    return (i // (3 + h)) % (2 + 3 * h)


def rank(i, of):
    """The number of earlier tokens with the label of token i."""
    return sum(of(before) == of(i) for before in range(i))


def near(i, j, of, window):
    """Whether two tokens have one label, with at most ``window - 1`` of its tokens between them."""
    return of(i) == of(j) and abs(rank(i, of) - rank(j, of)) <= window


def nearest(i, j, n, size):
    """Whether j is among the ``size`` tokens around i; windows that would stick out are shifted."""
    first = min(max(i - size // 2, 0), max(n - size, 0))
    return first <= j < first + size


@cache
def sorted_ranks(n, h=None):
    """The places of n tokens when they are sorted by label, or by the label of a head."""
    order = sorted(range(n), key=label if h is None else lambda i: head_label(i, h))
    return {token: place for place, token in enumerate(order)}


def ahead(i, j, ranks, size):
    """How many chunks of sorted tokens j stands after i."""
    return ranks[j] // size - ranks[i] // size


# Who sees whom in a sequence of n tokens and a head h, apart from causality and holes. A new pattern is tested by being
# named here.
VISIBLE = {
    "dense": lambda i, j, n, h: True,
    "self": lambda i, j, n, h: i == j,
    "local": lambda i, j, n, h: i - 3 <= j <= i,
    "both sides": lambda i, j, n, h: i - 2 <= j <= i + 1,
    "prefix": lambda i, j, n, h: j < 2,
    "local and prefix": lambda i, j, n, h: i - 2 <= j <= i or j < 2,
    "wide": lambda i, j, n, h: i - 40 <= j <= i + 7,
    "wide and prefix": lambda i, j, n, h: i - 33 <= j <= i or j < 5,
    "three parts": lambda i, j, n, h: i - 1 <= j <= i + 4 or j < 3 or i - 20 <= j <= i,
    "neighborhood": lambda i, j, n, h: nearest(i, j, n, 5),
    "wide neighborhood": lambda i, j, n, h: nearest(i, j, n, 41),
    "blocked": lambda i, j, n, h: i - i % 4 - 2 <= j < i - i % 4 + 6,
    "dilated": lambda i, j, n, h: (i - j) % 3 == 0 and -1 <= (i - j) // 3 <= 2,
    "segments": lambda i, j, n, h: label(i) == label(j),
    "near in segments": lambda i, j, n, h: near(i, j, label, 2),
    "segments per head": lambda i, j, n, h: near(i, j, lambda x: head_label(x, h % 2), 4),
    "common labels": lambda i, j, n, h: label(i) == label(j + 1),
    "common labels per head": lambda i, j, n, h: head_label(i, h % 2) == head_label(j + 2, h % 2),
    "sorted chunks": lambda i, j, n, h: ahead(i, j, sorted_ranks(n), 4) in (0, 1),
    "sorted chunks per head": lambda i, j, n, h: ahead(i, j, sorted_ranks(n, h % 2), 3) in (0, 1),
    "local or dilated": lambda i, j, n, h: i - 2 <= j <= i or ((i - j) % 3 == 0 and -6 <= j - i <= 3),
    "segments or prefix": lambda i, j, n, h: near(i, j, lambda x: head_label(x, h % 2), 1) or j < 2,
    "two prefixes": lambda i, j, n, h: j < 3,
    "local in segments": lambda i, j, n, h: i - 9 <= j <= i and label(i) == label(j),
    "half and half": lambda i, j, n, h: i - 3 <= j <= i if h % 2 == 0 else j < 2 or abs(i - j) <= 1,
    "dilated in segments per head": lambda i, j, n, h: (
        (i - j) % 3 == 0 and 0 <= i - j <= 12 and near(i, j, lambda x: head_label(x, h % 2), 3)
    ),
}


def one_row(q, k, v, bias, visible, scale):
    """Return output and log-sum of one query ``[dim]``; ``visible`` lists the keys it sees."""
    if not visible:
        return torch.zeros_like(v[:1]).sum(0), torch.tensor(-torch.inf, dtype=q.dtype)
    scores = k[visible] @ q * scale + bias[visible]
    top = scores.detach().max()
    if top == -torch.inf:
        return torch.zeros_like(v[:1]).sum(0), torch.tensor(-torch.inf, dtype=q.dtype)
    powers = torch.exp(scores - top)
    return powers @ v[visible] / powers.sum(), top + torch.log(powers.sum())


def one_sequence(q, k, v, bias, sees, scale):
    """Return output ``[heads, queries, value_dim]`` and log-sums ``[heads, queries]`` of one sequence."""
    heads, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    output = q.new_zeros(heads, queries, v.shape[-1])
    lse = q.new_full((heads, queries), -torch.inf)
    for h in range(heads):
        shared = h * k.shape[0] // heads
        for i in range(queries):
            seen = [j for j in range(keys) if sees(i, j, h)]
            added = bias[h % bias.shape[0]]
            output[h, i], lse[h, i] = one_row(
                q[h, i], k[shared], v[shared], added[i] if added.dim() == 2 else added, seen, scale
            )
    return output, lse


@dataclass
class Ragged:
    """Sequences of given lengths, each with its own leaf tensors ``[heads, length, dim]``."""

    queries: list[int]
    keys: list[int] | None = None
    heads: int = 2
    key_heads: int = 2
    dim: int = 7
    value_dim: int = 7
    bias_heads: int = 0
    seed: int = 0
    dtype: torch.dtype = torch.float64
    leaves: dict = field(init=False)

    def __post_init__(self):
        draw = torch.Generator().manual_seed(self.seed)
        keys = self.queries if self.keys is None else self.keys

        def normal(heads, lengths, dim):
            return [
                torch.randn(heads, n, dim, generator=draw, dtype=torch.float64)
                .to(self.dtype)
                .requires_grad_()
                for n in lengths
            ]

        self.leaves = {
            "q": normal(self.heads, self.queries, self.dim),
            "k": normal(self.key_heads, keys, self.dim),
            "v": normal(self.key_heads, keys, self.value_dim),
        }
        if self.bias_heads:
            self.leaves["bias"] = normal(self.bias_heads, keys, 1)

    @property
    def key_lengths(self):
        return self.queries if self.keys is None else self.keys

    def all_leaves(self):
        return [leaf for leaves in self.leaves.values() for leaf in leaves]

    def packed(self, name):
        parts = [leaf.transpose(0, 1) for leaf in self.leaves[name]]
        width = {"q": self.dim, "k": self.dim, "v": self.value_dim, "bias": 1}[name]
        heads = {"q": self.heads, "bias": self.bias_heads}.get(name, self.key_heads)
        return torch.cat([*parts, torch.zeros(0, heads, width, dtype=self.dtype)])

    def padded(self, name, fill=0.0):
        lengths = self.queries if name == "q" else self.key_lengths
        width = {"q": self.dim, "k": self.dim, "v": self.value_dim, "bias": 1}[name]
        heads = {"q": self.heads, "bias": self.bias_heads}.get(name, self.key_heads)
        wide = torch.full((len(lengths), heads, max(lengths, default=0), width), fill, dtype=self.dtype)
        for b, leaf in enumerate(self.leaves[name]):
            wide[b, :, : leaf.shape[1]] = leaf
        return wide

    def expected(self, causal=False, pattern="dense", holes=None, scale=None):
        """Return what each sequence's output and log-sums must be."""
        scale = self.dim**-0.5 if scale is None else scale
        results = []
        for b, (n, m) in enumerate(zip(self.queries, self.key_lengths, strict=True)):

            def sees(i, j, h, b=b, n=n, m=m):
                allowed = not causal or j <= m - n + i
                return allowed and VISIBLE[pattern](i, j, m, h) and (holes is None or bool(holes[b][j]))

            q, k, v = (self.leaves[name][b].double() for name in "qkv")
            results.append(one_sequence(q, k, v, self.added(b), sees, scale))
        return results

    def added(self, b):
        """Return what is added to the scores of sequence b, ``[heads or 1, (queries,) keys]``."""
        if not self.bias_heads:
            return torch.zeros(1, self.key_lengths[b], dtype=torch.float64)
        return self.leaves["bias"][b].double()[..., 0]


# Numbers of each kind of bias in a sequence of n queries and m keys: [heads, *size].
PARTS = {
    "key": {"key": lambda n, m: (m,)},
    "separable": {"a": lambda n, m: (n, 2), "c": lambda n, m: (m, 2)},
    "relative": {"table": lambda n, m: (5,)},
    "dense": {"dense": lambda n, m: (n, m)},
    "prior per key": {"key prior": lambda n, m: (m,)},
    "prior per pair": {"pair prior": lambda n, m: (n, m)},
}
FIRST = -1  # distance of the first entry of the table
FLOOR = 0.2


def distance(i, j):
    """The entry of the table for a pair: the nearest one to its distance."""
    return min(max(i - j - FIRST, 0), 4)


@dataclass
class Biased(Ragged):
    """Sequences with biases of some kinds; those of pairs are constants unless they are to be learnt."""

    kinds: tuple[str, ...] = ()
    learnt: bool = True
    part_heads: int = 2

    def __post_init__(self):
        super().__post_init__()
        draw = torch.Generator().manual_seed(self.seed + 7)
        sizes = list(zip(self.queries, self.key_lengths, strict=True))
        for kind in self.kinds:
            for name, size in PARTS[kind].items():
                each = [(0, 0)] if name == "table" else sizes
                numbers = [
                    torch.randn(self.part_heads, *size(n, m), generator=draw, dtype=torch.float64)
                    for n, m in each
                ]
                if "prior" in name:
                    numbers = [x.abs() for x in numbers]
                grows = self.learnt or kind in ("key", "separable", "prior per key")
                self.leaves[name] = [x.to(self.dtype).requires_grad_(grows) for x in numbers]

    def all_leaves(self):
        return [leaf for leaf in super().all_leaves() if leaf.requires_grad]

    def added(self, b):
        n, m = self.queries[b], self.key_lengths[b]
        total = torch.zeros(self.part_heads, n, m, dtype=torch.float64)
        part = {
            name: (leaves[0] if name == "table" else leaves[b]).double()
            for name, leaves in self.leaves.items()
        }
        if "key" in self.kinds:
            total = total + part["key"][:, None]
        if "separable" in self.kinds:
            for r in range(2):
                total = total + part["a"][:, :, None, r] * part["c"][:, None, :, r]
        if "relative" in self.kinds:
            entries = torch.tensor([[distance(i, j) for j in range(m)] for i in range(n)], dtype=torch.int64)
            total = total + part["table"][:, entries.view(n, m)]
        if "dense" in self.kinds:
            total = total + part["dense"]
        if "prior per key" in self.kinds:
            total = total + torch.where(part["key prior"] < FLOOR, FLOOR, part["key prior"]).log()[:, None]
        if "prior per pair" in self.kinds:
            total = total + torch.where(part["pair prior"] < FLOOR, FLOOR, part["pair prior"]).log()
        return total
