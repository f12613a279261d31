"""How long does it take to open and sum up the run of many ranks, and how much memory?

Row F13 of the fault matrix: 1,024 ranks x 60 layers x 256 experts, `summary` within 30 s and 1 GiB
on two cores. The run is made first, without waiting for the disk, in a folder that is removed. A
fresh process opens it, so that the memory is the reader's own. ``--ranks 1024`` takes minutes and
1.5 GB of disk; without arguments there are 64 ranks.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np

from moetrace.routing_stats import RoutingStats
from moetrace.run import open_run
from moetrace.snapshot import Snapshot
from moetrace.store import RunFolder, files


def make(root: Path, *, ranks: int, layers: int, experts: int, windows: int) -> None:
    """Write a finished run, each rank its own random counts."""
    random = np.random.default_rng(0)
    names = [f"model.layers.{n}.mlp" for n in range(layers)]
    sites = [{"name": name, "num_experts": experts, "top_k": 8} for name in names]
    header = {"model": "Synthetic", "every": 10, "world_size": ranks, "sites": sites}
    folder = RunFolder.prepare(root)
    with mock.patch.object(files, "sync"):
        for rank in range(ranks):
            segment = folder.open_segment(rank=rank, header=header)
            counts_LE = random.multinomial(32_768, np.full(experts, 1 / experts), size=layers)
            routing = tuple(
                RoutingStats(name, experts, 8, "softmax", row, row << 25, row << 27, tokens=4_096)
                for name, row in zip(names, counts_LE, strict=True)
            )
            first = Snapshot(folder.run_id, rank, 0, 0, "train", 1, 10, 0.0, routing)
            for seq in range(windows):
                steps = {"first_step": 10 * seq + 1, "last_step": 10 * seq + 10}
                segment.append(replace(first, seq=seq, wall_time=float(seq), **steps))
            segment.close()


def read(root: Path) -> dict[str, float]:
    """Seconds and peak memory of opening the run, its summary, and one window over all ranks."""
    began = time.perf_counter()
    run = open_run(root)
    found = run.summary()
    summed = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert found["coverage"]["ranks"] == found["coverage"]["world_size"] == len(run.ranks)
    assert found["faults"] == []
    first = next(iter(run.windows()))
    assert int(first.routing[0].tokens_per_expert.sum()) == 32_768 * len(run.ranks)
    return {
        "summary_seconds": round(summed, 2),
        "summary_peak_mib": round(peak),
        "first_window_seconds": round(time.perf_counter() - began - summed, 2),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    """Make a run, read it in a process of its own, say what that cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--layers", type=int, default=60)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.read:
        print(json.dumps(read(asked.read)))
        return
    with tempfile.TemporaryDirectory() as home:
        root = Path(home, "run")
        shape = {name: getattr(asked, name) for name in ("ranks", "layers", "experts", "windows")}
        began = time.perf_counter()
        make(root, **shape)
        made = time.perf_counter() - began
        os.sync()  # or the reader waits for the disk to take what was made
        command = [sys.executable, __file__, "--read", str(root)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        told = {**shape, "made_seconds": round(made, 1), "cores": len(os.sched_getaffinity(0))}
        print(json.dumps({**told, **json.loads(done.stdout)}))


if __name__ == "__main__":
    main()
