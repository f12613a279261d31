"""A function of your own as a sink."""

from collections.abc import Callable

from moetrace.alerts import Alert
from moetrace.snapshot import Snapshot

__all__ = ["CallableSink"]


class CallableSink:
    """Calls a function with every snapshot.

    The way to whatever has no sink of its own: a queue, a message, a tracker's ``log``.

    Args:
        function: Takes the snapshot; what it returns is ignored.
        alert: Takes each alert; without it the sink takes none.

    Raises:
        TypeError: A function cannot be called.

    >>> steps = []
    >>> sink = CallableSink(lambda snapshot: steps.append(snapshot.last_step))
    >>> sink.write(Snapshot("run", 0, 0, 0, "train", 1, 10, 0.0, ()))
    >>> steps
    [10]
    """

    def __init__(
        self,
        function: Callable[[Snapshot], object],
        /,
        *,
        alert: Callable[[Alert], object] | None = None,
    ) -> None:
        for given in (function, alert):
            if given is not None and not callable(given):
                raise TypeError(
                    f"found {type(given).__name__}; CallableSink takes a function of one snapshot"
                )
        self._function = function
        if alert is not None:  # else there is no such attribute, and alerts go where they are seen
            self.alert = alert

    def write(self, snapshot: Snapshot, /) -> None:
        """Call the function with it."""
        self._function(snapshot)

    def close(self) -> None:
        """Do nothing: the function holds nothing that belongs to this sink."""
