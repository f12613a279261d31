"""Routers that count nothing: told once, when the first training window arrives."""

import logging
from collections.abc import Container, Mapping, Sequence

from moetrace.readers import Site
from moetrace.routing_stats import RoutingStats

__all__ = ["Silence"]

_log = logging.getLogger("moetrace")

_MOST_NAMED = 3


class Silence:
    """Listens to the first window and says which routers did not count.

    Args:
        sites: The routers, in the order of the accumulators.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = tuple(sites)
        self._listened = False

    def hear(self, stats: Mapping[int, RoutingStats], withheld: Container[int]) -> None:
        """Take a training window; all but the first are of no concern.

        Args:
            stats: What was counted, by position of the router.
            withheld: Routers that count nothing on purpose.
        """
        if self._listened:
            return
        self._listened = True
        sites = self._sites
        came = any(stats[index].calls for index in stats if sites[index].kind is not None)
        silent = [
            sites[index].name
            for index in stats
            # Tokens of one kind may not have come at all.
            if stats[index].calls == 0 and (sites[index].kind is None or not came)
            if index not in withheld
        ]
        if silent:
            _log.warning(
                "%d of %d routers counted nothing in the first window (%s%s): their forward did "
                "not run, was replaced by a kernel library or compiled elsewhere, or does not "
                "return logits, weights and expert ids; write a reader (readers=...) for those",
                len(silent),
                len(stats),
                ", ".join(silent[:_MOST_NAMED]),
                ", ..." if len(silent) > _MOST_NAMED else "",
            )
