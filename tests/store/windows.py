"""Windows that a test states by hand, and a segment to write them into."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moetrace.routing_stats import RoutingStats
from moetrace.snapshot import Snapshot
from moetrace.store.segment_writer import SegmentWriter

RUN = "run-1"
HEADER = {"model": "TinyMoE", "every": 10, "world_size": 1, "sites": [{"name": "a"}]}


def stats(layer: str, tokens_per_expert: Sequence[int], **scalars: Any) -> RoutingStats:
    """A layer whose experts got these tokens, with sums of reals made from them."""
    counts = np.array(tokens_per_expert, np.int64)
    return RoutingStats(
        layer=layer,
        num_experts=len(counts),
        top_k=1,
        scoring="softmax",
        tokens_per_expert=counts,
        prob_sum=counts << 30,
        gate_weight_sum=counts << 29,
        **{"tokens": int(counts.sum()), "calls": 1, **scalars},
    )


def window(
    seq: int = 0,
    layers: Mapping[str, Sequence[int]] | None = None,
    *,
    rank: int = 0,
    attempt: int = 0,
    run_id: str = RUN,
    phase: str = "train",
    steps: tuple[int, int] | None = None,
    health: Mapping[str, Any] | None = None,
) -> Snapshot:
    """A window of 10 steps; by default one layer ``a`` whose two experts got ``seq`` and 1."""
    first, last = steps or (seq * 10 + 1, seq * 10 + 10)
    found = {"a": (seq, 1)} if layers is None else layers
    return Snapshot(
        run_id=run_id,
        rank=rank,
        attempt=attempt,
        seq=seq,
        phase=phase,
        first_step=first,
        last_step=last,
        wall_time=1000.0 + seq,
        routing=tuple(stats(layer, counts) for layer, counts in found.items()),
        health=health or {},
    )


def writer(root: Path, *, rank: int = 0, attempt: int = 0, **header: Any) -> SegmentWriter:
    """An open segment of the run `RUN`."""
    return SegmentWriter(
        root=str(root), run_id=RUN, rank=rank, attempt=attempt, header={**HEADER, **header}
    )


def write(root: Path, snapshots: Sequence[Snapshot], **header: Any) -> None:
    """A finished segment of the rank and the attempt of the snapshots."""
    log = writer(root, rank=snapshots[0].rank, attempt=snapshots[0].attempt, **header)
    for snapshot in snapshots:
        log.append(snapshot)
    log.close()


def log_of(root: Path) -> Path:
    """The log of the only segment."""
    (log,) = root.glob("segments/*/log.jsonl")
    return log


def arrays_of(root: Path) -> Path:
    """The array file of the only segment."""
    (arrays,) = root.glob("segments/*/*.safetensors")
    return arrays


def plain(snapshots: Sequence[Snapshot]) -> list[dict[str, Any]]:
    """Snapshots as something that can be compared."""
    return [snapshot.to_dict() for snapshot in snapshots]
