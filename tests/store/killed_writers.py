"""Starts writers one after the other and kills each with SIGKILL at a random moment.

``python -m tests.store.killed_writers FOLDER COUNT`` writes ``FOLDER/<n>/``, a run folder each, and
``FOLDER/<n>.acked``: the number of snapshots that the writer saw acknowledged, counted up in a
shared memory map, which outlives it. The program imports once and forks, so that 200 kills take
seconds. Every fifth writer is killed within 10 ms of its start, while it makes the folder; the
others within 20 ms of their first acknowledgement.
"""

import mmap
import os
import random
import signal
import sys
import time
from pathlib import Path

from moetrace.snapshot import Snapshot
from moetrace.store import RunFolder
from tests.store.windows import HEADER, window

OPENING = 5  # every fifth writer is killed early


def snapshot(seq: int, run_id: str) -> Snapshot:
    """The ``seq``-th snapshot of a writer, told by its counts; two groups of layers."""
    return window(seq, {"a": (seq, 1), "b": (seq, 2, 3), "c": (4, seq)}, run_id=run_id)


def write_until_killed(root: Path, acked: mmap.mmap) -> None:
    """Write as fast as possible and count what is acknowledged, for ever."""
    folder = RunFolder.prepare(root)
    segment = folder.open_segment(rank=0, header=HEADER)
    for seq in range(10**9):
        segment.append(snapshot(seq, folder.run_id))
        acked[:8] = (seq + 1).to_bytes(8, "little")


def wait_for_the_first(acked: mmap.mmap) -> None:
    """Return when a snapshot is acknowledged."""
    deadline = time.monotonic() + 60
    while not any(acked[:8]):
        if time.monotonic() > deadline:
            raise TimeoutError("a writer acknowledged nothing in 60 s")
        time.sleep(0.0005)


def main(folder: Path, count: int) -> None:
    """Start and kill that many writers."""
    chance = random.Random(7)
    for number in range(count):
        counter = folder / f"{number}.acked"
        counter.write_bytes(bytes(8))
        with counter.open("r+b") as file, mmap.mmap(file.fileno(), 8) as acked:
            child = os.fork()
            if child == 0:
                os.setpgid(0, 0)
                write_until_killed(folder / str(number), acked)
            if number % OPENING:
                wait_for_the_first(acked)
            time.sleep(chance.random() * (0.02 if number % OPENING else 0.01))
            try:
                os.killpg(child, signal.SIGKILL)
            except ProcessLookupError:  # killed before it made its group
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
