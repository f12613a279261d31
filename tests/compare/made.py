"""Runs to compare: uniform ones that differ by chance, and one with a fault planted in it."""

from pathlib import Path

import numpy as np

from moetrace.run import Run
from moetrace.snapshot import Snapshot
from tests.report.made import manifest, recorded, stats, window

LAYERS = ("model.layers.0.mlp", "model.layers.1.mlp", "model.layers.2.mlp")


def uniform(
    *, seed: int, windows: int = 12, every: int = 10, hot_from: int | None = None
) -> list[Snapshot]:
    """Three layers of 8 experts, K = 1; from a window on layer 1 prefers expert 5."""
    rng = np.random.default_rng(seed)
    history = []
    for row in range(windows):
        chances = [np.full(8, 1 / 8) for _ in LAYERS]
        if hot_from is not None and row >= hot_from:
            chances[1] = np.full(8, 0.1)
            chances[1][5] = 0.3
        layers = (
            stats(name, rng.multinomial(4000, chance).tolist())
            for name, chance in zip(LAYERS, chances, strict=True)
        )
        history.append(window(row * every + 1, (row + 1) * every, *layers))
    return history


def kept(path: Path, *history: Snapshot) -> Run:
    """The windows as a run on disk."""
    return recorded(path, *history, header=manifest(LAYERS, experts=8, top_k=1))
