"""A window that the training thread has closed, and the records that its sums become."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.host_copy import HostCopy
from moetrace.layout import SCALARS, AccumulatorLayout
from moetrace.readers import Site
from moetrace.routing_stats import RoutingStats

__all__ = ["ClosedWindow", "stats_of"]


@dataclass(frozen=True, slots=True)
class ClosedWindow:
    """A window that the training thread has closed, with its sums.

    Attributes:
        phase: Its phase.
        first_step: First optimizer step in it.
        last_step: Last optimizer step in it.
        wall_time: Unix time of the closing, seconds.
        copy: The sums.
        health: The tracer's own state at that time.
    """

    phase: str
    first_step: int
    last_step: int
    wall_time: float
    copy: HostCopy
    health: Mapping[str, Any]

    def records(
        self, sites: Sequence[Site]
    ) -> tuple[dict[int, RoutingStats], dict[str, list[Any]]]:
        """What was counted, by position of the router, and what probes measured, by field.

        Takes the sums out of the copy: call it once.
        """
        stats: dict[int, RoutingStats] = {}
        probed: dict[str, list[Any]] = {}
        for routers, probes, sums in self.copy.arrays():
            start = 0
            for index in routers:
                width = AccumulatorLayout(sites[index].columns).width
                stats[index] = stats_of(sites[index], sums[start : start + width])
                start += width
            for probe, width in probes:
                probed.setdefault(probe.field, []).extend(probe.stats(sums[start : start + width]))
                start += width
        return stats, probed


def stats_of(site: Site, sums: NDArray[np.int64]) -> RoutingStats:
    """The record of one router, from its row of sums, shape ``(W,)``."""
    layout, E = AccumulatorLayout(site.columns), site.num_experts
    counts = sums[: layout.num_experts]
    out_of_range = int(sums[layout.out_of_range])
    scalars = {name: int(sums[layout.scalar(name)]) for name in SCALARS}
    tokens = scalars["tokens"]
    top_k, dropped = _choices(
        int(counts.sum()) + out_of_range,
        tokens,
        site.top_k,
        limited=site.limited,
        varies=site.varies,
    )
    scalars["dropped"] += dropped
    # With logits every scored token adds at least 1/E; a sum of 0 means that there are none.
    unscored = tokens > scalars["nonfinite"] and scalars["confidence_sum"] == 0
    return RoutingStats(
        layer=site.name,
        num_experts=site.num_experts,
        top_k=top_k,
        scoring="none" if unscored else site.scoring,
        tokens_per_expert=counts[:E],
        prob_sum=sums[layout.prob_sum :][:E],
        gate_weight_sum=sums[layout.gate_weight_sum :][:E],
        out_of_range=out_of_range,
        identity=int(counts[E:].sum()),
        identity_experts=site.identity_experts,
        **scalars,
    )


def _choices(
    assignments: int, tokens: int, stated: int, *, limited: bool, varies: bool = False
) -> tuple[int, int]:
    """K, and the assignments that a capacity limit left out of a router's map.

    Every token of a list of ids has K of them, so that the data say K, whatever the router states.
    A map may have rows with fewer: then K is the stated one, or the least that holds them all. Of
    a router whose map is limited the stated K holds, as long as it can. Where the number may vary
    from token to token, and does, K is 0 and nothing was dropped.

    >>> _choices(20, 10, 0, limited=False), _choices(19, 10, 2, limited=False)
    ((2, 0), (2, 1))
    >>> _choices(10, 10, 2, limited=True), _choices(0, 0, 2, limited=False)
    ((2, 10), (2, 0))
    >>> _choices(19, 10, 0, limited=False, varies=True)
    (0, 0)
    """
    if limited and stated and 0 < assignments <= tokens * stated:
        return stated, tokens * stated - assignments
    if not tokens or not assignments:
        return stated, 0
    if assignments % tokens == 0:
        return assignments // tokens, 0
    if varies:
        return 0, 0
    top_k = max(stated, -(-assignments // tokens))
    return top_k, tokens * top_k - assignments
