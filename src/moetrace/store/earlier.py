"""What earlier attempts of one rank have said, for a process that goes on where they ended."""

from collections.abc import Iterator, Mapping
from typing import Any

from moetrace.store import files
from moetrace.store.lines import DamagedRecord, open_line, read_lines
from moetrace.store.names import LOG, SEGMENTS
from moetrace.store.schema import mapping, text
from moetrace.store.segment_reader import segment_names

__all__ = ["earlier_events"]

_EVENT = b'{"record":"event",'


def earlier_events(root: str, *, rank: int, attempt: int) -> Iterator[Mapping[str, Any]]:
    """The events of this rank's attempts before ``attempt``, in the order of their writing.

    ``kind`` and the fields of each event stand side by side, as in `Run.events`. A log or a line
    that cannot be read is left out.

    Cost: reads the logs, but parses nothing of them except events, and no array file.

    Args:
        root: Path of the run folder.
        rank: The rank.
        attempt: Its present attempt.
    """
    names, _ = segment_names(root)
    own = [name for name in names if name.rank == rank and name.attempt < attempt]
    for name in sorted(own, key=lambda name: name.attempt):
        try:
            log = files.open_within(root, (SEGMENTS, str(name), LOG))
        except OSError:
            continue
        try:
            for _, line in read_lines(log):
                if line.startswith(_EVENT):
                    yield from _event(line)
        finally:
            files.close(log)


def _event(line: bytes) -> Iterator[Mapping[str, Any]]:
    try:
        record = open_line(line)
        yield {**mapping(record, "fields"), "kind": text(record, "kind")}
    except DamagedRecord:
        return
