"""Counts what tables of experts are asked for: PEER and other layers of very many experts.

The hooks of `moetrace.probes.lookups` see the ids on their way into a table. Every table has
one int64 tensor on its device, of 8 bytes per expert and statistic, for the open step and the open
window together. What a window reduces to is formed on the writer's thread.
"""

import logging
import math
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moetrace.index_layout import INDEX_SCALARS, IndexLayout
from moetrace.index_stats import MOST_LISTED, IndexStats, index_stats_of, with_shared
from moetrace.look_ups import LookUps
from moetrace.metrics import hot_indices, hot_overlap, persistent_experts
from moetrace.ops import TracerState
from moetrace.ops.indices import IndexState, register_indices
from moetrace.ops.table_sums import TableSums, zeros
from moetrace.probes.lookups import ScoreProbe, TableProbe
from moetrace.probes.tables import IndexProbe, Table, TableShape

__all__ = ["IndexMeter", "IndexWindow", "with_history"]

_log = logging.getLogger("moetrace")

_HISTORY = 5
_AFTER = 1
"""The rule of a table whose scores come after the look-up, see `moetrace.ops.indices`."""


@dataclass(slots=True)
class _Followed:
    """One table with its hook and its sums."""

    shape: TableShape
    sums: TableSums
    probe: TableProbe
    module: "weakref.ref[nn.Module]"
    hot: "deque[NDArray[np.int64]]" = field(default_factory=lambda: deque(maxlen=_HISTORY))


class IndexMeter:
    """Counts the look-ups of some tables.

    Args:
        tables: What `tables_of` found.
        request: What the user asked for.
        tracer: State of the tracer.

    Attributes:
        bytes: Bytes of all sums on the devices; a closed window is as many, until it is written.

    Cost: per look-up see `moetrace.ops.indices`; at the end of a step one pass over the counts of
    all tables that were looked up in.
    """

    def __init__(self, tables: Sequence[Table], request: IndexProbe, tracer: TracerState) -> None:
        self._request = request
        self._state = IndexState(tracer)
        register_indices(self._state)
        self._handles: list[RemovableHandle] = []
        self._followed = [self._hook(table) for table in tables]
        self._open: set[torch.device] = set()
        self._windows = 0
        self._heard = self._asked = False

    @property
    def bytes(self) -> int:
        """Bytes of all sums on the devices."""
        return 8 * sum(item.sums.layout.width for item in self._followed)

    @property
    def experts(self) -> int:
        """Experts in all tables."""
        return sum(item.shape.num_experts for item in self._followed)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(item.shape.layer for item in self._followed)

    @property
    def look_ups(self) -> dict[str, LookUps]:
        """How often each layer's table was looked up so far, counted or not."""
        seen, found = self._state.seen, {}
        for item in self._followed:
            key = item.probe.key.data_ptr()
            found[item.shape.layer] = LookUps(
                item.shape.num_experts,
                seen[key, "counted"],
                seen[key, "outside"],
                seen[key, "gradients"],
            )
        return found

    def end_step(self) -> None:
        """Add the open step to the open window."""
        for device, group in self._by_device().items():
            # A replayed CUDA graph counts without any Python.
            if not self._state.counted and device.type == "cpu":
                continue
            self._open.add(device)
            with torch.no_grad():
                for item in group:
                    key = item.probe.key.data_ptr()
                    item.sums.commit(self._state.most.get(key, 0), self._state.surplus.get(key))
        self._heard |= self._state.counted
        self._state.forget_step()

    def drop_step(self) -> None:
        """Forget what the open step has counted: it did not finish, or changed no weight."""
        for device, group in self._by_device().items():
            if self._state.counted or device.type != "cpu":
                with torch.no_grad():
                    for item in group:
                        item.sums.drop(surplus=self._has_surplus(item))
        self._state.forget_step()

    def window(self, step: int) -> "list[tuple[IndexWindow, Tensor]]":
        """Close the window: which tables they are, and their sums, one part per device."""
        del step  # the sums hold their own number of calls
        every = self._request.dense_every
        due = every > 0 and self._windows % every == 0
        if not self._asked and not self._heard:
            _log.warning(
                "no table of experts was looked up in the training of the first window (%s): %s",
                ", ".join(self.layers[:3]),
                "evaluation, phases of your own and forwards without gradients are not counted"
                if self._state.seen
                else "its forward did not run, or takes its ids otherwise; give "
                "IndexProbe(indices_from=...) for those",
            )
        self._asked = True
        closed = []
        for device, group in self._by_device().items():
            if device in self._open:
                window = IndexWindow(
                    tuple(item.shape for item in group),
                    tuple(item.sums.layout for item in group),
                    self._request.usage_threshold,
                    due,
                    tuple(item.hot for item in group),
                )
                closed.append((window, self._closed(group, device)))
        self._windows += bool(closed)
        self._open = set()
        if self._state.tracer.misplaced:
            self._follow_the_model()
        return closed

    def close(self) -> None:
        """Take the hooks off and let go of the sums."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, table: Table) -> _Followed:
        scorer = table.scorer if self._request.scores else None
        gate = table.gate if self._request.scores and scorer is None else None
        shape = table.shape
        rule = _AFTER if scorer is not None else shape.columns if gate is not None else 0
        layout = IndexLayout(shape.num_experts, scored=rule != 0)
        device = _device_of(table.module) or torch.device("cpu")
        sums, key = TableSums(layout, device), zeros(1, device)
        probe = TableProbe(sums.sums, key, shape.num_experts, rule, self._state, self._request)
        hooked = table.module.register_forward_pre_hook(probe, with_kwargs=True)
        self._handles.append(hooked)
        scored = scorer if scorer is not None else gate
        if scored is not None:
            hook = ScoreProbe(probe, before=scored is gate)
            self._handles.append(scored.register_forward_hook(hook))
        return _Followed(shape, sums, probe, weakref.ref(table.module))

    def _closed(self, group: Sequence[_Followed], device: torch.device) -> Tensor:
        """The open window of some tables, moved out of their sums."""
        widths = [item.sums.layout.width for item in group]
        closed = zeros(sum(widths), device)
        with torch.no_grad():
            for item, into in zip(group, closed.split(widths), strict=True):
                item.sums.close(into, surplus=self._has_surplus(item))
        return closed

    def _has_surplus(self, item: _Followed) -> bool:
        return item.probe.key.data_ptr() in self._state.surplus

    def _by_device(self) -> dict[torch.device, list[_Followed]]:
        groups: dict[torch.device, list[_Followed]] = {}
        for item in self._followed:
            groups.setdefault(item.sums.sums.device, []).append(item)
        return groups

    def _follow_the_model(self) -> None:
        for item in self._followed:
            module = item.module()
            device = None if module is None else _device_of(module)
            if device is not None and device != item.sums.sums.device:
                item.sums.move(device)
                item.probe.sums = item.sums.sums


@dataclass(frozen=True, slots=True)
class IndexWindow:
    """The tables of a closed window, still without their numbers.

    Attributes:
        tables: Names and sizes of the tables.
        layouts: Where their sums stand.
        threshold: Multiplier of the mean from which an expert is hot.
        due: Whether the counts per expert are to be kept.
        hot: The hot experts of the last windows of each; the writer's thread alone adds to it.
    """

    tables: tuple[TableShape, ...]
    layouts: tuple[IndexLayout, ...]
    threshold: float
    due: bool
    hot: "tuple[deque[NDArray[np.int64]], ...]"

    @property
    def field(self) -> str:
        """Field of the snapshot that the records go to."""
        return "indices"

    def stats(self, bits: NDArray[np.int64]) -> list[IndexStats]:
        """The records with their counts, from numbers that have arrived on the host.

        Cost: see `moetrace.index_stats.index_stats_of`, for each table.
        """
        records, start = [], 0
        for table, layout, hot in zip(self.tables, self.layouts, self.hot, strict=True):
            record = self._record(table, layout, bits[start : start + layout.width])
            records.append(with_history(record, hot))
            start += layout.width
        return with_shared(records)

    def _record(
        self, table: TableShape, layout: IndexLayout, sums: NDArray[np.int64]
    ) -> IndexStats:
        experts = table.num_experts
        scores = sums[layout.score_sum : layout.score_sum + experts] if layout.scored else None
        scalars = {name: int(sums[layout.scalar(name)]) for name in INDEX_SCALARS}
        return index_stats_of(
            table.layer,
            sums[:experts],
            columns=table.columns,
            threshold=self.threshold,
            score_sum=scores,
            scalars=scalars,
            out_of_range=int(sums[experts]),
            due=self.due,
        )


def with_history(record: IndexStats, before: "deque[NDArray[np.int64]]") -> IndexStats:
    """The record with what the windows before it say of its hot experts.

    Args:
        record: The newest window of a table, with its counts.
        before: The hot experts of up to five windows, the newest last; takes this one's.
    """
    assert record.tokens_per_expert is not None, "a record without its counts"
    hot = np.sort(hot_indices(record.tokens_per_expert, threshold=record.threshold))
    overlap = hot_overlap(before[-1], hot) if before else math.nan
    before.append(hot)
    whole = len(before) == _HISTORY
    lasting = persistent_experts(list(before)) if whole else hot[:0]
    return replace(
        record,
        history=len(before),
        persistent=lasting.size if whole else None,
        persistent_experts=tuple(int(expert) for expert in lasting[:MOST_LISTED].tolist()),
        overlap=None if math.isnan(overlap) else overlap,
    )


def _device_of(module: nn.Module) -> torch.device | None:
    for tensor in (*module.parameters(), *module.buffers()):
        return None if tensor.is_meta else tensor.device
    return None
