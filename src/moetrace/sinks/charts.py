"""What a tracker is shown of a snapshot: few scalars, a picture now and then.

Every tracker sink asks the same `Charts`, so that the names and the budget are one matter. At most
64 scalars a flush whatever the model's size; detail per layer is asked for; detail per expert goes
as pictures and histograms and never as scalars.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.alerts import Alert
from moetrace.index_keys import MOST_TABLES, top_experts_table
from moetrace.metrics import load_share, utilisation
from moetrace.sinks.colours import coloured
from moetrace.sinks.names import aliased, checked_alias, tracker_name
from moetrace.snapshot import Snapshot

__all__ = ["BUDGET", "HEATMAP_EVERY", "Charts", "Histogram", "alert_scalars"]

BUDGET = 64
"""Most scalars a flush without detail per layer."""

HEATMAP_EVERY = 1000
"""Steps between pictures where a sink is not told otherwise."""

_WINDOWS = 256
_MOST_BINS = 512
_BINS = 64


@dataclass(frozen=True, slots=True)
class Histogram:
    """Numbers of things by size.

    Attributes:
        counts: How many, shape ``(B,)``.
        edges: Between which sizes, shape ``(B + 1,)``, ascending.
    """

    counts: NDArray[np.int64]
    edges: NDArray[np.float64]


class Charts:
    """The scalars of each snapshot, and pictures and histograms every ``heatmap_every`` steps.

    Keeps the load shares of the last 256 training windows of each layer where detail per layer is
    asked for, and nothing else.

    Args:
        per_layer: Also five scalars, a picture and a histogram for each layer.
        heatmap_every: Optimizer steps between pictures; None draws none.
        alias: Other names for keys or groups of keys, see `moetrace.sinks.names.aliased`.

    Raises:
        ValueError: ``heatmap_every`` is below 1, or an alias names nothing.
    """

    def __init__(
        self,
        *,
        per_layer: bool,
        heatmap_every: int | None,
        alias: Mapping[str, str] | None = None,
    ) -> None:
        if heatmap_every is not None and heatmap_every < 1:
            raise ValueError(
                f"found heatmap_every={heatmap_every!r}; give a number of steps, or None for none"
            )
        self.alias = checked_alias(alias)
        self._per_layer = per_layer
        self._every = heatmap_every
        self._last: int | None = None
        self._shares: dict[str, deque[NDArray[np.float32]]] = {}
        self._images: dict[str, NDArray[np.uint8]] = {}

    def scalars(self, snapshot: Snapshot) -> dict[str, float]:
        """The snapshot's numbers by key; a phase other than ``train`` stands before its keys.

        `Snapshot.metrics`, and the numbers of the tracer's own state as ``moe_health/{name}``.
        """
        found = {
            self.name(key, snapshot.phase): value
            for key, value in snapshot.metrics(per_layer=self._per_layer).items()
        }
        spare = max(0, BUDGET - len(found)) if not self._per_layer else BUDGET
        health = [(name, value) for name, value in snapshot.health.items() if _is_number(value)]
        for name, value in health[: spare // 2]:
            found[self.name(f"moe_health/{name}")] = float(value)
        return found

    def name(self, key: str, phase: str = "train") -> str:
        """What a tracker is shown a key under, in a phase."""
        return tracker_name(_in_phase(phase, aliased(key, self.alias)))

    def alert(self, alert: Alert) -> dict[str, float]:
        """`alert_scalars`, under the names that keys have here."""
        return alert_scalars(alert, alias=self.alias)

    def note(self, snapshot: Snapshot) -> bool:
        """Remember a training window; whether pictures are due with it.

        They are due with the window in which the step passes a multiple of ``heatmap_every``.
        """
        if snapshot.phase != "train" or self._every is None:
            return False
        if self._per_layer:
            for stats in snapshot:
                shares = self._shares.setdefault(stats.layer, deque(maxlen=_WINDOWS))
                if shares and shares[-1].size != stats.num_experts:
                    shares.clear()
                shares.append(load_share(stats.tokens_per_expert).astype(np.float32))
        before = snapshot.first_step - 1 if self._last is None else self._last
        self._last = max(before, snapshot.last_step)
        return self._last // self._every > before // self._every

    def columns(self, layer: str) -> NDArray[np.float32]:
        """Load shares of a layer, experts down and windows across; each column adds up to 1.

        A window in which nothing was routed is a column of NaN.
        """
        return np.stack(self._shares[layer], axis=1)

    def images(self, snapshot: Snapshot) -> dict[str, NDArray[np.uint8]]:
        """Pictures by key: all layers of this window; per layer its windows so far.

        ``moe/usage_heatmap`` has a row per layer and a column per expert;
        ``moe/{layer}/usage_heatmap`` a row per expert and a column per window;
        ``expert_usage/top_experts_heatmap`` a row per table of experts and a column for each of the
        busiest experts of all tables.
        """
        pictures: dict[str, NDArray[np.uint8]] = {}
        busiest = top_experts_table(snapshot.indices)
        if busiest.size:
            pictures[self.name("expert_usage/top_experts_heatmap")] = coloured(busiest)
        widest = max((stats.num_experts for stats in snapshot), default=0)
        if not widest:
            return pictures
        table = np.full((len(snapshot.routing), widest), np.nan)
        for row, stats in enumerate(snapshot):
            table[row, : stats.num_experts] = utilisation(stats.tokens_per_expert)
        pictures[self.name("moe/usage_heatmap")] = coloured(table)
        for layer in self._shares:
            share = self.columns(layer)
            pictures[self.name(f"moe/{layer}/usage_heatmap")] = coloured(share * len(share))
        return pictures

    def histograms(self, snapshot: Snapshot) -> dict[str, Histogram]:
        """Histograms by key: the utilisation of all experts; per layer the tokens by expert.

        In ``moe/{layer}/tokens_per_expert`` the expert's number is on the axis; where a layer has
        more than 512 experts, neighbours share a bin. ``expert_usage/layer_{i}_histogram`` has a
        bar for each of the 100 busiest experts of a table, the busiest first.
        """
        found = {
            self.name(f"expert_usage/layer_{at}_histogram"): Histogram(
                np.array(table.top_draws, np.int64), np.arange(len(table.top_draws) + 1.0)
            )
            for at, table in enumerate(snapshot.indices)
            if table.top_draws and (self._per_layer or at < MOST_TABLES)
        }
        loads = [utilisation(stats.tokens_per_expert) for stats in snapshot if _routed(stats)]
        if not loads:
            return found
        together = np.concatenate(loads)
        edges = np.linspace(0.0, max(4.0, float(together.max())), _BINS + 1)
        counts = np.histogram(together, edges)[0].astype(np.int64)
        found[self.name("moe/expert_utilisation")] = Histogram(counts, edges)
        if self._per_layer:
            for stats in snapshot:
                if _routed(stats):
                    key = self.name(f"moe/{stats.layer}/tokens_per_expert")
                    found[key] = _by_expert(stats.tokens_per_expert)
        return found


def alert_scalars(alert: Alert, *, alias: Mapping[str, str] | None = None) -> dict[str, float]:
    """How many layers the kind of this alert holds in now, by key: ``alerts/{kind}``.

    >>> alert_scalars(Alert(kind="hot_experts", state="started", layer="mlp", phase="train",
    ...                     first_step=1, step=9, value=6.0, threshold=5.0, floor=1.0,
    ...                     message="mlp: 1 hot expert", active=2))
    {'alerts/hot_experts': 2.0}
    """
    key = aliased(f"alerts/{alert.kind}", alias or {})
    return {tracker_name(_in_phase(alert.phase, key)): float(alert.active)}


def _in_phase(phase: str, key: str) -> str:
    return key if phase == "train" else f"{phase}/{key}"


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def _routed(stats: Any) -> bool:
    return bool(stats.tokens_per_expert.any())


def _by_expert(counts: NDArray[np.int64]) -> Histogram:
    group = math.ceil(counts.size / _MOST_BINS)
    starts = np.arange(0, counts.size, group)
    edges = np.append(starts, counts.size).astype(np.float64)
    return Histogram(np.add.reduceat(counts, starts).astype(np.int64), edges)
