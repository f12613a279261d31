"""What a run folder holds, over all its segments, before any array row is read for good."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moetrace.store.manifest import read_manifest
from moetrace.store.names import SegmentName
from moetrace.store.ranks import Ranks, two_writers
from moetrace.store.schema import is_text
from moetrace.store.segment import Entry, Segment
from moetrace.store.segment_reader import segment_names
from moetrace.store.segment_scan import scan_segment
from moetrace.store.segment_writer import HEADER_KEYS
from moetrace.store.timeline import aligned, without_superseded

__all__ = ["RunIndex", "index_run"]

Headers = Mapping[tuple[int, int], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class RunIndex:
    """What the segments of one run hold together.

    Attributes:
        run_id: Name of the run.
        manifest: Header of the lowest rank's last attempt, with the sites of all ranks.
        segments: Segments of this run.
        entries: Snapshots that count, superseded ones included.
        current: Those that no later life of the run has written again.
        ranks: What the ranks are to each other.
        coverage: How many ranks of how many are there, and which stopped.
        experts: E by layer, the layers in the model's order.
        finished: Whether every rank has closed its last segment.
        faults: What could not be read, in words.
    """

    run_id: str
    manifest: Mapping[str, Any]
    segments: tuple[Segment, ...]
    entries: tuple[Entry, ...]
    current: tuple[Entry, ...]
    ranks: Ranks
    coverage: Mapping[str, Any]
    experts: Mapping[str, int]
    finished: bool
    faults: tuple[str, ...]


def index_run(root: str) -> RunIndex:
    """Scan all segments of a run folder.

    Raises:
        OSError: There is no such folder, or no folder of segments in it.
        ValueError: Nothing in it can be read; the message says why.
    """
    names, faults = segment_names(root)
    scanned = [scan_segment(root, name) for name in names]
    faults += [fault for segment in scanned for fault in segment.faults]
    owners = Counter(owner for segment in scanned if (owner := _owner(segment)) is not None)
    if not owners:
        raise ValueError(faults[0] if faults else "it has no segment yet")
    run_id = _elected(root, owners)
    segments = _without_voids([segment for segment in scanned if _owner(segment) == run_id])
    others = sum(owners.values()) - len(segments)
    if others:
        faults.append(f"{others} segments of other runs than {run_id} were not read")
    headers = {
        (segment.name.attempt, segment.name.rank): segment.header
        for segment in segments
        if segment.header is not None
    }
    entries = _counting(segments)
    ranks = Ranks.of(segments)
    current = without_superseded(entries, lives=ranks.lives)
    trained = aligned(entry for entry in current if entry.phase == "train")
    faults += [*ranks.faults(trained), *two_writers(segments)]
    manifest = _manifest(root, headers)
    return RunIndex(
        run_id=run_id,
        manifest=manifest,
        segments=tuple(segments),
        entries=tuple(entries),
        current=tuple(current),
        ranks=ranks,
        coverage=ranks.coverage(trained),
        experts=_experts(entries, manifest),
        finished=_finished(segments),
        faults=tuple(faults),
    )


def _owner(segment: Segment) -> str | None:
    if segment.header is not None:
        return str(segment.header["run_id"])
    return segment.entries[0].run_id if segment.entries else None


def _elected(root: str, owners: Counter[str]) -> str:
    manifest = read_manifest(root)
    if manifest is not None and manifest["run_id"] in owners:
        return str(manifest["run_id"])
    return owners.most_common(1)[0][0]


def _counting(segments: Sequence[Segment]) -> list[Entry]:
    """All entries; of snapshots of one process with the same number the widest.

    There are such only where the header is damaged that made one of them void.
    """
    entries = [entry for segment in segments for entry in segment.entries]
    if all(segment.header is not None for segment in segments):
        return entries
    widest: dict[tuple[int, int, int], Entry] = {}
    for entry in entries:
        known = widest.setdefault(_number(entry), entry)
        if known.segment != entry.segment and _steps(entry) > _steps(known):
            widest[_number(entry)] = entry
    return [entry for entry in entries if widest[_number(entry)].segment == entry.segment]


def _without_voids(segments: Sequence[Segment]) -> list[Segment]:
    """Segments without the lines that a later segment of the same process wrote again."""
    voids: dict[SegmentName, int] = {}
    for segment in segments:
        for nonce, lines in (segment.header or {}).get("voids", {}).items():
            sealed = replace(segment.name, nonce=nonce)
            voids[sealed] = min(lines, voids.get(sealed, lines))
    return [
        _cut(segment, voids[segment.name]) if segment.name in voids else segment
        for segment in segments
    ]


def _cut(segment: Segment, lines: int) -> Segment:
    kept = [index for index, line in enumerate(segment.event_lines) if line < lines]
    return replace(
        segment,
        entries=tuple(entry for entry in segment.entries if entry.line < lines),
        events=tuple(segment.events[index] for index in kept),
        event_lines=tuple(segment.event_lines[index] for index in kept),
    )


def _number(entry: Entry) -> tuple[int, int, int]:
    return entry.segment.attempt, entry.segment.rank, entry.seq


def _steps(entry: Entry) -> int:
    return entry.last_step - entry.first_step


def _manifest(root: str, headers: Headers) -> dict[str, Any]:
    if not headers:
        manifest = read_manifest(root) or {}
        return {key: value for key, value in manifest.items() if key not in HEADER_KEYS}
    lowest = min(rank for _, rank in headers)
    last = max(attempt for attempt, rank in headers if rank == lowest)
    manifest = {k: v for k, v in headers[last, lowest].items() if k not in HEADER_KEYS}
    sites: dict[str, Mapping[str, Any]] = {}
    for owner in sorted(headers, key=lambda owner: (owner[1], -owner[0])):
        for site in _sites(headers[owner]):
            sites.setdefault(str(site["name"]), site)
    return {**manifest, "sites": list(sites.values())}


def _sites(header: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    sites = header.get("sites")
    if not isinstance(sites, list):
        return []
    return [site for site in sites if isinstance(site, dict) and is_text(site.get("name"))]


def _experts(entries: Sequence[Entry], manifest: Mapping[str, Any]) -> dict[str, int]:
    experts: dict[str, int] = {}
    for entry in entries:
        for layer, found in zip(entry.layers, entry.experts, strict=True):
            experts[layer] = max(found, experts.get(layer, 0))
    listed = [str(site["name"]) for site in manifest["sites"]] if "sites" in manifest else []
    if len({entry.layers for entry in entries}) > 1:
        # pipeline ranks hold parts of the model, by turns where stages are interleaved
        listed = sorted(listed, key=_numbers_in)
    order = [layer for layer in listed if layer in experts or not entries]
    return {layer: experts.get(layer, 0) for layer in dict.fromkeys([*order, *experts])}


def _numbers_in(name: str) -> list[tuple[bool, int, str]]:
    parts = re.findall(r"[0-9]{1,18}|[^0-9]+", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _finished(segments: Sequence[Segment]) -> bool:
    last: dict[int, int] = {}
    for segment in segments:
        last[segment.name.rank] = max(segment.name.attempt, last.get(segment.name.rank, 0))
    ended = {(segment.name.rank, segment.name.attempt) for segment in segments if segment.ended}
    return all(owner in ended for owner in last.items())
