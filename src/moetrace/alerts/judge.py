# pyright: strict
"""Judges snapshots against the rules: what begins, what is over."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from moetrace.alerts.alert import Alert
from moetrace.alerts.conditions import hot_experts_of, readings, readings_at_once
from moetrace.alerts.indices import index_readings
from moetrace.alerts.reading import Reading, above
from moetrace.alerts.rules import AlertRules
from moetrace.alerts.weights import weight_readings
from moetrace.routing_stats import RoutingStats, merge_stats
from moetrace.snapshot import Snapshot
from moetrace.weight_stats import WeightStats

__all__ = ["AlertJudge"]

HISTORY = 5
"""Judged windows over which persistence is asked for."""


class AlertJudge:
    """Takes snapshots in their order and says which conditions begin and which are over.

    Its memory is bounded, whatever the length of the run: per judged phase and layer one window
    that is being added up, the window before, the hot experts of five windows, and two counters
    per kind of alert. One thread uses it.

    Args:
        rules: The thresholds.
        saved_weights: The router weights that an earlier attempt recorded at a step; asked once,
            for the step before the first window that has any. None: there is none.

    >>> judge = AlertJudge(AlertRules(above_floor=False, duration=1))
    >>> counts = np.array([9, 1, 0, 0, 0, 0, 0, 0])
    >>> stats = RoutingStats("mlp", 8, 1, "none", counts, counts * 0, counts * 0, tokens=10)
    >>> alerts = judge.judge(Snapshot("run", 0, 0, 0, "train", 1, 10, 0.0, (stats,)))
    >>> [alert.message for alert in alerts][:2]
    ['mlp: Severe expert imbalance (ratio: 7.20)', 'mlp: 6/8 experts unused']
    """

    def __init__(
        self,
        rules: AlertRules,
        saved_weights: Callable[[int], Iterable[WeightStats]] | None = None,
    ) -> None:
        self.rules = rules
        self._saved_weights = saved_weights
        self._layers: dict[tuple[str, str], _Layer] = {}
        self._active: Counter[tuple[str, str]] = Counter()

    def judge(self, snapshot: Snapshot) -> tuple[Alert, ...]:
        """The alerts of this window, in the order of the layers.

        A phase that is not in the rules has none.
        """
        if snapshot.phase not in self.rules.phases:
            return ()
        calls = sum(stats.calls > 0 for stats in snapshot)
        routing = [
            alert
            for stats in snapshot
            for alert in self._layer(snapshot.phase, stats.layer).judge(
                snapshot, stats, others_called=calls > (stats.calls > 0)
            )
        ]
        found = [*routing, *self._judged_weights(snapshot), *self._judged_indices(snapshot)]
        return tuple(map(self._counted, found))

    def resume(self, alerts: Iterable[Alert]) -> None:
        """Take up what an earlier attempt has said: what started there is not said twice.

        Args:
            alerts: Its alerts, in their order.
        """
        for alert in alerts:
            if alert.phase in self.rules.phases:
                self._layer(alert.phase, alert.layer).resume(alert)
                self._counted(alert)

    def _judged_weights(self, snapshot: Snapshot) -> Iterator[Alert]:
        layers: dict[str, list[WeightStats]] = {}
        for record in snapshot.weights:
            layers.setdefault(record.layer, []).append(record)
        saved: dict[str, dict[str, WeightStats]] = {}
        if layers and self._saved_weights is not None:
            ask, self._saved_weights = self._saved_weights, None
            for record in ask(snapshot.first_step - 1):
                saved.setdefault(record.layer, {})[record.name] = record
        for layer, records in layers.items():
            state = self._layer(snapshot.phase, layer)
            yield from state.judge_weights(snapshot, layer, records, saved.get(layer, {}))

    def _judged_indices(self, snapshot: Snapshot) -> Iterator[Alert]:
        for table in snapshot.indices:
            readings_of_table = index_readings(
                self.rules, table, routed=table.layer in snapshot.layers
            )
            state = self._layer(snapshot.phase, table.layer)
            yield from state.judge_readings(snapshot, table.layer, readings_of_table)

    def _layer(self, phase: str, layer: str) -> "_Layer":
        key = (phase, layer)
        if key not in self._layers:
            self._layers[key] = _Layer(self.rules)
        return self._layers[key]

    def _counted(self, alert: Alert) -> Alert:
        key = (alert.phase, alert.kind)
        self._active[key] = max(0, self._active[key] + (1 if alert.state == "started" else -1))
        return replace(alert, active=self._active[key])


class _Layer:
    """One layer in one phase."""

    def __init__(self, rules: AlertRules) -> None:
        self._rules = rules
        self._open: RoutingStats | None = None
        self._open_since = 0
        self._before: RoutingStats | None = None
        self._same = 1
        self._hot: deque[frozenset[int]] = deque(maxlen=HISTORY)
        self._conditions: dict[str, _Condition] = {}

    def judge(
        self, snapshot: Snapshot, stats: RoutingStats, *, others_called: bool
    ) -> Iterator[Alert]:
        at_once = readings_at_once(self._rules, stats, others_called=others_called)
        yield from self._alerts(snapshot, stats.layer, at_once, snapshot.first_step)
        if stats.tokens <= 0:
            return
        window = self._added(snapshot, stats)
        found = readings(self._rules, window)
        if self._enough(window):
            found += self._persistent(window)
            found += self._frozen(window)
        else:
            found = [item for item in found if item.met and item.early and not self._on(item.kind)]
            if not found:
                return
        self._open = None  # what comes next is evidence of its own
        yield from self._alerts(snapshot, stats.layer, found, self._open_since)

    def judge_weights(
        self,
        snapshot: Snapshot,
        layer: str,
        records: Sequence[WeightStats],
        saved: Mapping[str, WeightStats],
    ) -> Iterator[Alert]:
        yield from self.judge_readings(
            snapshot, layer, weight_readings(self._rules, records, saved)
        )

    def judge_readings(
        self, snapshot: Snapshot, layer: str, found: Iterable[Reading]
    ) -> Iterator[Alert]:
        """Alerts of readings that one window gives by itself."""
        yield from self._alerts(snapshot, layer, found, snapshot.first_step)

    def resume(self, alert: Alert) -> None:
        condition = self._conditions.setdefault(alert.kind, _Condition())
        condition.active = alert.state == "started"
        condition.first_step = alert.first_step

    def _added(self, snapshot: Snapshot, stats: RoutingStats) -> RoutingStats:
        """The windows since the last judgement, added up."""
        waiting = self._open
        if waiting is None or _shape(waiting) != _shape(stats):
            self._open, self._open_since = stats, snapshot.first_step
        else:
            self._open = merge_stats([waiting, stats])
        return self._open

    def _enough(self, stats: RoutingStats) -> bool:
        """Whether chance plays so small a part that everything can be judged."""
        load = float(stats.tokens_per_expert.sum()) / stats.num_experts
        return not self._rules.above_floor or load >= self._rules.least_load

    def _on(self, kind: str) -> bool:
        return kind in self._conditions and self._conditions[kind].active

    def _persistent(self, stats: RoutingStats) -> Iterator[Reading]:
        threshold = self._rules.persistence_threshold
        if threshold is None or self._rules.usage_threshold is None:
            return
        self._hot.append(frozenset(hot_experts_of(self._rules, stats).tolist()))
        if len(self._hot) < HISTORY:
            return
        times = Counter(expert for hot in self._hot for expert in hot)
        expert, most = min(times.items(), key=lambda item: (-item[1], item[0]), default=(0, 0))
        lasting = sum(count >= threshold * HISTORY for count in times.values())
        text = f"{lasting} persistent hot expert{'s' if lasting != 1 else ''}"
        if most:
            text += f" (expert {expert} in {most} of {HISTORY} windows)"
        yield above(
            "persistent_hot_experts",
            most / HISTORY,
            threshold,
            text,
            leave=self._rules.leave,
            inclusive=True,
            lasting=False,
        )

    def _frozen(self, stats: RoutingStats) -> Iterator[Reading]:
        windows = self._rules.frozen_windows
        if windows is None:
            return
        before, self._before = self._before, stats
        self._same = self._same + 1 if before is not None and _identical(before, stats) else 1
        text = f"Frozen router (identical counts in {self._same} windows)"
        yield above(
            "frozen_router", float(self._same), float(windows), text, inclusive=True, lasting=False
        )

    def _alerts(
        self, snapshot: Snapshot, layer: str, found: Iterable[Reading], first_step: int
    ) -> Iterator[Alert]:
        for reading in found:
            condition = self._conditions.setdefault(reading.kind, _Condition())
            duration = self._rules.duration if reading.lasting else 1
            state = condition.follow(reading, duration, first_step)
            if state is not None:
                yield Alert(
                    kind=reading.kind,
                    state="started" if state else "ended",
                    layer=layer,
                    phase=snapshot.phase,
                    first_step=condition.first_step,
                    step=snapshot.last_step,
                    value=reading.value,
                    threshold=reading.threshold,
                    floor=reading.floor,
                    message=f"{layer}: {reading.text}",
                    wall_time=snapshot.wall_time,
                )


class _Condition:
    """Whether one condition holds, and for how long what is seen says otherwise."""

    __slots__ = ("_run", "active", "first_step")

    def __init__(self) -> None:
        self.active = False
        self.first_step = 0
        self._run = 0

    def follow(self, reading: Reading, duration: int, first_step: int) -> bool | None:
        """True where it starts, False where it is over, None where nothing changes."""
        against = reading.clear if self.active else reading.met
        if not against:
            self._run = 0
            return None
        self._run += 1
        if not self.active and self._run == 1:
            self.first_step = first_step
        if self._run < duration:
            return None
        self.active, self._run = not self.active, 0
        return self.active


def _shape(stats: RoutingStats) -> tuple[int, int]:
    return stats.num_experts, stats.top_k


def _identical(before: RoutingStats, stats: RoutingStats) -> bool:
    counts = stats.tokens_per_expert
    if int(counts.max()) - int(counts.min()) <= 1:
        return False  # a router that is balanced by force has no other counts to show
    return (
        np.array_equal(before.tokens_per_expert, counts)
        and np.array_equal(before.prob_sum, stats.prob_sum)
        and (before.entropy_sum, before.lse_sum) == (stats.entropy_sum, stats.lse_sum)
    )
