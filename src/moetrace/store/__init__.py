"""The run folder: what one process writes, and how anybody reads it back without trusting it.

`RunFolder` and `SegmentWriter` write; `index_run` and `read_snapshot` read. The bytes are described
in ``docs/run-format.md``.
"""

from moetrace.store.earlier import earlier_events, earlier_weights
from moetrace.store.folder import RunFolder
from moetrace.store.index import RunIndex, index_run
from moetrace.store.segment import Entry, Segment
from moetrace.store.segment_reader import read_snapshot
from moetrace.store.segment_writer import SegmentWriter

__all__ = [
    "Entry",
    "RunFolder",
    "RunIndex",
    "Segment",
    "SegmentWriter",
    "earlier_events",
    "earlier_weights",
    "index_run",
    "read_snapshot",
]
