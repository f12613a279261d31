"""A small run that holds everything a picture can show."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from moetrace.index_stats import index_stats_of, with_shared
from moetrace.run import Run
from moetrace.snapshot import Snapshot
from tests.export.made import gradient, weight
from tests.report.made import manifest, recorded, stats, window

LAYERS = ("model.layers.0.mlp", "model.layers.1.mlp", "model.layers.2.mlp")
BLOCKS = ("model.layers.0", "model.layers.1", "model.layers.2")
TABLES = ("model.layers.0.peer", "model.layers.1.peer")


def counts(at: int, layer: int) -> list[int]:
    """Layer 1 loads expert 3 more and more; layer 2 has a dead expert 7. 400 assignments."""
    found = [50] * 8
    if layer == 1:
        found = [50 - at] * 8
        found[3] += 8 * at
    if layer == 2:
        found = [57] * 7 + [1]
        found = [57] * 6 + [58, 0]
    return found


def table(name: str, at: int) -> np.ndarray:
    """Draws of 64 experts on a grid of 8 by 8: row 5 is dead, expert 9 has 100 draws."""
    draws = np.full(64, 2, np.int64)
    draws[9] = 100 + at
    draws.reshape(8, 8)[5] = 0
    if name == TABLES[1]:
        draws[20:] = 0
    return draws


def norms(at: int, block: int) -> tuple[float, float]:
    """Attention and experts of a block: 3 and 4 in the first window, less later, more above."""
    fade = 1.0 / (1 + at)
    return 3.0 * fade * (1 + block), 4.0 * fade * (1 + block)


def full(windows: int = 9) -> list[Snapshot]:
    """Windows of ten steps."""
    history = []
    for at in range(windows):
        gradients = [gradient("", "embed", 0.5), gradient("", "lm_head", 1.5)]
        for position, block in enumerate(BLOCKS):
            attention, experts = norms(at, position)
            gradients.append(gradient(block, "attention", attention))
            gradients.append(gradient(block, "experts", experts))
        due = at == 4  # counts per expert are kept every so often
        tables = [index_stats_of(name, table(name, at), columns=8, due=due) for name in TABLES]
        own = window(
            10 * at + 1,
            10 * at + 10,
            *(stats(name, counts(at, place)) for place, name in enumerate(LAYERS)),
        )
        history.append(
            replace(
                own,
                weights=tuple(weight(name, at) for name in LAYERS),
                gradients=tuple(gradients),
                indices=tuple(with_shared(tables)),
            )
        )
    return history


def kept(path: Path, *history: Snapshot) -> Run:
    """The windows as a run on disk."""
    return recorded(path, *history, header=manifest(LAYERS, experts=8, top_k=1))
