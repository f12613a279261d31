"""What a tracer says of itself: a warning once in the log, and its state in every snapshot."""

import logging
from collections.abc import Sequence
from typing import Any

from moetrace.ops import TracerState
from moetrace.probes import RoutingProbe
from moetrace.probes.places import Places

__all__ = ["Remarks"]

_log = logging.getLogger("moetrace")

_MOST_WORDS = 20


class Remarks:
    """Gathers what is worth saying about a tracing.

    Args:
        state: Shared with the hooks.
        probes: The hooks on the routers.
        places: Where the routers hang, or None.
        sample: Count the first of so many steps.

    Attributes:
        coalesced: How often windows grew since nobody could take them.
        steps_back: How often the step number went back.
    """

    def __init__(
        self,
        state: TracerState,
        probes: Sequence[RoutingProbe],
        places: Places | None,
        sample: int,
    ) -> None:
        self.coalesced = 0
        self.steps_back = 0
        self._state = state
        self._probes = tuple(probes)
        self._places = places
        self._sample = sample
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        """Warn once, and at most 20 times in all."""
        if text not in self._said and len(self._said) < _MOST_WORDS:
            self._said.add(text)
            _log.warning(text)

    def unread(self) -> list[tuple[int, int, str]]:
        """Routers that ran and were not read: position, forwards, and why the first was not."""
        return [
            (index, probe.unread, probe.unread_because)
            for index, probe in enumerate(self._probes)
            if probe.unread
        ]

    def told(self) -> dict[str, Any]:
        """The tracer's own state, as snapshots carry it in ``health``."""
        health: dict[str, Any] = {} if self._sample == 1 else {"sample": self._sample}
        if self.coalesced:
            health["coalesced_windows"] = self.coalesced
        if self.steps_back:
            health["steps_went_back"] = self.steps_back
        if self._state.misfits:
            health["masks_not_applied"] = self._state.misfits
        if self._state.errors:
            health["errors"] = sum(self._state.errors.values())
        if unread := sum(probe.unread for probe in self._probes):
            health["unread"] = unread
        if self._places is not None and self._places.lost:
            health["lost_layers"] = len(self._places.lost)
        return health

    def health(self) -> dict[str, Any]:
        """The same; what is new in it is said in the log."""
        if self._state.misfits:
            self.say(
                "a padding mask did not fit the tokens that a router saw and was not applied, so "
                "padding is counted there; give the right one with tracer.tokens(mask=...)"
            )
        if self._state.errors:
            worst = self._state.errors.most_common(1)[0][0]
            self.say(f"a router could not be counted: {worst}; training is not affected")
        if unread := self.unread():
            more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
            self.say(
                f"a router{more} ran and was not counted: {unread[0][2]}; print(tracer.doctor()) "
                "names it, docs/readers.md has the three lines of a reader for it"
            )
        return self.told()

    def newly_lost(self) -> list[str]:
        """Routers that were replaced after attach, each named once."""
        lost = self._places.newly_lost() if self._places is not None else []
        if lost:
            self.say(
                f"{len(lost)} routers were replaced after attach and count nothing any more "
                f"({', '.join(lost[:3])}{', ...' if lost[3:] else ''}); close() this tracer and "
                "attach again to count those that took their place"
            )
        return list(lost)
