"""Time, memory and error of attention on this machine: every pattern beside torch's fused dense call."""

from __future__ import annotations

import multiprocessing
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seqattn.attention import Dense, Layout, Local, attend
from seqattn.attention.named import PATTERNS, as_pattern
from seqattn.attention.pattern import Pattern
from seqattn.attention.patterns import places
from seqattn.attention.routing import Routing, bind, routings
from seqattn.errors import BackendError, MissingDependencyError, ParameterError
from seqattn.train.costs import PeakMemory

__all__ = ["Case", "bench", "methods", "rows"]

BASE = "fused dense"
# Packages of others, and the modules by which they are found.
PEERS = {
    "local-attention": "local_attention",
    "routing_transformer": "routing_transformer",
    "x-transformers": "x_transformers",
    "x-transformers, unfused": "x_transformers",
}
# What a query sees of the past in the windows of peers, as by default in ours.
WINDOW = Local().left
# Longest sequence whose dense weights are formed, in float64, to compare with.
CHECKED = 2048
# The longest sequence of which every method runs more than a few times.
LONG = 2048


@dataclass(frozen=True)
class Case:
    """One setting of the comparison: ``batch`` sequences of ``length`` tokens with ``heads`` heads of ``width``."""

    length: int
    width: int = 64
    heads: int = 4
    batch: int = 4
    causal: bool = True
    backward: bool = True
    seed: int = 0

    def words(self) -> str:
        """Return the setting in words."""
        kind = "causal" if self.causal else "both sides"
        way = "forward and backward" if self.backward else "forward"
        return f"{self.batch} x {self.heads} x {self.length} x {self.width}, {kind}, {way}"


@dataclass(frozen=True)
class Method:
    """One way to attend: what is timed, its inputs, and the same on the way to a reference."""

    run: Callable[[], Tensor]
    inputs: Sequence[Tensor]
    reference: Callable[[], Tensor] | None


def methods(patterns: Iterable[str] = (), peers: bool = False) -> list[str]:
    """Return the names of what is compared: the fused call, patterns, and packages of others.

    Parameters
    ----------
    patterns
        Patterns as text, such as ``local`` and ``local(32) | prefix(1)``; empty for all names.
    peers
        Whether ``local-attention``, ``routing_transformer`` and ``x-transformers`` take part. Those that are not
        installed are left out when it comes to measuring.

    Raises
    ------
    ParameterError
        A text is no pattern.
    """
    chosen = list(patterns) or list(PATTERNS)
    for text in chosen:
        as_pattern(text)
    return [BASE, *chosen, *(PEERS if peers else ())]


def bench(
    cases: Sequence[Case],
    names: Sequence[str],
    rounds: int = 3,
    threads: int = 1,
    tell: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Measure and return one record per case, method and round.

    In each round every method runs once, in shuffled order; ``ratio`` is its processor time over that of the fused
    dense call in the same round. ``error`` is the largest difference from float64 attention by the definition,
    computed in the same process before anything is timed; it is missing above 2,048 tokens and for routing. The
    windows of a peer are held against our definition of the same window.
    ``peak_mb`` is the highest resident memory of a process of its own above that before the call.

    Parameters
    ----------
    cases
        The settings.
    names
        What :func:`methods` returned.
    rounds
        How often each method runs; above 2,048 tokens at most three times.
    threads
        Threads of torch.
    tell
        Is told of the progress, a line at a time.

    Returns
    -------
    Records with ``method``, the fields of the case, ``round``, ``seconds`` (processor time), ``ratio``, ``error``,
    ``peak_mb``, ``kernel``, ``threads``, ``version`` and ``machine``.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return [record for case in cases for record in _measured(case, names, rounds, threads, tell)]
    finally:
        torch.set_num_threads(before)


def _measured(
    case: Case, names: Sequence[str], rounds: int, threads: int, tell: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    found, skipped = _made(case, names)
    for name, reason in skipped.items():
        tell(f"{case.words()}: no {name}, {reason}")
    errors = {name: _error(method) if case.length <= CHECKED else None for name, method in found.items()}
    peaks = {name: _peak(case, name, threads) for name in found}
    order = list(found)
    draw = torch.Generator().manual_seed(case.seed)
    for number in range(rounds if case.length <= LONG else min(rounds, 3)):
        mixed = [order[place] for place in torch.randperm(len(order), generator=draw).tolist()]
        seconds = {name: _seconds(found[name], case) for name in mixed}
        for name in order:
            yield {
                "method": name,
                **asdict(case),
                "round": number,
                "seconds": seconds[name],
                "ratio": seconds[name] / seconds[BASE],
                "error": errors[name],
                "peak_mb": peaks[name],
                "threads": threads,
                "version": torch.__version__,
                "machine": f"{platform.system()} {platform.machine()}",
            }
    tell(f"{case.words()}: done")


def _made(case: Case, names: Sequence[str]) -> tuple[dict[str, Method], dict[str, str]]:
    """Return the methods that can do the case, each run once, and why others cannot."""
    found, skipped = {}, {}
    for name in names:
        try:
            method = _method(case, name)
            _seconds(method, case)
        except (BackendError, MissingDependencyError, ParameterError) as error:
            skipped[name] = str(error)
        else:
            found[name] = method
    return found, skipped


def _method(case: Case, name: str) -> Method:
    generator = torch.Generator().manual_seed(case.seed)
    shape = (case.batch, case.heads, case.length, case.width)
    wide = [torch.randn(shape, generator=generator) for _ in range(3)]
    if name == BASE:
        inputs = [x.requires_grad_(case.backward) for x in wide]
        q, k, v = inputs
        return Method(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=case.causal), inputs, None)
    if name in PEERS:
        return _peer(name, case, [x.requires_grad_(case.backward) for x in wide])
    packed = [x.transpose(1, 2).flatten(0, 1).contiguous().requires_grad_(case.backward) for x in wide]
    return _own(name, case, packed, Layout.of([case.length] * case.batch))


def _own(name: str, case: Case, inputs: list[Tensor], layout: Layout) -> Method:
    """Return a pattern of ours on packed tokens; routing with its labels and the update of its centroids.

    A bare ``routing`` has as many clusters as the root of the length.
    """
    pattern = Routing(clusters=_clusters(case)) if name == Routing.name else as_pattern(name)
    way: dict[str, Any] = {"causal": case.causal, "layout": layout}
    routed = list(routings(pattern, case.heads))
    if not routed:
        exact = [x.detach().double() for x in inputs]
        return Method(
            lambda: attend(*inputs, pattern=pattern, **way).output,
            inputs,
            lambda: attend(*exact, pattern=pattern, kernel="reference", **way).output,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        routers = [routing.router(heads, case.width) for routing, heads in routed]
    numbers = torch.from_numpy(places(layout))

    def run() -> Tensor:
        bound = bind(pattern, inputs[0], iter(routers), numbers)
        output = attend(*inputs, pattern=bound, **way).output
        for router in routers:
            router.update()
        return output

    return Method(run, inputs, None)


def _clusters(case: Case) -> int:
    return max(2, round(case.length**0.5))


def _peer(name: str, case: Case, inputs: list[Tensor]) -> Method:
    """Return the attention of another package on padded tensors, with as many visible keys as ours."""
    if find_spec(PEERS[name]) is None:
        raise MissingDependencyError(f"{name.split(',')[0]} is not installed. pip install 'seqattn[bench]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how others import and warn is not ours to judge
        if name == "local-attention":
            return _windowed_peer(case, inputs)
        return (
            _routing_peer(case, inputs) if name == "routing_transformer" else _dense_peer(name, case, inputs)
        )


def _reference(case: Case, inputs: list[Tensor], pattern: Pattern) -> Callable[[], Tensor]:
    exact = [x.detach().double() for x in inputs]
    return lambda: attend(*exact, pattern=pattern, causal=case.causal, kernel="reference").output


def _windowed_peer(case: Case, inputs: list[Tensor]) -> Method:
    """Return windows of ``local-attention``: in its exact mode a query sees itself and ``window_size`` keys before."""
    from local_attention import LocalAttention

    if not case.causal:
        raise ParameterError("its windows end at the query or lie on both sides, ours by default end there")
    model = LocalAttention(
        WINDOW, causal=True, look_backward=1, exact_windowsize=True, autopad=True, use_rotary_pos_emb=False
    )
    return Method(lambda: model(*inputs), inputs, _reference(case, inputs, Local(WINDOW)))


def _dense_peer(name: str, case: Case, inputs: list[Tensor]) -> Method:
    from x_transformers.attend import Attend

    model = Attend(causal=case.causal, heads=case.heads, flash="unfused" not in name)
    return Method(lambda: model(*inputs)[0], inputs, _reference(case, inputs, Dense()))


def _routing_peer(case: Case, inputs: list[Tensor]) -> Method:
    """Return routing of ``routing_transformer`` with the update of its centroids; clusters of equal size, no window."""
    from routing_transformer.routing_transformer import KmeansAttention

    clusters = _clusters(case)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        size = max(1, case.length // clusters)
        model = KmeansAttention(clusters, size, case.heads, case.width, causal=case.causal)

    def routed() -> Tensor:
        output: Tensor = model(*inputs)[0]
        model.kmeans.update()
        return output

    return Method(routed, inputs, None)


def _seconds(method: Method, case: Case) -> float:
    """Return the processor time of one run."""
    started = time.process_time()
    if case.backward:
        output = method.run()
        torch.autograd.grad(output, method.inputs, torch.ones_like(output))
    else:
        with torch.no_grad():
            method.run()
    return time.process_time() - started


def _error(method: Method) -> float | None:
    if method.reference is None:
        return None
    with torch.no_grad():
        return float((method.run().double() - method.reference()).abs().max())


def _peak(case: Case, name: str, threads: int) -> float:
    """Return the memory that a method takes in a process of its own, in MB."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_weigh, args=(case, name, threads, theirs))
    process.start()
    theirs.close()
    try:
        return float(ours.recv())
    finally:
        process.join()


def _weigh(case: Case, name: str, threads: int, answer: Any) -> None:
    torch.set_num_threads(threads)
    small = replace(case, length=64)
    _seconds(_method(small, name), small)
    method = _method(case, name)
    memory = PeakMemory()
    _seconds(method, case)
    answer.send(memory.above_start())


def rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per case and method: medians over the rounds.

    Parameters
    ----------
    records
        What :func:`bench` returned.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        key = tuple(record[name] for name in ("length", "width", "causal", "backward", "method"))
        groups.setdefault(key, []).append(record)
    return [
        {
            "length": key[0],
            "width": key[1],
            "method": key[4],
            "ms": 1000 * statistics.median(record["seconds"] for record in group),
            "ratio": statistics.median(record["ratio"] for record in group),
            "lowest": min(record["ratio"] for record in group),
            "error": group[0]["error"],
            "peak MB": group[0]["peak_mb"],
        }
        for key, group in groups.items()
    ]
