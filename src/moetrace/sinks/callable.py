"""A function of your own as a sink."""

from collections.abc import Callable

from moetrace.snapshot import Snapshot

__all__ = ["CallableSink"]


class CallableSink:
    """Calls a function with every snapshot.

    The way to whatever has no sink of its own: a queue, a message, a tracker's ``log``.

    Args:
        function: Takes the snapshot; what it returns is ignored.

    Raises:
        TypeError: ``function`` cannot be called.

    >>> steps = []
    >>> sink = CallableSink(lambda snapshot: steps.append(snapshot.last_step))
    >>> sink.write(Snapshot("run", 0, 0, 0, "train", 1, 10, 0.0, ()))
    >>> steps
    [10]
    """

    def __init__(self, function: Callable[[Snapshot], object], /) -> None:
        if not callable(function):
            raise TypeError(
                f"found {type(function).__name__}; CallableSink takes a function of one snapshot"
            )
        self._function = function

    def write(self, snapshot: Snapshot, /) -> None:
        """Call the function with it."""
        self._function(snapshot)

    def close(self) -> None:
        """Do nothing: the function holds nothing that belongs to this sink."""
