"""The tracker of expert usage in PEER layers, under the name that its users know."""

import json
import os
import secrets
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from moetrace.feed import SinkFeed
from moetrace.index_layout import INDEX_SCALARS, IndexLayout
from moetrace.index_stats import IndexStats, index_stats_of, with_shared
from moetrace.ops.backward import in_backward
from moetrace.ops.index_sums import IndexSums
from moetrace.probes.indices import with_history
from moetrace.sinks.names import checked_alias
from moetrace.sinks.recognised import recognised
from moetrace.snapshot import Snapshot
from moetrace.usage_summary import usage_summary

__all__ = ["ExpertUsageTracker"]

_PATIENCE = 5.0


class ExpertUsageTracker:
    """Counts which experts of PEER layers are chosen, window by window of ``log_freq`` steps.

    Where the layers are in a model, `moetrace.attach` counts them without a line in their forward;
    this one is told the indices. A recomputation inside a backward is not counted.

    Args:
        num_experts: Experts of each layer.
        num_layers: Layers, numbered from 0.
        log_freq: Optimizer steps per window.
        usage_threshold: An expert is hot above so many times the mean over all experts of its
            layer.
        wandb_enabled: Log to the run of W&B that is open when a window closes, if there is one.
        columns: Sub-keys of the second half of a product key, for the figures that need them.
        logger: Where windows go too, anything that `moetrace.attach` takes as a sink.
        alias: Other names for the keys of W&B and of the logger, or for groups of them:
            ``{"expert_usage": "peer"}`` makes ``expert_usage/hot_experts_count``
            ``peer/hot_experts_count``.

    Attributes:
        latest: The records of the last closed window, by layer.

    Raises:
        ValueError: A number is not what it has to be.

    Cost: 8 bytes per expert and layer, on the device of the indices; at the end of a window one
    wait for it and less than 45 ms a layer of a million experts.
    """

    def __init__(
        self,
        num_experts: int,
        num_layers: int,
        log_freq: int = 1000,
        usage_threshold: float = 5.0,
        wandb_enabled: bool = True,
        *,
        columns: int = 0,
        logger: Any = None,
        alias: Mapping[str, str] | None = None,
    ) -> None:
        for name, value in (
            ("num_experts", num_experts),
            ("num_layers", num_layers),
            ("log_freq", log_freq),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"found {name}={value!r}; it is a number from 1 on")
        if not usage_threshold > 0:
            raise ValueError(f"found usage_threshold={usage_threshold!r}; it is a multiple above 0")
        self.num_experts, self.num_layers = num_experts, num_layers
        self.log_freq, self.usage_threshold = log_freq, float(usage_threshold)
        self.columns = columns
        self.step = 0
        self.latest: tuple[IndexStats, ...] = ()
        self._wandb = wandb_enabled
        self._alias = checked_alias(alias)
        self._feeds = [] if logger is None else [SinkFeed(recognised(logger, alias=self._alias))]
        self._sums: dict[int, IndexSums] = {}
        self._hot: dict[int, deque[NDArray[np.int64]]] = {}
        self._tokens = [0] * num_layers
        self._windows = 0

    def record_usage(
        self,
        layer_idx: int,
        expert_indices: Tensor,
        batch_size: int | None = None,
        seq_len: int | None = None,
    ) -> None:
        """Count the choices of one forward of a layer.

        Args:
            layer_idx: The layer, from 0.
            expert_indices: Expert ids, ``(batch, length, heads, k)``, or any shape where
                ``batch_size`` and ``seq_len`` are given.
            batch_size: Sequences; by default the first dimension.
            seq_len: Tokens of each; by default the second dimension.

        Raises:
            IndexError: There is no such layer.
            ValueError: The indices are not a whole number for each token.

        Cost: as a table's look-up, see `moetrace.ops.indices`; no wait for the device.
        """
        if not 0 <= layer_idx < self.num_layers:
            raise IndexError(f"found layer {layer_idx} of {self.num_layers}")
        if in_backward():
            return
        batch = expert_indices.shape[0] if batch_size is None else batch_size
        length = expert_indices.shape[1] if seq_len is None else seq_len
        tokens = batch * length
        if tokens < 1 or expert_indices.numel() % tokens:
            raise ValueError(
                f"found {expert_indices.numel()} indices of {batch} x {length} tokens; each token "
                "has as many as its heads choose"
            )
        if layer_idx not in self._sums:
            layout = IndexLayout(self.num_experts, scored=False)
            self._sums[layer_idx] = IndexSums(layout, expert_indices.device)
        self._sums[layer_idx].add(expert_indices.reshape(tokens, -1))
        self._tokens[layer_idx] += tokens

    def step_end(self) -> bool:
        """Say that an optimizer step has finished; every ``log_freq``-th closes a window.

        Returns:
            Whether a window was closed.
        """
        self.step += 1
        if self.step % self.log_freq:
            return False
        self.latest = self._closed()
        snapshot = Snapshot(
            run_id="expert-usage",
            rank=0,
            attempt=0,
            seq=self._windows,
            phase="train",
            first_step=self.step - self.log_freq + 1,
            last_step=self.step,
            wall_time=time.time(),
            routing=(),
            indices=tuple(record.reduced() for record in self.latest),
        )
        self._windows += 1
        self._open_wandb()
        for feed in self._feeds:
            feed.offer(snapshot)
        return True

    def get_summary(self) -> dict[str, Any]:
        """Tokens so far, and hot experts and layers of the last window, as a dict for JSON.

        Before the first window has closed, of what was recorded so far. Keys are
        ``total_tokens_processed``, ``hot_experts_count``, ``hot_experts`` and ``layer_stats``, see
        `moetrace.usage_summary.usage_summary`.
        """
        records: Iterable[IndexStats] = self.latest or self._records()
        return usage_summary(list(records), tokens=max(self._tokens))

    def save_summary(self, path: str | os.PathLike[str]) -> None:
        """Write `get_summary` as JSON; a file that is there is replaced in one move.

        Raises:
            OSError: The file cannot be written.
        """
        target = Path(path)
        draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            draft.write_text(json.dumps(self.get_summary()), encoding="utf-8")
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    def close(self) -> None:
        """Wait until everything is logged, at most 5 s."""
        for feed in self._feeds:
            feed.finish()
        for feed in self._feeds:
            feed.close(time.monotonic() + _PATIENCE)
        self._feeds = []

    def _closed(self) -> tuple[IndexStats, ...]:
        records = []
        for layer, record in enumerate(self._records()):
            hot = self._hot.setdefault(layer, deque(maxlen=5))
            records.append(with_history(record, hot))
        for sums in self._sums.values():
            sums.clear()
        return tuple(with_shared(records))

    def _records(self) -> list[IndexStats]:
        layout = IndexLayout(self.num_experts, scored=False)
        empty = np.zeros(layout.width, np.int64)
        records = []
        for layer in range(self.num_layers):
            sums = self._sums[layer].read() if layer in self._sums else empty
            record = index_stats_of(
                str(layer),
                sums[: self.num_experts],
                columns=self.columns,
                threshold=self.usage_threshold,
                scalars={name: int(sums[layout.scalar(name)]) for name in INDEX_SCALARS},
                out_of_range=int(sums[self.num_experts]),
            )
            records.append(replace(record, due=False))
        return records

    def _open_wandb(self) -> None:
        wandb = sys.modules.get("wandb")
        if self._wandb and wandb is not None and getattr(wandb, "run", None) is not None:
            self._wandb = False
            self._feeds.append(SinkFeed(recognised(wandb, alias=self._alias)))
