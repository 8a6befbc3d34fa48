"""Models of text that learn from windows of words: ordinary layers, and free logits as in the theory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

from seqattn.attention import Entropy, Layout, Reducer, WeightBlock
from seqattn.attention.reducers import Extent
from seqattn.dynamics.pairwise import Examples, Parameters, forward, gradients
from seqattn.dynamics.text import Corpus, drawn_starts, even_starts, windows
from seqattn.errors import ParameterError
from seqattn.nn.blocks import SelfAttention

__all__ = ["LanguageModel", "TextPlan", "TextRecord", "follow_free", "follow_layers", "memory"]


@dataclass(frozen=True)
class TextPlan:
    """How text is learnt.

    Attributes
    ----------
    record_at
        Steps after which to record; the last one is the end.
    window
        Words in a window.
    batch_size
        Windows per step.
    n_valid
        Windows of the validation part, evenly spaced.
    min_keys
        Queries that see fewer keys do not count in ``entropy_share``.
    d_model, n_layers, dropout, clip
        Of ordinary layers: width, number, share of dropped units, and largest norm of the gradient.
    feed_forward, lr_feed_forward
        Whether layers have a feed-forward map, and its rate (that of all else if None).
    """

    record_at: tuple[int, ...] = (0, 1500)
    window: int = 35
    batch_size: int = 20
    n_valid: int = 200
    min_keys: int = 4
    d_model: int = 64
    n_layers: int = 1
    dropout: float = 0.2
    clip: float = 0.5
    feed_forward: bool = True
    lr_feed_forward: float | None = None

    def __post_init__(self) -> None:
        at = tuple(int(step) for step in self.record_at)
        if not at or min(at) < 0 or list(at) != sorted(set(at)):
            raise ParameterError(
                f"record_at={self.record_at!r} is not allowed. Give rising whole numbers, at least 0."
            )
        for name, least in (
            ("window", 2),
            ("batch_size", 1),
            ("n_valid", 1),
            ("d_model", 2),
            ("n_layers", 1),
        ):
            if getattr(self, name) < least:
                raise ParameterError(
                    f"{name}={getattr(self, name)!r} is not allowed. Give a whole number, at least {least}."
                )
        if self.d_model % 2:
            raise ParameterError(f"d_model={self.d_model!r} is not allowed: positions need an even number.")


@dataclass(frozen=True)
class TextRecord:
    """Where a run stands after some steps.

    Attributes
    ----------
    step
        Steps so far.
    loss
        Of the validation windows, in nats per word.
    entropy
        Of attention, in nats: the mean over layers, windows and places, those that see few keys too.
    entropy_share
        The same over the logarithm of the number of keys, of places that see enough of them: 1 for even attention.
    maps
        Attention of each layer in the first validation window; of free logits None.
    frequency_order
        Rank correlation of attention logits with word frequency; only of free logits.
    """

    step: int
    loss: float
    entropy: float
    entropy_share: float
    maps: Float[np.ndarray, "layers window window"] | None = None
    frequency_order: float = math.nan


def memory(plan: TextPlan, n_words: int, n_tokens: int, n_runs: int = 0) -> int:
    """Return the bytes that a run takes at the most, beside the program itself.

    Parameters
    ----------
    plan
        The run.
    n_words
        Words of all parts of the text.
    n_tokens
        Size of the vocabulary.
    n_runs
        Runs of free logits that train at once; 0 for ordinary layers.
    """
    # Numbers of 4 bytes and, while they are collected, a buffer that grows by halves; words with their counts. Then
    # what torch loads with its first products, and freed blocks that the allocator keeps: 80 MB were measured.
    fixed = 10 * n_words + 300 * 40_000 + 100_000_000
    if n_runs:
        # Parameters of all runs; of the one in training slopes, twice, and a dozen arrays over places and words.
        places = plan.batch_size * plan.window
        return fixed + 4 * (2 * n_runs * n_tokens**2 + 4 * n_tokens**2 + 14 * places * n_tokens)
    places = plan.batch_size * plan.window
    layers = plan.n_layers * (24 * plan.d_model + 3 * plan.window)
    numbers = places * (6 * n_tokens + layers) + 4 * (
        2 * n_tokens * plan.d_model + plan.n_layers * 6 * plan.d_model**2
    )
    return fixed + 4 * numbers


class LanguageModel(nn.Module):
    """Ordinary layers of attention that predict the next word: embedding with positions, layers, decoder.

    Each layer is attention and, if asked for, a feed-forward map of the same width, each with a residual connection
    and a norm after it.

    Parameters
    ----------
    n_tokens
        Words.
    plan
        Width, number and form of layers, window and dropout.
    """

    def __init__(self, n_tokens: int, plan: TextPlan) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, plan.d_model)
        self.layers = nn.ModuleList(_Layer(plan) for _ in range(plan.n_layers))
        self.decoder = nn.Linear(plan.d_model, n_tokens)
        self.dropout = nn.Dropout(plan.dropout)
        self.register_buffer("places", _places(plan.window, plan.d_model))
        for weight in (self.embedding.weight, self.decoder.weight):
            nn.init.uniform_(weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, tokens: Int[Tensor, "windows window"]) -> Float[Tensor, "windows window tokens"]:
        """Return the logits of the word after each place.

        Parameters
        ----------
        tokens
            Windows of words.
        """
        x, layout = self._inputs(tokens)
        for layer in self.layers:
            x = layer(x, layout)
        logits: Tensor = self.decoder(x)
        return logits.view(*tokens.shape, -1)

    def look(self, tokens: Int[Tensor, "windows window"], reduce: type[Reducer]) -> list[Tensor]:
        """Return what a reducer makes of the attention of each layer.

        Parameters
        ----------
        tokens
            Windows of words.
        reduce
            Kind of the reducer, made anew for each layer.
        """
        x, layout = self._inputs(tokens)
        found = []
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            found.append(layer.attention.look(x, layout, causal=True, reduce=reduce()).reduced)
            x = layer(x, layout)
        return found

    def _inputs(self, tokens: Tensor) -> tuple[Tensor, Layout]:
        x = self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim) + self.places
        return self.dropout(x).flatten(0, 1), Layout.of([tokens.shape[1]] * len(tokens))


class _Layer(nn.Module):
    def __init__(self, plan: TextPlan) -> None:
        super().__init__()
        width = plan.d_model
        self.attention = SelfAttention(width, 1)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(plan.dropout)
        parts = [nn.Linear(width, width), nn.ReLU(), nn.Dropout(plan.dropout), nn.Linear(width, width)]
        self.feed_forward = nn.Sequential(*parts) if plan.feed_forward else None
        nn.init.xavier_uniform_(self.attention.inputs.weight)
        for part in (self.attention.inputs, self.attention.output):
            nn.init.zeros_(part.bias)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x = self.norm1(x + self.dropout(self.attention(x, layout, causal=True)))
        if self.feed_forward is not None:
            x = self.norm2(x + self.dropout(self.feed_forward(x)))
        return x


def _places(window: int, d_model: int) -> Tensor:
    """Sines and cosines of the places, of wave lengths from 2 pi to 20,000 pi."""
    rates = 10_000.0 ** (-torch.arange(0, d_model, 2) / d_model)
    angles = torch.arange(window)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


class _Map(Reducer):
    """The weights of a single sequence, as they are, of the first head."""

    def start(self, extent: Extent) -> Tensor:
        return torch.zeros(extent.queries[0], extent.keys[0], dtype=torch.float64, device=extent.device)

    def add(self, total: Tensor, block: WeightBlock) -> None:
        places = (block.query[:, :, None], block.key[:, None, :])
        total.index_put_(torch.broadcast_tensors(*places), block.weights[:, 0].double(), accumulate=True)

    def result(self, total: Tensor, extent: Extent) -> Tensor:
        return total


def follow_layers(corpus: Corpus, plan: TextPlan, lr: float, seed: int) -> Iterator[TextRecord]:
    """Train ordinary layers with plain gradient descent, and record at the steps of the plan.

    Parameters
    ----------
    corpus
        The text; windows of its training part are drawn at random.
    plan
        The run.
    lr
        Rate.
    seed
        Of start, draws and dropout.
    """
    if not 0 < lr < math.inf:
        raise ParameterError(f"A rate of {lr!r} is not allowed. Give a number above 0.")
    rng = np.random.default_rng([seed, 1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LanguageModel(len(corpus.names), plan)
        optimiser = torch.optim.SGD(_groups(model, plan, lr), lr=lr)
        state = torch.get_rng_state()
    done = 0
    for step in plan.record_at:
        # The caller may draw between two records: the stream of random numbers is ours while we train only.
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            for _ in range(step - done):
                _step(model, optimiser, corpus, plan, rng)
            state = torch.get_rng_state()
        done = step
        yield _recorded(model, corpus, plan, step)


def _groups(model: LanguageModel, plan: TextPlan, lr: float) -> list[dict[str, object]]:
    inner = [part for name, part in model.named_parameters() if ".feed_forward." in name]
    outer = [part for name, part in model.named_parameters() if ".feed_forward." not in name]
    return [{"params": outer}, {"params": inner, "lr": plan.lr_feed_forward or lr}]


def _step(
    model: LanguageModel,
    optimiser: torch.optim.Optimizer,
    corpus: Corpus,
    plan: TextPlan,
    rng: np.random.Generator,
) -> None:
    starts = drawn_starts(len(corpus.train), plan.window, plan.batch_size, rng)
    seen, following = map(torch.from_numpy, windows(corpus.train, starts, plan.window))
    optimiser.zero_grad()
    nn.functional.cross_entropy(model(seen).flatten(0, 1), following.flatten()).backward()
    nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
    optimiser.step()


@torch.no_grad()
def _recorded(model: LanguageModel, corpus: Corpus, plan: TextPlan, step: int) -> TextRecord:
    model.eval()
    starts = even_starts(len(corpus.valid), plan.window, plan.n_valid)
    keys = torch.arange(1, plan.window + 1, dtype=torch.float64)
    counted = keys >= min(plan.min_keys, plan.window)
    losses, entropies, shares = [], [], []
    # As many windows at once as in a step, so that a record takes no more memory.
    for part in np.split(starts, range(plan.batch_size, len(starts), plan.batch_size)):
        seen, following = map(torch.from_numpy, windows(corpus.valid, part, plan.window))
        losses.append(
            nn.functional.cross_entropy(model(seen).flatten(0, 1), following.flatten(), reduction="none")
        )
        for spread in model.look(seen, Entropy):
            by_place = spread.view(len(part), plan.window)
            entropies.append(by_place.flatten())
            shares.append((by_place[:, counted] / keys[counted].log()).flatten())
    first = torch.from_numpy(windows(corpus.valid, starts[:1], plan.window)[0])
    maps = torch.stack(model.look(first, _Map)).numpy()
    model.train()
    loss, entropy, share = (
        float(torch.cat(values).double().mean()) for values in (losses, entropies, shares)
    )
    return TextRecord(step, loss, entropy, share, maps)


def follow_free(
    corpus: Corpus, plan: TextPlan, rates: Sequence[tuple[float, float]], seeds: Sequence[int]
) -> Iterator[list[TextRecord]]:
    """Train free logits of attention and decoder with plain gradient descent.

    Each place of a window after the first is a query, which does not see itself: it attends to the words before it in
    the window, of which equal ones share one logit, so that their counts are all that matters. The decoder sees the
    sum scaled to length 1.

    Parameters
    ----------
    corpus
        The text.
    plan
        The run.
    rates
        Pairs of the rates of decoder and attention.
    seeds
        Of the draws; runs with one seed see the same windows. All start from 0.

    Yields
    ------
    For each step of the plan the records of all runs, rates first, then seeds.
    """
    runs = [(lr_y, lr_z, number) for lr_y, lr_z in rates for number in range(len(seeds))]
    n_tokens = len(corpus.names)
    parameters = Parameters(*(torch.zeros(len(runs), n_tokens, n_tokens) for _ in range(2)))
    rngs = [np.random.default_rng([seed, 1]) for seed in seeds]
    done = 0
    for step in plan.record_at:
        for _ in range(step - done):
            for number, rng in enumerate(rngs):
                starts = drawn_starts(len(corpus.train), plan.window, plan.batch_size, rng)
                examples = _examples(corpus.train, starts, plan, n_tokens)
                # One by one: a batch has a place for each word, and the arrays of a single run fill the cache.
                for run, (lr_y, lr_z, own) in enumerate(runs):
                    if own == number:
                        _move(parameters.rows(slice(run, run + 1)), examples, lr_y, lr_z)
        done = step
        yield _records_of_free(parameters, corpus, plan, step)


def _move(run: Parameters, examples: Examples, lr_y: float, lr_z: float) -> None:
    slopes, _ = gradients(run, examples)
    run.Y.add_(slopes.Y, alpha=lr_y)
    run.Z.add_(slopes.Z, alpha=lr_z)


def _examples(text: NDArray[np.int32], starts: NDArray[np.int64], plan: TextPlan, n_tokens: int) -> Examples:
    """Counts of the words before each place of the windows, with the word there and the one that follows."""
    seen, following = map(torch.from_numpy, windows(text, starts, plan.window))
    mass = torch.zeros(*seen.shape, n_tokens).scatter_(-1, seen[..., None], 1.0)
    mass = mass[:, :-1].cumsum(1).flatten(0, 1)
    query, label = (part[:, 1:].reshape(1, -1) for part in (seen, following))
    return Examples(mass[None], query, label, torch.full(query.shape, 1 / query.numel()))


def _records_of_free(parameters: Parameters, corpus: Corpus, plan: TextPlan, step: int) -> list[TextRecord]:
    starts = even_starts(len(corpus.valid), plan.window, plan.n_valid)
    keys = torch.arange(1, plan.window, dtype=torch.float64)
    counted = keys >= min(plan.min_keys, plan.window - 1)
    sums = torch.zeros(3, len(parameters.Z), dtype=torch.float64)
    for part in np.split(starts, range(plan.batch_size, len(starts), plan.batch_size)):
        examples = _examples(corpus.valid, part, plan, len(corpus.names))
        for run in range(len(parameters.Z)):
            found = forward(parameters.rows(slice(run, run + 1)), examples)
            # Equal words share what their logit gets: over places the entropy is larger by the mean log of counts.
            spread = torch.special.entr(found.c) + found.c * examples.mass.clamp(min=1).log()
            by_place = spread.sum(-1).double().view(len(part), -1)
            share = (by_place / keys.log())[:, counted].mean(-1).sum()
            loss = -found.log_probability.double().view(len(part), -1).mean(-1).sum()
            sums[:, run] += torch.stack([loss, by_place.mean(-1).sum(), share])
    rows = (sums / len(starts)).T.tolist()
    return [
        TextRecord(step, loss, entropy, share, frequency_order=order)
        for (loss, entropy, share), order in zip(rows, _orders(parameters.Z, corpus), strict=True)
    ]


def _orders(Z: Tensor, corpus: Corpus) -> list[float]:
    """Rank correlation of the logit of each word, the mean over all queries, with its frequency."""
    counts = corpus.counts()
    seen = counts > 0
    means = Z.double().mean(1).numpy()[:, seen]
    return [
        math.nan if np.ptp(mean) == 0 else float(spearmanr(mean, counts[seen]).statistic) for mean in means
    ]
