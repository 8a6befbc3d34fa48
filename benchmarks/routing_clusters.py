"""Does routing by the tokens' own choice need the commitment loss, and does it beat random clusters?

Tokens of 16 topics of uneven size (shares like 1/rank), each with one of 8 values; to be told is the value of the last
earlier token of the same topic. A window of 8 tokens of a cluster does not reach it by place alone.

    python benchmarks/routing_clusters.py --steps 400 --seeds 3

Prints, per setting and seed: mean loss of the last 50 steps (nats), mean squared distance of queries from their
centroids, entropy of the use of the clusters per layer (1 is even), and the largest share of dead ones.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqattn.attention import Layout, Routing
from seqattn.attention.router import commitment_loss, router_usage, update_routers
from seqattn.nn.blocks import Encoder

TOPICS, VALUES, WIDTH, HEADS, LENGTH, BATCH = 16, 8, 32, 4, 256, 8
SETTINGS = (("token", 0.0), ("token", 1e-4), ("token", 1e-2), ("random", 0.0))


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    shares = 1 / torch.arange(1.0, TOPICS + 1)
    topic = torch.multinomial(shares.expand(BATCH, -1), LENGTH, replacement=True, generator=generator)
    value = torch.randint(VALUES, (BATCH, LENGTH), generator=generator)
    same = (topic[:, :, None] == topic[:, None, :]).tril(-1)
    last = torch.where(same, torch.arange(LENGTH), -1).amax(-1)
    return topic, value, torch.where(last >= 0, value.gather(1, last.clamp(min=0)), -100)


def run(mode: str, commitment: float, seed: int, steps: int) -> str:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    topics, values, head = nn.Embedding(TOPICS, WIDTH), nn.Embedding(VALUES, WIDTH), nn.Linear(WIDTH, VALUES)
    pattern = Routing(8, window=8, mode=mode, commitment=commitment)
    encoder = Encoder(WIDTH, HEADS, 2, 0.0, pattern=pattern)
    parts = nn.ModuleList([topics, values, encoder, head])
    optimiser = torch.optim.Adam(parts.parameters(), lr=3e-3)
    layout, losses = Layout.of([LENGTH] * BATCH), []
    for _ in range(steps):
        topic, value, target = batch(generator)
        states = encoder((topics(topic) + values(value)).flatten(0, 1), layout, causal=True)
        loss = F.cross_entropy(head(states), target.flatten(), ignore_index=-100)
        optimiser.zero_grad()
        (loss + commitment_loss(encoder) / (BATCH * LENGTH)).backward()
        optimiser.step()
        update_routers(encoder)
        losses.append(loss.item())
    topic, value, _ = batch(generator)
    block = encoder.eval().blocks[0]
    with torch.no_grad():
        first = block.norm1((topics(topic) + values(value)).flatten(0, 1))
        queries = block.attention.inputs(first).view(len(first), 3, HEADS, -1)[:, 0]
        distance = float((2 - 2 * block.attention.routers[0].scores(queries).amax(-1)).mean())
    usage = router_usage(encoder)
    even = ", ".join(f"{record['entropy']:.2f}" for record in usage)
    dead = max(record["dead"] for record in usage)
    return f"loss {sum(losses[-50:]) / 50:.3f}, distance {distance:.2f}, entropy {even}, dead {dead:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for mode, commitment in SETTINGS:
        for seed in range(arguments.seeds):
            print(
                f"{mode}, commitment {commitment}, seed {seed}: {run(mode, commitment, seed, arguments.steps)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
