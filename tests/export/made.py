"""A run that holds everything an export can write: routing, weights, gradients, alerts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moetrace.gradient_stats import GradientStats
from moetrace.index_stats import index_stats_of
from moetrace.run import Run
from moetrace.snapshot import Snapshot
from moetrace.weight_stats import WeightStats
from tests.report.made import recorded, stats, window

LAYERS = ("model.layers.0.mlp", "model.layers.2.mlp")
BLOCKS = ("model.layers.0", "model.layers.2", "model.layers.10")


def weight(layer: str, at: int, name: str = "weight") -> WeightStats:
    """A tensor (3, 4) at record 0; at record ``at`` every number is larger by ``at``."""
    first = at == 0
    change: dict[str, Any] = {} if first else {"diff_sum": 2.0, "diff_m2": 0.0, "diff_max": 1.0}
    return WeightStats(
        layer,
        name,
        (2,),
        "float32",
        True,
        False,
        2,
        0 if first else 10,
        sum=7.0 + 2 * at,
        m2=0.5,
        min=3.0 + at,
        max=4.0 + at,
        **change,
    )


def gradient(layer: str, group: str, norm: float, *, steps: int = 1, **more: Any) -> GradientStats:
    """A group whose norm is this in each of its steps."""
    fields: dict[str, Any] = {"part": "weight", "measured": "pre_clip", "sharded": False, **more}
    return GradientStats(
        layer=layer,
        group=group,
        numel=4,
        scale=1.0,
        steps=steps,
        nonfinite=more.get("nonfinite", 0),
        sum_sq=norm**2 * (steps - more.get("nonfinite", 0)),
        last_sq=norm**2,
        **{name: value for name, value in fields.items() if name != "nonfinite"},
    )


def gradients(at: int) -> tuple[GradientStats, ...]:
    """Embed 2, other 1, a router 4, and per block attention 3 and mlp 6 times ``at + 1``."""
    own = [gradient("", "embed", 2.0), gradient("", "other", 1.0)]
    own.append(gradient(BLOCKS[0], "router", 4.0))
    for block in reversed(BLOCKS):
        own.append(gradient(block, "attention", 3.0 * (at + 1)))
        own.append(gradient(block, "mlp", 6.0 * (at + 1)))
    return tuple(own)


def full(*, windows: int = 3, layers: tuple[str, ...] = LAYERS) -> list[Snapshot]:
    """Windows of ten steps in which everything is recorded."""
    return [
        replace(
            window(
                10 * at + 1,
                10 * at + 10,
                *(stats(layer, [10 + at, 10 - at, 12, 8], top_k=2) for layer in layers),
            ),
            wall_time=1_700_000_000.25 + at,
            weights=tuple(weight(layer, at) for layer in layers),
            gradients=gradients(at),
            indices=(index_stats_of("ffn", np.array([5, at, 0, 1])).reduced(),),
        )
        for at in range(windows)
    ]


def kept(path: Path, *history: Snapshot) -> Run:
    """The windows as a run on disk."""
    return recorded(path, *history, header={"model": "TinyMoE"})
