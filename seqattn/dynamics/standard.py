"""The ordinary one-layer model: embeddings and weight matrices, with the library's own attention inside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from seqattn.attention import Attention, KeyBias, attend
from seqattn.dynamics.classes import SequenceClasses
from seqattn.dynamics.pairwise import Examples, Forward, Gradients, Parameters, gradients, normalised
from seqattn.dynamics.trainers import Descent, Plan, Runs
from seqattn.errors import DataError

__all__ = ["StandardLayer", "StandardTrainer"]


class StandardLayer(nn.Module):
    r"""One attention layer without positions, a norm, and a decoder tied to the embedding.

    .. math:: \text{logits} = \mathrm{gain} \cdot U W_V\, \mathrm{norm}\Bigl(\sum_l c_l\, U_l\Bigr), \quad
       c = \mathrm{softmax}\bigl(\log b_l + U_m W_Q W_K^T U_l^T / \sqrt d\bigr)

    Keys are the tokens of the vocabulary, each with the logarithm of its count or probability as a bias: the same as
    all tokens of a sequence one by one.

    Parameters
    ----------
    n_tokens, d_model
        Tokens and width.
    gain
        Factor of the logits.
    norm
        As in :mod:`seqattn.dynamics.pairwise`.
    rng
        Source of the start: embeddings of length about 1, matrices as those of torch's linear layers.
    """

    def __init__(
        self,
        n_tokens: int,
        d_model: int,
        gain: float = 1.0,
        norm: str = "l2",
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__()
        rng = rng or np.random.default_rng()
        bound = 1 / math.sqrt(d_model)
        self.embedding = nn.Parameter(torch.from_numpy(rng.normal(0, bound, (n_tokens, d_model))))
        self.to_query, self.to_key, self.to_value = (
            nn.Parameter(torch.from_numpy(rng.uniform(-bound, bound, (d_model, d_model)))) for _ in range(3)
        )
        self.gain, self.norm = gain, norm

    def forward(
        self, queries: Tensor, bias: Float[Tensor, "examples tokens"]
    ) -> tuple[Float[Tensor, "examples outputs"], Float[Tensor, "examples tokens"]]:
        """Return the logits of the next token, and the attention to each token.

        Parameters
        ----------
        queries
            Token of each example's query.
        bias
            Logarithm of counts or probabilities, ``-inf`` for tokens that do not occur.
        """
        attention = self.attend(queries, bias)
        seen, _ = normalised(attention.output[:, 0, 0], self.norm)
        weights = attention.weights
        assert weights is not None
        return self.gain * seen @ self.to_value.mT @ self.embedding.mT, weights[:, 0, 0]

    def attend(self, queries: Tensor, bias: Float[Tensor, "examples tokens"]) -> Attention:
        """Return what the library's attention says of each example, weights included."""
        n = len(queries)
        q = (self.embedding[queries] @ self.to_query)[:, None, None]
        k = (self.embedding @ self.to_key).expand(n, 1, *self.embedding.shape)
        v = self.embedding.expand(n, 1, *self.embedding.shape)
        return attend(q, k, v, bias=KeyBias(bias[:, None]), need="weights")

    def effective(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decoder and attention logits that the matrices stand for, Y and Z of the pairwise model."""
        width = math.sqrt(self.embedding.shape[1])
        Z = self.embedding[queries] @ self.to_query @ self.to_key.mT @ self.embedding.mT / width
        return self.gain * self.embedding @ self.to_value.mT @ self.embedding.mT, Z


class StandardTrainer(Descent):
    """Gradient descent on ordinary layers, one for each run; records are those of the pairwise model.

    Notes
    -----
    Norms of slopes are those of the pairwise model at the effective logits. Attention moves only if its matrices have a
    rate of their own that is large against that of the embedding, or the embedding is frozen: at one common rate the
    embedding learns the task alone.
    """

    def __init__(self, classes: SequenceClasses, runs: Runs, plan: Plan) -> None:
        if classes.query_tokens is None or classes.label_tokens is None:
            raise DataError(
                "The standard model needs queries and outputs that are tokens. Give query_tokens, and label_tokens as "
                "many as tokens, or use model='pairwise'."
            )
        super().__init__(classes, runs, plan)
        self._queries = torch.as_tensor(classes.query_tokens, device=plan.device)
        self._columns = torch.as_tensor(classes.label_tokens, device=plan.device)
        self.layers = [self._layer(int(seed)) for seed in runs.seed]
        self._optimisers = [self._optimiser(run) for run in range(len(runs))]
        self._refresh()

    def _layer(self, seed: int) -> StandardLayer:
        width = self.plan.d_model or self.classes.n_tokens
        rng = np.random.default_rng([seed, 0])
        layer = StandardLayer(self.classes.n_tokens, width, self.plan.gain, self.plan.norm, rng)
        return layer.to(self.plan.device, self.plan.dtype)

    def _optimiser(self, run: int) -> torch.optim.Optimizer:
        layer, plan = self.layers[run], self.plan
        lr_y, lr_z = float(self.runs.lr_y[run]), float(self.runs.lr_z[run])
        groups = [
            {"params": [layer.embedding], "lr": lr_y if plan.lr_u is None else plan.lr_u},
            {"params": [layer.to_value], "lr": lr_y},
            {"params": [layer.to_query, layer.to_key], "lr": lr_z},
        ]
        if plan.optimizer == "adam":
            return torch.optim.Adam(groups)
        return torch.optim.SGD(groups, momentum=plan.momentum)

    def advance(self, time: float) -> None:
        """Take steps up to a number of them."""
        while self.time < time:
            examples = self._examples()
            for run, (layer, optimiser) in enumerate(zip(self.layers, self._optimisers, strict=True)):
                own = examples.rows(slice(run, run + 1))
                optimiser.zero_grad()
                with torch.enable_grad():
                    logits, _ = layer(self._queries[own.query[0]], own.mass[0].log())
                    chosen = logits[:, self._columns].log_softmax(-1).gather(-1, own.label[0][:, None])[:, 0]
                    (-(own.weight[0] * chosen).sum()).backward()
                optimiser.step()
            self.time += 1
        self._refresh()

    @torch.no_grad()
    def _refresh(self) -> None:
        pairs = [layer.effective(self._queries) for layer in self.layers]
        self.parameters = Parameters(
            torch.stack([Y[:, self._columns] for Y, _ in pairs]), torch.stack([Z for _, Z in pairs])
        )

    @torch.no_grad()
    def slopes(self) -> tuple[Gradients, Forward]:
        """Return slopes at the effective logits, and what the layers compute for the classes."""
        found, state = gradients(self.parameters, self._of_classes, self.plan.norm)
        own = [self._seen(layer, self._of_classes) for layer in self.layers]
        c, log_probability, error = (torch.stack(part) for part in zip(*own, strict=True))
        return found, Forward(c, normalised(c, self.plan.norm)[0], state.scale, error, log_probability)

    def _seen(self, layer: StandardLayer, examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
        logits, c = layer(self._queries[examples.query[0]], examples.mass[0].log())
        log_p = logits[:, self._columns].log_softmax(-1)
        labels = examples.label[0][:, None]
        error = (-log_p.exp()).scatter(-1, labels, 0.0)
        return c, log_p.gather(-1, labels)[:, 0], error.scatter(-1, labels, -error.sum(-1, keepdim=True))

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that training needs to go on: tensors, and JSON values."""
        tensors, metadata = super().export()
        for run, (layer, optimiser) in enumerate(zip(self.layers, self._optimisers, strict=True)):
            tensors |= {f"layer/{run}/{name}": values for name, values in layer.state_dict().items()}
            for number, values in optimiser.state_dict()["state"].items():
                tensors |= {
                    f"optimiser/{run}/{number}/{name}": torch.as_tensor(part)
                    for name, part in values.items()
                    if part is not None
                }
        return tensors, metadata

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Go back to where :meth:`export` was called."""
        super().restore(tensors, metadata)
        for run, (layer, optimiser) in enumerate(zip(self.layers, self._optimisers, strict=True)):
            begin = f"layer/{run}/"
            layer.load_state_dict(
                {n.removeprefix(begin): v for n, v in tensors.items() if n.startswith(begin)}
            )
            state: dict[int, dict[str, Tensor]] = {}
            for name, values in tensors.items():
                if name.startswith(f"optimiser/{run}/"):
                    _, _, number, part = name.split("/")
                    state.setdefault(int(number), {})[part] = values
            optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
