"""A run on disk, finished or still being written: all its ranks and attempts as one sequence.

`open_run` reads the folder once. A `Run` is what stood there at that moment; open it again to see
what was written since. Array rows are read when they are asked for.
"""

import importlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.errors import RunNotReadable
from moetrace.index_layout import SCORE_BITS
from moetrace.index_stats import INDEX_METRICS
from moetrace.metrics import METRICS, EverUsed
from moetrace.notebook import layers_html, notebook_html
from moetrace.printable import span_text
from moetrace.routing_stats import RoutingStats
from moetrace.snapshot import Snapshot, merge, with_never_used
from moetrace.store.index import RunIndex, index_run
from moetrace.store.lines import DamagedRecord
from moetrace.store.segment import Entry
from moetrace.store.segment_reader import read_snapshot
from moetrace.store.timeline import aligned

__all__ = ["Run", "open_run"]


def open_run(path: str | os.PathLike[str]) -> "Run":
    """Read a run folder; also one that a training writes at this moment.

    Every line of the logs and every array row is verified; what is damaged is left out and told in
    `Run.faults`. Nothing is written.

    Args:
        path: The folder that ``attach`` was given.

    Raises:
        RunNotReadable: There is no such folder, no run in it, or none that can be read.
    """
    root = os.path.abspath(os.path.expanduser(os.fsdecode(path)))
    try:
        return Run(root, index_run(root))
    except FileNotFoundError as error:
        reason = "it holds no run of moetrace" if os.path.isdir(root) else "there is no such folder"
        raise _not_readable(root, reason) from error
    except OSError as error:
        raise _not_readable(root, error.strerror or str(error)) from error
    except ValueError as error:
        raise _not_readable(root, str(error)) from error


def _not_readable(root: str, reason: str) -> RunNotReadable:
    return RunNotReadable(
        f"cannot read a run in {root!r}: {reason}; pass the folder that attach() was given"
    )


_MOST_AT_ONCE = 64


class Run:
    """What stood in a run folder when it was opened.

    Attributes:
        path: The folder.
        run_id: Name of the run.
        manifest: What the tracer said about the run when it began: model, every, sites, versions;
            with the sites of all ranks.
        layers: Names of the sites, in the model's order.
        experts: E of each layer.
        phases: Phases with snapshots, ``"train"`` first.
        ranks: Ranks with a segment.
        attempts: Lives of the run with a segment. A rank numbers its own attempts; where a rank
            was not there from the beginning, these are the numbers of the others.
        coverage: How much of the newest life is there: ``ranks`` of ``world_size``, ranks
            ``missing``, and ``stopped``, the last step of each rank that is behind.
        finished: Whether every rank has closed its last segment.
    """

    def __init__(self, root: str, index: RunIndex) -> None:
        self._root, self._index = root, index
        self._late_faults: dict[str, None] = {}
        self._tables: dict[str, Mapping[str, NDArray[np.float64]]] = {}
        self.path = Path(root)
        self.run_id = index.run_id
        self.manifest = index.manifest
        self.layers = tuple(index.experts)
        self.experts = tuple(index.experts.values())
        # of a phase that a later attempt superseded as a whole there is nothing to show
        phases = {entry.phase for entry in index.current}
        self.phases = tuple(sorted(phases, key=lambda phase: (phase != "train", phase)))
        self.ranks = tuple(sorted({segment.name.rank for segment in index.segments}))
        self.attempts = tuple(sorted({life.number for life in index.ranks.lives.values()}))
        self.coverage = dict(index.coverage)
        self.finished = index.finished

    @property
    def faults(self) -> tuple[str, ...]:
        """What could not be read, in words; it grows when a row has gone bad since the opening."""
        return (*self._index.faults, *self._late_faults)

    def _repr_html_(self) -> str:
        """What a notebook shows: what the run is, and its newest window; see `moetrace.notebook`.

        Cost: the arrays of one window are read.
        """
        facts = [
            ("model", str(self.manifest.get("model", "not recorded"))),
            ("ranks", str(len(self.ranks))),
            ("state", "finished" if self.finished else "open"),
            ("faults", str(len(self.faults))),
        ]
        parts: list[str] = []
        for phase in self.phases[:1]:
            groups = self._groups(phase)
            newest = self._merged(groups[-1]) if groups else None
            facts.append((phase, f"{len(groups)} windows"))
            if newest is not None:
                facts.append(("newest", span_text(newest.first_step, newest.last_step)))
                parts.append(layers_html(newest.routing))
        return notebook_html(f"run {self.run_id}", facts, *parts)

    def snapshots(
        self, *, phase: str = "train", rank: int | None = None, superseded: bool = False
    ) -> list[Snapshot]:
        """The windows of a phase, in the order of their steps.

        A window that a later attempt wrote again is left out. With all ranks, counts of the same
        steps are added over ranks, and layers that only some ranks hold are put side by side;
        where one rank closed its windows at other steps, over the smallest span that fits all.
        Of ranks that are declared to route the same tokens one is taken. ``health["ranks"]`` then
        says which ranks are in a window, and ``health["coverage"]``, such as ``"7 of 8"``, that
        some have nothing in it.

        Args:
            phase: The phase.
            rank: Only what this rank counted; None adds all ranks.
            superseded: Keep what a later attempt wrote again, per attempt.
        """
        groups = self._groups(phase, rank=rank, superseded=superseded)
        merged = (self._merged(group, alone=rank is not None) for group in groups)
        found = [window for window in merged if window is not None]
        return found if rank is not None or superseded else list(self._with_never_used(found))

    def windows(self, *, phase: str = "train", after: int | None = None) -> Iterator[Snapshot]:
        """The snapshots of all ranks one after the other: only one of them is in memory.

        Args:
            phase: The phase.
            after: Read only windows that end after this step. What only the windows before could
                tell, ``health["never_used_experts"]`` of several ranks, is then left out.
        """
        groups = self._groups(phase)
        if after is not None:
            groups = [group for group in groups if _span(group)[1] > after]
        merged = (self._merged(group) for group in groups)
        found = (window for window in merged if window is not None)
        if after is None:
            yield from self._with_never_used(found)
        elif len(self.ranks) < 2:
            yield from found
        else:
            yield from map(_without_never_used, found)

    def counts(self, *, phase: str = "train") -> NDArray[np.int64]:
        """Assignments per window, layer and expert, shape ``(windows, layers, experts)``.

        -1 is no count: a layer with fewer experts than the largest, or not in that window.
        """
        groups = self._groups(phase)
        shape = (len(groups), len(self.layers), max(self.experts, default=0))
        table = np.full(shape, -1, np.int64)
        for window, row, stats in self._stats(groups):
            table[window, row, : stats.num_experts] = stats.tokens_per_expert
        return table

    def metric(self, name: str, *, phase: str = "train") -> NDArray[np.float64]:
        """A metric per window and layer, shape ``(windows, layers)``; NaN where it is undefined.

        Args:
            name: A key of `RoutingStats.metrics`.
            phase: The phase.

        Raises:
            ValueError: There is no such metric.
        """
        if name not in METRICS:
            raise ValueError(f"found no metric {name!r}; the metrics are {', '.join(METRICS)}")
        if phase not in self._tables:
            self._tables[phase] = self._metric_tables(phase)
        return self._tables[phase][name].copy()

    def tables(self, *, phase: str = "train") -> tuple[str, ...]:
        """Names of the layers whose look-ups in a table of experts were counted."""
        return tuple(
            dict.fromkeys(item.layer for w in self.windows(phase=phase) for item in w.indices)
        )

    def index_metric(self, name: str, *, phase: str = "train") -> NDArray[np.float64]:
        """A metric per window and table, shape ``(windows, tables)``; NaN where it is undefined.

        Over several ranks what does not add is known only in windows whose counts per expert were
        kept (``IndexProbe(dense_every=...)``), and NaN in the others.

        Args:
            name: A key of `IndexStats.metrics`.
            phase: The phase.

        Raises:
            ValueError: There is no such metric.
        """
        if name not in INDEX_METRICS:
            known = ", ".join(INDEX_METRICS)
            raise ValueError(f"found no metric {name!r} of tables; the metrics are {known}")
        windows = [
            {t.layer: t.metrics()[name] for t in w.indices} for w in self.windows(phase=phase)
        ]
        layers = dict.fromkeys(layer for window in windows for layer in window)
        rows = [[window.get(layer) for layer in layers] for window in windows]
        table = np.array(rows, np.float64).reshape(len(windows), len(layers))
        return table

    def draws(
        self, layer: str, *, phase: str = "train"
    ) -> Iterator[tuple[list[int], NDArray[np.int64], NDArray[np.float64] | None]]:
        """Counts per expert of a table, for the windows that keep them, all ranks together.

        Args:
            layer: Name of the layer.
            phase: The phase.

        Yields:
            First and last step of the window, draws per expert ``(E,)``, and the sums of the
            router's scores per expert, or None where no scores were seen.
        """
        for group in self._groups(phase):
            merged = self._merged(group, dense=True)
            for table in () if merged is None else merged.indices:
                if table.layer == layer and table.tokens_per_expert is not None:
                    scores = table.score_sum
                    real = None if scores is None else scores / float(1 << SCORE_BITS)
                    yield _span(group), table.tokens_per_expert, real

    def steps(self, *, phase: str = "train") -> NDArray[np.int64]:
        """First and last step of each window, shape ``(windows, 2)``."""
        return np.array([_span(group) for group in self._groups(phase)], np.int64).reshape(-1, 2)

    def events(self) -> list[dict[str, Any]]:
        """What happened: ``kind``, ``wall_time``, ``rank``, ``attempt``, and the event's fields.

        In the order of wall time; those of one process stay in their order, whatever its clock did.
        """
        found: list[tuple[float, dict[str, Any]]] = []
        for item in self._index.segments:
            reached = -math.inf
            for event in item.events:
                reached = max(reached, float(event["wall_time"]))
                known = {"kind": event["kind"], "wall_time": event["wall_time"]}
                owner = {"rank": item.name.rank, "attempt": item.name.attempt}
                found.append((reached, {**event["fields"], **known, **owner}))
        return [event for _, event in sorted(found, key=lambda pair: pair[0])]

    def summary(self) -> dict[str, Any]:
        """The run in plain numbers, strings, lists and dicts.

        ``steps`` are first and last step per phase, ``tokens`` the tokens per phase that went
        through the layer with the most.
        """
        groups = {phase: self._groups(phase) for phase in self.phases}
        return {
            "run_id": self.run_id,
            "model": self.manifest.get("model"),
            "layers": list(self.layers),
            "experts": list(self.experts),
            "windows": {phase: len(found) for phase, found in groups.items()},
            "steps": {
                phase: _span([e for g in found for e in g]) for phase, found in groups.items()
            },
            "tokens": {phase: _tokens(found) for phase, found in groups.items()},
            "ranks": list(self.ranks),
            "attempts": list(self.attempts),
            "coverage": {**self.coverage, "stopped": _named(self.coverage["stopped"])},
            "finished": self.finished,
            "faults": list(self.faults),
        }

    def to_pandas(self, *, phase: str = "train") -> Any:
        """A pandas table of steps, tokens and every metric, a row per window and layer.

        Raises:
            ImportError: pandas is not installed.
        """
        return importlib.import_module("pandas").DataFrame(self._long_table(phase))

    def to_polars(self, *, phase: str = "train") -> Any:
        """A polars table of steps, tokens and every metric, a row per window and layer.

        Raises:
            ImportError: polars is not installed.
        """
        return importlib.import_module("polars").DataFrame(self._long_table(phase))

    def _groups(
        self, phase: str, *, rank: int | None = None, superseded: bool = False
    ) -> list[list[Entry]]:
        """Entries of a phase by window; each becomes one snapshot."""
        entries = self._index.entries if superseded else self._index.current
        chosen = [
            entry
            for entry in entries
            if entry.phase == phase and rank in (None, entry.segment.rank)
        ]
        groups = aligned(chosen)
        if superseded:
            lives = self._index.ranks.lives
            by_life: dict[int, list[Entry]] = {}
            for entry in chosen:
                life = lives[entry.segment.attempt, entry.segment.rank]
                by_life.setdefault(life.number, []).append(entry)
            groups = [group for life in sorted(by_life) for group in aligned(by_life[life])]
        if rank is None:
            groups = [self._index.ranks.distinct(group) for group in groups]
        return groups

    def _with_never_used(self, windows: Iterable[Snapshot]) -> Iterator[Snapshot]:
        """An expert that one rank never used may be used by another: counted anew over all."""
        used = EverUsed()
        for window in windows:
            yield window if len(self.ranks) < 2 else with_never_used(window, used)[0]

    def _merged(
        self, group: Sequence[Entry], *, alone: bool = False, dense: bool = False
    ) -> Snapshot | None:
        # Counts per expert make what ranks add up to exact; a single one has its reductions.
        counts = dense or len(group) > 1
        # merge() takes what does not add from the last one: the lowest rank's newest window
        waiting = sorted(group, key=lambda e: (-e.segment.rank, e.last_step, e.seq))
        merged: Snapshot | None = None
        there: list[Entry] = []
        while waiting:
            # A few at a time: a thousand ranks need not be in memory at once.
            few, waiting = waiting[:_MOST_AT_ONCE], waiting[_MOST_AT_ONCE:]
            read = [(e, part) for e in few if (part := self._read(e, dense=counts)) is not None]
            there += [entry for entry, _ in read]
            found = [*([] if merged is None else [merged]), *(part for _, part in read)]
            try:
                merged = self._joined(found) if len(found) > 1 else next(iter(found), None)
            except ValueError as error:
                first, last = _span(group)
                self._note(f"steps {first} to {last}: {error}; left out")
                return None
        if merged is not None and not dense:
            merged = replace(merged, indices=tuple(item.reduced() for item in merged.indices))
        return merged if merged is None or alone else self._told(merged, there)

    def _told(self, merged: Snapshot, entries: Sequence[Entry]) -> Snapshot:
        """A window over ranks with which they are, and how many are missing."""
        health = dict(merged.health)
        if len(entries) > 1:
            health["ranks"] = sorted({entry.segment.rank for entry in entries})
        there, of = self._index.ranks.covered(entries)
        if there < of:
            health["coverage"] = f"{there} of {of}"
        return replace(merged, health=health)

    def _joined(self, parts: Sequence[Snapshot]) -> Snapshot:
        """The sum of snapshots that need not hold the same layers."""
        layers = {part.layers for part in parts}
        if len(layers) == 1:
            return merge(parts)
        bare = merge([replace(part, routing=()) for part in parts])
        routing: list[RoutingStats] = []
        for layer in self.layers:
            holding = [replace(p, routing=(p[layer],)) for p in parts if layer in p.layers]
            if holding:
                routing += merge(holding).routing
        return replace(bare, routing=tuple(routing))

    def _read(self, entry: Entry, *, dense: bool) -> Snapshot | None:
        try:
            return read_snapshot(self._root, entry, dense=dense)
        except DamagedRecord as error:
            self._note(f"segment {entry.segment}: record {entry.line}: {error}; skipped")
            return None

    def _note(self, fault: str) -> None:
        self._late_faults[fault] = None

    def _stats(self, groups: Sequence[Sequence[Entry]]) -> Iterator[tuple[int, int, RoutingStats]]:
        """Position of the window, position of the layer, and what stands there."""
        rows = {layer: row for row, layer in enumerate(self.layers)}
        for window, group in enumerate(groups):
            snapshot = self._merged(group)
            for stats in snapshot or ():
                yield window, rows[stats.layer], stats

    def _metric_tables(self, phase: str) -> dict[str, NDArray[np.float64]]:
        groups = self._groups(phase)
        tables = {name: np.full((len(groups), len(self.layers)), np.nan) for name in METRICS}
        for window, row, stats in self._stats(groups):
            for name, value in stats.metrics().items():
                if value is not None:
                    tables[name][window, row] = value
        return tables

    def _long_table(self, phase: str) -> dict[str, list[Any]]:
        table: dict[str, list[Any]] = {}
        groups = self._groups(phase)
        for window, _, stats in self._stats(groups):
            first, last = _span(groups[window])
            row = {
                "first_step": first,
                "last_step": last,
                "layer": stats.layer,
                "num_experts": stats.num_experts,
                "tokens": stats.tokens,
                **stats.metrics(),
            }
            for name, value in row.items():
                table.setdefault(name, []).append(value)
        return table


def _without_never_used(window: Snapshot) -> Snapshot:
    health = {key: value for key, value in window.health.items() if key != "never_used_experts"}
    return replace(window, health=health)


def _span(entries: Sequence[Entry]) -> list[int]:
    return [min(e.first_step for e in entries), max(e.last_step for e in entries)]


def _named(stopped: Mapping[int, int]) -> dict[str, int]:
    return {str(rank): step for rank, step in stopped.items()}


def _tokens(groups: Sequence[Sequence[Entry]]) -> int:
    by_layer: Counter[str] = Counter()
    for group in groups:
        for entry in group:
            by_layer.update(dict(zip(entry.layers, entry.tokens, strict=True)))
    return max(by_layer.values(), default=0)
