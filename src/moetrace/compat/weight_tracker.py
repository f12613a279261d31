"""The tracker of router weights, under the name that its users know."""

import logging
import os
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from numbers import Integral
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from moetrace.compat.router_weights import Targets, followed_routers
from moetrace.compat.watched_routers import WatchedRouters
from moetrace.compat.weight_curves import WeightCurves
from moetrace.compat.weight_files import SnapshotFormat, save_json, save_snapshot
from moetrace.compat.weight_trajectory import WeightTrajectory, trajectory_of
from moetrace.export.weight_layers import layers_of
from moetrace.feed import SinkFeed
from moetrace.rank import launch, own_rank, world_size
from moetrace.run import open_run
from moetrace.sinks.recognised import recognised
from moetrace.snapshot import Snapshot
from moetrace.store import RunFolder, SegmentWriter
from moetrace.weight_stats import WeightStats

__all__ = ["RouterWeightTracker", "WeightTrajectory"]

_log = logging.getLogger("moetrace")

_SUMMARY = "router_weight_summary.json"
_PATIENCE = 5.0


class RouterWeightTracker:
    """Follows the router weights of a model from record to record.

    Records go into a run folder ``run`` inside ``save_dir``, which `moetrace.open_run` reads, from
    every rank; a step that is tracked again, as after a resume, replaces what the folder holds from
    it on. Rank 0 also writes the files that people read. A disk that fails is said once in the log
    and does not reach the caller.

    Args:
        save_dir: Folder of the records; nothing is written before the first of them.
        save_every_n_steps: Write the files at steps that are multiples of this.
        save_full_weights: Also write the weights themselves; that takes as much disk as they have
            bytes, each time.
        max_history: Records that are kept in memory.
        snapshot_format: ``"safetensors"``, or ``"pt"`` for a file of ``torch.save``.
        targets: Which modules to follow, see `moetrace.compat.extract_router_weights`.
        logger: Where curves go too, anything that `moetrace.attach` takes as a sink.

    Attributes:
        history: The last records, as `track_step` returned them.

    Raises:
        ValueError: An argument is not what it has to be.
        TypeError: The logger is none of those that are known.

    Cost: two copies of the weights on their device, at most 1 GiB; per record some twenty
    reductions a tensor, one wait for the device, and a line on disk.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str] = "./router_weight_logs",
        save_every_n_steps: int = 100,
        save_full_weights: bool = False,
        max_history: int = 1000,
        snapshot_format: SnapshotFormat = "safetensors",
        *,
        targets: Targets | None = None,
        logger: Any = None,
    ) -> None:
        if snapshot_format not in get_args(SnapshotFormat):
            raise ValueError(
                f"found snapshot_format={snapshot_format!r}; it is 'safetensors' or 'pt'"
            )
        self.save_dir = Path(save_dir)
        self.save_every_n_steps = _at_least_one("save_every_n_steps", save_every_n_steps)
        self.save_full_weights = save_full_weights
        self.snapshot_format: SnapshotFormat = snapshot_format
        self.history: deque[dict[str, Any]] = deque(
            maxlen=_at_least_one("max_history", max_history)
        )
        self._targets = targets
        sink = None if logger is None else recognised(logger, per_layer=True, heatmap_every=None)
        self._feed = None if sink is None else SinkFeed(WeightCurves(sink))
        if self._feed is not None:
            weakref.finalize(self, self._feed.finish)
        self._watched: WatchedRouters | None = None
        self._segment: SegmentWriter | None = None
        self._reached = -1
        self._seq = 0
        self._said: set[str] = set()

    def watch(self, model: nn.Module) -> None:
        """Find the routers and open the run folder; the first `track_step` does it otherwise.

        Raises:
            NoRouterFound: There is no router, or none that the targets name. Lists candidates.
            RunFolderError: ``save_dir`` cannot be written.
        """
        if self._watched is None or not self._watched.is_of(model):
            self._watched = WatchedRouters(model, followed_routers(model, self._targets))
            self._end_segment()  # its first line names the routers
        if self._segment is None:
            folder = RunFolder.prepare(self._run)
            header = {
                "model": type(model).__name__,
                "every": self.save_every_n_steps,
                "world_size": world_size(),
                "launch": launch(),
                "routers": self._watched.paths,
                "versions": {"moetrace": version("moetrace"), "torch": torch.__version__},
            }
            self._segment = folder.open_segment(rank=own_rank(), header=header)
            self._seq = 0
            # A program that ends without close() has its last line all the same.
            weakref.finalize(self, _end, self._segment)

    def track_step(
        self, model: nn.Module, step: int, global_step: int | None = None
    ) -> dict[str, Any]:
        """Record the router weights as they are now.

        Args:
            model: The model; another one than before is followed from now on.
            step: The caller's own step.
            global_step: Completed optimizer steps; None for ``step``. It orders the records, names
                the files, and is what `get_weight_trajectory` means by a step.

        Returns:
            ``step``, ``global_step`` and ``layers``: per layer and component the statistics, and
            ``{component}_changes`` since the record before, once there is one.

        Raises:
            NoRouterFound: There is no router, or none that the targets name. Lists candidates.
            RunFolderError: At the first record: ``save_dir`` cannot be written.
            ValueError: A step is no integer of at least 0.
        """
        position = _counted("step", step)
        if global_step is not None:
            position = _counted("global_step", global_step)
        if position <= self._reached:
            self._begin_again()
        self.watch(model)
        assert self._watched is not None
        stats = self._watched.measured(position)
        record = {"step": int(step), "global_step": position, "layers": layers_of(stats)}
        self.history.append(record)
        try:
            self._keep(stats, record)
        except OSError as error:
            self._say(f"router weights cannot be written: {error}; training goes on")
        self._reached = position
        return record

    def get_weight_trajectory(
        self,
        layer_key: str,
        weight_name: str,
        start_step: int | None = None,
        end_step: int | None = None,
    ) -> WeightTrajectory:
        """One number of one weight over the steps, read from the run folder.

        Args:
            layer_key: A layer, ``"layer_0"``.
            weight_name: Component and statistic, ``"load_balancer.weight_ih_mean"``, or component
                and change, ``"load_balancer_changes.weight_ih_diff_norm"``.
            start_step: First step to take; None from the beginning.
            end_step: Last step to take, itself included; None to the end.

        Returns:
            The numbers in the order of their steps, with ``.steps``; empty where nothing has been
            recorded yet.

        Raises:
            KeyError: There are records, but no such layer or weight in any of them.

        Cost: reads the whole folder.
        """
        return trajectory_of(
            self._snapshots(), layer_key, weight_name, first=start_step, last=end_step
        )

    def save_summary(self, output_file: str | os.PathLike[str] = _SUMMARY) -> dict[str, Any]:
        """Write ``total_steps``, ``first_step``, ``last_step`` and ``layers_tracked``, on rank 0.

        They are those of the run folder, whatever of it is still in memory.

        Args:
            output_file: Where to; a bare file name stands for one in ``save_dir``.

        Returns:
            What was written.
        """
        steps: list[int] = []
        layers: dict[str, None] = {}
        for snapshot in self._snapshots():
            steps.append(snapshot.last_step)
            layers.update(dict.fromkeys(stats.layer for stats in snapshot.weights))
        summary = {
            "total_steps": len(steps),
            "first_step": min(steps, default=None),
            "last_step": max(steps, default=None),
            "layers_tracked": list(layers),
        }
        path = Path(output_file)
        if own_rank() == 0:
            try:
                save_json(self.save_dir / path if path.name == str(path) else path, summary)
            except OSError as error:
                self._say(f"the summary of router weights cannot be written: {error}")
        return summary

    def close(self) -> None:
        """End the segment and let go of the copies; a later `track_step` begins anew.

        Curves that wait are drawn, at most 5 s long; the logger stays open. Safe to call twice.
        """
        self._begin_again()
        if self._feed is not None:
            self._feed.drain(time.monotonic() + _PATIENCE)

    @property
    def retained_bytes(self) -> int:
        """Bytes of weights that are kept on their devices to compare with: at most 1 GiB."""
        return 0 if self._watched is None else self._watched.bytes

    @property
    def _run(self) -> Path:
        return self.save_dir / "run"

    def _snapshots(self) -> Iterator[Snapshot]:
        if (self._run / "segments").is_dir():
            yield from open_run(self._run).windows()

    def _keep(self, stats: Sequence[WeightStats], record: Mapping[str, Any]) -> None:
        assert self._segment is not None
        position = record["global_step"]
        snapshot = Snapshot(
            run_id=self._segment.run_id,
            rank=self._segment.rank,
            attempt=self._segment.attempt,
            seq=self._seq,
            phase="train",
            first_step=position if self._reached < 0 else self._reached + 1,
            last_step=position,
            wall_time=time.time(),
            routing=(),
            health={"step": record["step"]},
            weights=tuple(stats),
        )
        self._segment.append(snapshot)
        self._seq += 1
        if own_rank() != 0:
            return
        if self._feed is not None:
            self._feed.offer(snapshot)
        if position % self.save_every_n_steps == 0:
            name = f"router_weight_stats_step_{position}.json"
            save_json(self.save_dir / name, {**record, "history": [record]})
            if self.save_full_weights:
                self._save_weights(position)

    def _save_weights(self, position: int) -> None:
        assert self._watched is not None
        weights, spread = self._watched.weights()
        if spread:
            self._say(
                f"{len(spread)} router weights are spread over ranks and are in no snapshot "
                f"({', '.join(spread[:3])}); their statistics are recorded"
            )
        save_snapshot(
            self.save_dir,
            weights,
            step=position,
            model=self._watched.name,
            form=self.snapshot_format,
        )

    def _begin_again(self) -> None:
        self._end_segment()
        self._watched, self._reached = None, -1

    def _end_segment(self) -> None:
        if self._segment is not None:
            _end(self._segment)
            self._segment = None

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            _log.warning(text)


def _end(segment: SegmentWriter) -> None:
    try:
        segment.close()
    except OSError as error:
        _log.warning("the records of router weights could not be ended in order: %s", error)


def _at_least_one(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"found {name}={value!r}; it is a number of at least 1")
    return value


def _counted(name: str, value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
        raise ValueError(f"found {name}={value!r}; it is an integer of at least 0")
    return int(value)
