"""What earlier attempts of one rank have left, for a process that goes on where they ended."""

from collections.abc import Iterator, Mapping
from typing import Any

from moetrace.store import files
from moetrace.store.lines import DamagedRecord, open_line, read_lines
from moetrace.store.names import LOG, SEGMENTS
from moetrace.store.schema import integer, mapping, text
from moetrace.store.segment_reader import segment_names
from moetrace.store.tables import from_columns
from moetrace.weight_stats import WeightStats

__all__ = ["earlier_events", "earlier_weights"]

_EVENT = b'{"record":"event",'
_WEIGHTS = b'"weights":{'


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
    for line in _lines(root, rank, attempt):
        if line.startswith(_EVENT):
            yield from _event(line)


def earlier_weights(root: str, *, rank: int, attempt: int, step: int) -> tuple[WeightStats, ...]:
    """The router weights that this rank recorded at ``step`` before ``attempt``, the newest ones.

    Args:
        root: Path of the run folder.
        rank: The rank.
        attempt: Its present attempt.
        step: Last step of the window that recorded them.

    Cost: reads the logs and parses the windows that have weights; no array file.
    """
    found: tuple[WeightStats, ...] = ()
    for line in _lines(root, rank, attempt):
        if _WEIGHTS in line:
            try:
                record = open_line(line)
                if "weights" in record and integer(record, "last_step") == step:
                    found = from_columns(WeightStats, mapping(record, "weights"))
            except DamagedRecord:
                continue
    return found


def _lines(root: str, rank: int, attempt: int) -> Iterator[bytes]:
    names, _ = segment_names(root)
    own = [name for name in names if name.rank == rank and name.attempt < attempt]
    for name in sorted(own, key=lambda name: name.attempt):
        try:
            log = files.open_within(root, (SEGMENTS, str(name), LOG))
        except OSError:
            continue
        try:
            for _, line in read_lines(log):
                yield line
        finally:
            files.close(log)


def _event(line: bytes) -> Iterator[Mapping[str, Any]]:
    try:
        record = open_line(line)
        yield {**mapping(record, "fields"), "kind": text(record, "kind")}
    except DamagedRecord:
        return
