"""Numbers that cannot be right: found when a window arrives, and left out from then on."""

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from moetrace.readers import Site
from moetrace.routing_stats import RoutingStats

__all__ = ["Withholding", "goes_everywhere"]

_log = logging.getLogger("moetrace")

_MOST_NAMED = 3


class Withholding:
    """Sites whose numbers are withheld, each with its reason; said once, and kept for the run.

    A site that is withheld stands in every later window with nothing counted.

    Args:
        sites: The routers, in the order of the accumulators.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = tuple(sites)
        self.reasons: dict[int, str] = {}

    def apply(
        self, stats: Mapping[int, RoutingStats], disproved: Iterable[tuple[int, str]]
    ) -> dict[int, RoutingStats]:
        """A window without the numbers that cannot be right.

        Args:
            stats: What was counted, by position of the router.
            disproved: Routers whose rule is not what their block does, and why.
        """
        known = len(self.reasons)
        for router, reason in disproved:
            rule = f"its block seems to take {self._sites[router].rule}, but {reason}"
            self.reasons.setdefault(router, rule)
        for router, found in stats.items():
            if goes_everywhere(found) and self._sites[router].top_k != found.num_experts:
                everywhere = f"every token goes to each of its {found.num_experts} experts"
                self.reasons.setdefault(router, f"{everywhere}, so that nothing is chosen")
        self._say([*self.reasons][known:])
        return {
            router: _nothing(found) if router in self.reasons else found
            for router, found in stats.items()
        }

    @property
    def names(self) -> str:
        """The sites that are withheld, as health shows them."""
        return ", ".join(self._sites[router].name for router in self.reasons)

    def _say(self, routers: Sequence[int]) -> None:
        if not routers:
            return
        names = [self._sites[router].name for router in routers[:_MOST_NAMED]]
        _log.warning(
            "the numbers of %d routers are withheld from here on (%s%s): %s; pass readers=[...] "
            "with a reader that knows how it chooses, see docs/readers.md",
            len(routers),
            ", ".join(names),
            ", ..." if len(routers) > _MOST_NAMED else "",
            self.reasons[routers[0]],
        )


def goes_everywhere(stats: RoutingStats) -> bool:
    """Whether each token was counted for each expert, so that nothing was chosen."""
    each = np.full(stats.num_experts, stats.tokens)
    return stats.tokens > 0 and bool((stats.tokens_per_expert == each).all())


def _nothing(stats: RoutingStats) -> RoutingStats:
    zeros = np.zeros(stats.num_experts, dtype=np.int64)
    return RoutingStats(
        layer=stats.layer,
        num_experts=stats.num_experts,
        top_k=stats.top_k,
        scoring=stats.scoring,
        tokens_per_expert=zeros,
        prob_sum=zeros,
        gate_weight_sum=zeros,
        identity_experts=stats.identity_experts,
    )
