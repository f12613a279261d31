"""Where snapshots go besides the run folder.

A sink is anything with ``write(snapshot)`` and ``close()``; the `Sink` protocol says what it may
rely on. Pass sinks to ``attach(..., sinks=[...])``.
"""

from moetrace.sinks.base import Sink
from moetrace.sinks.callable import CallableSink
from moetrace.sinks.console import ConsoleSink
from moetrace.sinks.memory import MemorySink

__all__ = ["CallableSink", "ConsoleSink", "MemorySink", "Sink"]
