"""What has to hold on a GPU, and what tracing costs there: one command, under 8 minutes.

Every check runs in a process of its own, so that one that fails, hangs or ruins the CUDA context
does not end the rest. PASS and FAIL are judged against the goal in the line; INFO is a figure
without a goal; SKIP says what is missing. The result is kept in ``benchmarks/results``.

Without a GPU it says so and ends with 0. ``--dry-run`` runs the same checks on the CPU, on small
models, with the kernel under Triton's interpreter and without what only a GPU can show: that proves
the script, and nothing about a GPU.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _gpu_cost import bandwidth, commit, host_cost, memory, step_overhead
from _gpu_exact import (
    Bench,
    Found,
    captured,
    deterministic,
    devices,
    graph_trees,
    kernel,
    no_sync,
    same_bits,
    streams,
)
from _harness import RESULTS, environment

from moetrace.ops import fused

LIMIT = 470.0
"""Seconds for everything; a check that would begin later is skipped and said."""

STEP_SECONDS = 12.0

CHECKS: dict[str, Callable[[Bench], Found]] = {
    "kernel equals reference": kernel,
    "same bits in 100 runs": same_bits,
    "no synchronisation": no_sync,
    "CUDA graph, 50 replays": captured,
    "reduce-overhead": graph_trees,
    "deterministic mode": deterministic,
    "two streams": streams,
    "two devices": devices,
    "peak memory": memory,
    "bandwidth": bandwidth,
    "host cost": host_cost,
    "commit and flush": commit,
    **{
        f"step, {'compiled' if compiled else 'eager'}{', checkpointed' if again else ''}": partial(
            step_overhead, compiled=compiled, checkpointing=again, seconds=STEP_SECONDS
        )
        for compiled in (False, True)
        for again in (False, True)
    },
}


def one(name: str, device: str) -> None:
    """Run one check here; its result is the last line printed."""
    bench = Bench(torch.device(device))
    check = CHECKS[name]
    if not bench.real:
        fused._DEVICES.add("cpu")
    if not bench.real and isinstance(check, partial):
        check = partial(check, seconds=0.5)
    try:
        found = check(bench)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        found = Found(False, text[:300])
    print(json.dumps({"ok": found.ok, "figure": found.figure, "numbers": found.numbers}))


def apart(name: str, device: str, seconds: float) -> dict[str, Any]:
    """Run one check in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--device", device]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **({"TRITON_INTERPRET": "1"} if device == "cpu" else {})},
            capture_output=True,
            text=True,
            timeout=max(1.0, seconds),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"ok": False, "figure": f"did not end in {seconds:.0f} s", "numbers": {}}
    lines = done.stdout.strip().splitlines()
    try:
        result: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        why = (done.stderr.strip() or "nothing was said").splitlines()[-1]
        return {"ok": False, "figure": f"exit status {done.returncode}: {why}", "numbers": {}}
    return result


def verdict(result: dict[str, Any]) -> str:
    """PASS, FAIL, SKIP or INFO."""
    if result["ok"] is None:
        return "SKIP" if result["figure"].startswith("needs") else "INFO"
    return "PASS" if result["ok"] else "FAIL"


def run(device: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """All checks, each printed as it ends."""
    results: dict[str, dict[str, Any]] = {}
    end = time.monotonic() + LIMIT
    for name in names:
        start = time.monotonic()
        if start >= end:
            result = {"ok": None, "figure": "needs more time than there was", "numbers": {}}
        else:
            result = apart(name, device, end - start)
        result["seconds"] = round(time.monotonic() - start, 1)
        results[name] = result
        print(f"{verdict(result)}  {name:28} {result['figure']}", flush=True)
    return results


def save(results: dict[str, dict[str, Any]]) -> None:
    """One JSON line, and the same in a file."""
    where = environment()
    where["device"] = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    where["cuda"] = torch.version.cuda
    line = {"question": "gpu", "environment": where, "checks": results}
    print(json.dumps(line))
    path = RESULTS / f"gpu_{where['device']}_{where['date']}.json"
    path.write_text(json.dumps(line, indent=2) + "\n")
    print(f"kept as {path.relative_to(Path(__file__).parents[1])}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="the logic of the checks, on a CPU")
    parser.add_argument("--check", action="append", choices=CHECKS, help="only these checks")
    parser.add_argument("--one", choices=CHECKS, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.one, given.device)
        return 0
    if not given.dry_run and not torch.cuda.is_available():
        print("found no GPU: nothing was checked; --dry-run proves the script itself on the CPU")
        return 0
    results = run("cpu" if given.dry_run else "cuda", given.check or list(CHECKS))
    if given.dry_run:
        print("a dry run on the CPU says nothing about a GPU; nothing was kept")
    else:
        save(results)
    return int(any(result["ok"] is False for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
