"""Runs made by hand for the report: a page needs many windows, a tracer is not the point."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from moetrace.layout import FRACTION_BITS
from moetrace.routing_stats import RoutingStats
from moetrace.run import Run, open_run
from moetrace.snapshot import Snapshot
from moetrace.store import RunFolder


@dataclass(frozen=True)
class MadeRun:
    """What `moetrace.run.Run` shows, from snapshots in memory."""

    history: Mapping[str, Sequence[Snapshot]]
    run_id: str = "made"
    path: Path = Path("runs/made")
    manifest: Mapping[str, Any] = field(default_factory=dict)
    ranks: tuple[int, ...] = (0,)
    attempts: tuple[int, ...] = (0,)
    faults: tuple[str, ...] = ()
    finished: bool = True
    said: Sequence[Mapping[str, Any]] = ()

    def events(self) -> list[dict[str, Any]]:
        """What happened."""
        return [dict(event) for event in self.said]

    @property
    def phases(self) -> tuple[str, ...]:
        """Phases with snapshots."""
        return tuple(phase for phase in self.history if self.history[phase])

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, as they appear."""
        names = (name for items in self.history.values() for item in items for name in item.layers)
        return tuple(dict.fromkeys(names))

    def snapshots(self, *, phase: str = "train") -> list[Snapshot]:
        """The windows of a phase."""
        return list(self.history.get(phase, ()))


def stats(
    layer: str,
    counts: Sequence[int],
    *,
    top_k: int = 1,
    entropy: float = 1.0,
    scoring: str = "softmax",
) -> RoutingStats:
    """A layer whose counts are these; its tokens follow from them."""
    tokens_per_expert = np.array(counts, dtype=np.int64)
    tokens = int(tokens_per_expert.sum()) // top_k
    probability = tokens / len(counts) * (1 << FRACTION_BITS["prob_sum"])
    return RoutingStats(
        layer=layer,
        num_experts=len(counts),
        top_k=top_k,
        scoring=scoring,
        tokens_per_expert=tokens_per_expert,
        prob_sum=np.full(len(counts), round(probability), dtype=np.int64),
        gate_weight_sum=np.zeros(len(counts), dtype=np.int64),
        tokens=tokens,
        calls=1,
        entropy_sum=round(entropy * tokens * (1 << FRACTION_BITS["entropy_sum"])),
    )


def window(
    first: int, last: int, *layers: RoutingStats, phase: str = "train", run_id: str = "made"
) -> Snapshot:
    """A snapshot of steps ``first`` to ``last``."""
    return Snapshot(run_id, 0, 0, 0, phase, first, last, 0.0, layers)


def drifting(
    *,
    windows: int = 120,
    layers: int = 8,
    experts: int = 32,
    top_k: int = 4,
    tokens: int = 40960,
    every: int = 10,
    seed: int = 3,
    phase: str = "train",
) -> list[Snapshot]:
    """A training that starts even; one layer slowly collapses, another loses two experts."""
    rng = np.random.default_rng(seed)
    taste = rng.normal(0, 0.35, (layers, experts))
    hot = layers // 3
    history = []
    for row in range(windows):
        age = row / max(1, windows - 1)
        taste += rng.normal(0, 0.012, taste.shape)
        routing = []
        for at in range(layers):
            logits = taste[at] * (0.25 + 0.75 * age)
            if at == hot:
                logits = logits + 2.1 * max(0.0, age - 0.45) / 0.55 * (
                    np.arange(experts) == 7 % experts
                )
            if at == layers - 2 and age > 0.6:
                logits = logits - 40.0 * np.isin(np.arange(experts), [3, experts - 5])
            chance = np.exp(logits - logits.max())
            chance /= chance.sum()
            counts = np.minimum(rng.multinomial(tokens * top_k, chance), tokens)
            short = tokens * top_k - int(counts.sum())
            counts += rng.multinomial(short, np.full(experts, 1 / experts))
            entropy = np.log(experts) * (0.97 - 0.28 * age - 0.02 * at / layers) + rng.normal(
                0, 0.01
            )
            item = stats(f"model.layers.{at}.mlp", counts.tolist(), top_k=top_k, entropy=entropy)
            probability = np.rint(chance * tokens * (1 << FRACTION_BITS["prob_sum"]))
            object.__setattr__(item, "prob_sum", probability.astype(np.int64))
            routing.append(item)
        history.append(window(row * every + 1, (row + 1) * every, *routing, phase=phase))
    return history


def manifest(layers: Sequence[str], *, experts: int, top_k: int) -> dict[str, Any]:
    """What a tracer writes into the header of a segment."""
    return {
        "model": "Qwen3MoeForCausalLM",
        "every": 10,
        "world_size": 1,
        "operator": "host kernel",
        "versions": {"moetrace": "0.1.0", "torch": "2.13.0", "python": "3.11.7", "numpy": "2.3.0"},
        "sites": [
            {
                "name": name,
                "aliases": [],
                "num_experts": experts,
                "top_k": top_k,
                "scoring": "softmax",
                "reader": "standard",
                "router": "Qwen3MoeTopKRouter",
            }
            for name in layers
        ],
    }


def recorded(path: Path, *history: Snapshot, header: Mapping[str, Any] | None = None) -> Run:
    """The snapshots written into a run folder, and that folder opened."""
    folder = RunFolder.prepare(path)
    segment = folder.open_segment(rank=0, header=header or {})
    for seq, snapshot in enumerate(history):
        segment.append(replace(snapshot, run_id=folder.run_id, attempt=segment.attempt, seq=seq))
    segment.close()
    return open_run(path)


def silent_layer(*, at: int = 5, since: int = 71) -> list[Snapshot]:
    """A training in which layer ``at`` is not called any more from window ``since`` on."""
    history = []
    for number, snapshot in enumerate(drifting(seed=5), start=1):
        routing = list(snapshot.routing)
        if number >= since:
            gone = stats(routing[at].layer, [0] * routing[at].num_experts, top_k=4)
            routing[at] = replace(gone, calls=0)
        history.append(replace(snapshot, routing=tuple(routing)))
    return history


def slow_collapse(*, at: int = 6, windows: int = 120) -> list[Snapshot]:
    """Even layers; from a quarter of the run on, ``at`` slowly prefers some of its 32 experts."""
    rng = np.random.default_rng(9)
    history = []
    for row in range(windows):
        age = max(0.0, (row / windows - 0.25) / 0.75)
        routing = []
        for layer in range(8):
            logits = rng.normal(0, 0.05, 32)
            if layer == at:
                logits = logits + np.linspace(3.2, -3.2, 32) * age**1.3
            chance = np.exp(logits) / np.exp(logits).sum()
            counts = np.minimum(rng.multinomial(163_840, chance), 40_960)
            counts += rng.multinomial(163_840 - int(counts.sum()), np.full(32, 1 / 32))
            entropy = 3.3 - (2.6 * age**1.2 if layer == at else 0.0)
            name = f"model.layers.{layer}.mlp"
            routing.append(stats(name, counts.tolist(), top_k=4, entropy=entropy))
        history.append(window(10 * row + 1, 10 * row + 10, *routing))
    return history
