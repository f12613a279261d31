"""Starts writers that somebody kills at a chosen call of the system.

``strace -f -e inject=CALL:signal=SIGKILL:when=N python -m tests.store.killed_at FOLDER CALL N``
kills each process at its N-th call of a kind. The k-th child makes N - k such calls for nothing
first, so that it dies at the k-th one of its writing. One start of strace and one import serve all.
A line per child is printed: its number, whether it was killed, and what it saw acknowledged.
"""

import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path

from moetrace.store import RunFolder, files
from tests.store.fault_files import Faults
from tests.store.killed_writers import snapshot
from tests.store.windows import HEADER

LATEST = 60


def write_three(root: Path, acked: mmap.mmap, faults: Faults | None = None) -> None:
    """Write a run of three windows with syncs in it, count what is acknowledged, and exit."""
    now = [0.0]
    files.monotonic = lambda: now[0]
    if faults is not None:
        injected = faults.injected()
        injected.__enter__()
    folder = RunFolder.prepare(root)
    segment = folder.open_segment(rank=0, header=HEADER)
    for seq in range(3):
        now[0] += 6.0  # every second one is due for a sync
        segment.append(snapshot(seq, folder.run_id))
        acked[:8] = (seq + 1).to_bytes(8, "little")
    segment.close()
    os._exit(0)


def _for_nothing(call: str, spare: Path) -> Callable[[], object]:
    """Makes one call of that kind that changes nothing but a spare file."""
    descriptor = os.open(spare, os.O_RDWR | os.O_CREAT)
    calls: dict[str, Callable[[], object]] = {
        "write": lambda: os.write(descriptor, b"x"),
        "pwrite64": lambda: os.pwrite(descriptor, b"x", 0),
        "fdatasync": lambda: os.fdatasync(descriptor),
        "rename": lambda: os.rename(spare, spare),
    }
    return calls[call]


def main(folder: Path, call: str, latest: int) -> None:
    """Start children one after the other until one lives to its end."""
    nothing = _for_nothing(call, folder / "spare")
    for number in range(1, latest + 1):
        with mmap.mmap(-1, 8) as acked:
            child = os.fork()
            if child == 0:
                for _ in range(latest - number):
                    nothing()
                write_three(folder / str(number), acked)
            killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
            count = int.from_bytes(acked[:8], "little")
        report.append(f"{number} {int(killed)} {count}\n")
        if not killed:
            break
    os.writev(1, [line.encode() for line in report])  # no call that is counted


report: list[str] = []

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
