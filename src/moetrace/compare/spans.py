# pyright: strict
"""The same steps of several runs side by side, whatever windows each of them closed."""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from moetrace.routing_stats import RoutingStats, merge_stats
from moetrace.snapshot import Snapshot

__all__ = ["Span", "spans_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Steps that no window of any run crosses.

    Attributes:
        first_step: The first of them.
        last_step: The last of them.
        windows: How many windows each run has in them.
        same: Whether every run has all of these steps, or every run the same ones of them.
        layers: What each run counted in them by layer, its windows added up; a layer that only
            some of them hold, or with another number of experts, is left out.
    """

    first_step: int
    last_step: int
    windows: tuple[int, ...]
    same: bool
    layers: tuple[Mapping[str, RoutingStats], ...]


def spans_of(histories: Sequence[Iterable[Snapshot]]) -> Iterator[Span]:
    """The smallest spans that no window crosses, in the order of their steps.

    A window of steps 1-10 beside two windows 1-5 and 6-10 of another run is one span. Memory holds
    one span at a time.

    Args:
        histories: The windows of one phase of each run, in the order of their steps.
    """
    tagged = (_tagged(history, run) for run, history in enumerate(histories))
    group: list[tuple[int, Snapshot]] = []
    reached = -1
    for run, window in heapq.merge(*tagged, key=lambda pair: (pair[1].first_step, pair[0])):
        if group and window.first_step > reached:
            yield _span(group, len(histories))
            group = []
        group.append((run, window))
        reached = max(reached, window.last_step)
    if group:
        yield _span(group, len(histories))


def _tagged(history: Iterable[Snapshot], run: int) -> Iterator[tuple[int, Snapshot]]:
    return ((run, window) for window in history)


def _span(group: Sequence[tuple[int, Snapshot]], runs: int) -> Span:
    by_run: list[list[Snapshot]] = [[] for _ in range(runs)]
    for run, window in group:
        by_run[run].append(window)
    steps = {_steps(windows) for windows in by_run}
    same = len(steps) == 1
    return Span(
        first_step=min(window.first_step for _, window in group),
        last_step=max(window.last_step for _, window in group),
        windows=tuple(map(len, by_run)),
        same=same,
        layers=tuple(_added(windows) for windows in by_run) if same else tuple({} for _ in by_run),
    )


def _steps(windows: Sequence[Snapshot]) -> tuple[tuple[int, int], ...]:
    """The steps of windows as ranges that do not touch."""
    ranges: list[tuple[int, int]] = []
    for window in windows:
        if ranges and window.first_step <= ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], max(ranges[-1][1], window.last_step))
        else:
            ranges.append((window.first_step, window.last_step))
    return tuple(ranges)


def _added(windows: Sequence[Snapshot]) -> dict[str, RoutingStats]:
    by_layer: dict[str, list[RoutingStats]] = {}
    for window in windows:
        for stats in window:
            by_layer.setdefault(stats.layer, []).append(stats)
    return {
        layer: merge_stats(found)
        for layer, found in by_layer.items()
        if len(found) == len(windows) and len({stats.num_experts for stats in found}) == 1
    }
