"""Writes a run as the tracer's writer does, for somebody who watches or breaks its system calls.

``python -m tests.store.traced_writer FOLDER WINDOWS`` prints the durability at the end. Windows
that fail are added to the next one, and tried again at the end; every second one is synced.
"""

import sys
from pathlib import Path

from moetrace.snapshot import Snapshot, merge
from moetrace.store import RunFolder, SegmentWriter, files
from tests.store.windows import HEADER, window


def written(root: Path, count: int) -> SegmentWriter:
    """Write that many windows into a run folder, whatever it takes."""
    now = [0.0]
    files.monotonic = lambda: now[0]
    folder = RunFolder.prepare(root)
    segment = folder.open_segment(rank=0, header=HEADER)
    waiting: Snapshot | None = None
    for seq in range(count + 20):
        now[0] += 6.0
        if seq < count:
            fresh = window(seq, run_id=folder.run_id)
            waiting = fresh if waiting is None else merge([waiting, fresh])
        if waiting is None:
            break
        try:
            segment.append(waiting)
        except OSError:
            continue
        waiting = None
    return segment


if __name__ == "__main__":
    segment = written(Path(sys.argv[1]), int(sys.argv[2]))
    try:
        segment.close()
    except OSError as error:
        print(segment.durability, error)  # noqa: T201
    else:
        print(segment.durability)  # noqa: T201
