"""What all windows of a run say together, added up while they go by, one in memory at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from moetrace.index_stats import IndexStats
from moetrace.run import Run
from moetrace.snapshot import Snapshot

__all__ = ["Totals"]


@dataclass(slots=True)
class Totals:
    """Sums over the windows that went by.

    Attributes:
        calls: Forwards by phase and layer.
        tokens: Tokens by layer, all phases together.
        health: The tracer's own state at the end of each phase.
        last_counted: First and last step of the last train window in which a layer counted.
        newest: First and last step of the last train window in which any layer counted.
        last_step: The last step of any phase.
        tables: The newest record of each table of experts in a train window.
        weights: Tensors whose weights were recorded: layer and name.
        gradients: Groups of parameters whose gradients were recorded, with their blocks.
    """

    calls: dict[str, dict[str, int]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    health: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    last_counted: dict[str, tuple[int, int]] = field(default_factory=dict)
    newest: tuple[int, int] = (0, 0)
    last_step: int = 0
    tables: dict[str, IndexStats] = field(default_factory=dict)
    weights: dict[tuple[str, str], None] = field(default_factory=dict)
    gradients: dict[str, set[str]] = field(default_factory=dict)

    def windows(self, run: Run) -> Iterator[Snapshot]:
        """Every window of every phase, added to the totals on its way."""
        for phase in run.phases:
            for window in run.windows(phase=phase):
                self._add(window)
                yield window

    def counted(self) -> set[str]:
        """Layers that counted a forward in any phase."""
        return {layer for calls in self.calls.values() for layer, n in calls.items() if n}

    def _add(self, window: Snapshot) -> None:
        calls = self.calls.setdefault(window.phase, {})
        span = window.first_step, window.last_step
        self.health[window.phase] = window.health
        self.last_step = max(self.last_step, window.last_step)
        if window.phase == "train":
            self.tables.update({table.layer: table for table in window.indices})
        self.weights.update(dict.fromkeys(record.key for record in window.weights))
        for record in window.gradients:
            self.gradients.setdefault(record.group, set()).add(record.layer)
        for stats in window:
            calls[stats.layer] = calls.get(stats.layer, 0) + stats.calls
            self.tokens[stats.layer] = self.tokens.get(stats.layer, 0) + stats.tokens
            if stats.calls and window.phase == "train":
                self.last_counted[stats.layer] = self.newest = span
