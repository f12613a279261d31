"""What the questions share: arms in random order, quartiles of paired ratios, the environment."""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def nothing() -> None:
    """What an arm does that has nothing to put on or take off."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of doing the same step. Only ``step`` is timed.

    Attributes:
        name: How the table calls it.
        step: The work, from its first forward until everything it owes is done.
        put_on: Brings the model into the state that this arm measures.
        take_off: Brings it back to the bare state.
    """

    name: str
    step: Callable[[], object]
    put_on: Callable[[], None] = nothing
    take_off: Callable[[], None] = nothing


@dataclass(slots=True)
class Cost:
    """Seconds of one arm in one round: of this process on all its threads, and of the clock."""

    cpu: float = 0.0
    wall: float = 0.0


@dataclass(frozen=True, slots=True)
class Quartiles:
    """Median and the quartiles around it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles":
        """Quartiles of two values or more."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high)

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}-{self.high:.3f}]"

    def to_dict(self) -> dict[str, float]:
        """For the JSON line."""
        return {
            "low": round(self.low, 4),
            "median": round(self.median, 4),
            "high": round(self.high, 4),
        }


def interleave(
    arms: Sequence[Arm], *, steps: int, seconds: float, least_rounds: int, seed: int
) -> dict[str, list[Cost]]:
    """Cost of every arm, round by round.

    A round is ``steps`` steps of each arm, all shuffled into one another, so that whatever drifts
    (clock speed, a neighbour on the machine) falls on all arms alike. Rounds go on until
    ``seconds`` are spent.
    """
    shuffled = random.Random(seed)
    costs: dict[str, list[Cost]] = {arm.name: [] for arm in arms}
    end = time.monotonic() + seconds
    while len(costs[arms[0].name]) < least_rounds or time.monotonic() < end:
        for rounds in costs.values():
            rounds.append(Cost())
        order = [arm for arm in arms for _ in range(steps)]
        shuffled.shuffle(order)
        for arm in order:
            arm.put_on()
            cpu, wall = time.process_time(), time.perf_counter()
            arm.step()
            cost = costs[arm.name][-1]
            cost.cpu += time.process_time() - cpu
            cost.wall += time.perf_counter() - wall
            arm.take_off()
    return costs


def ratios(costs: dict[str, list[Cost]], arm: str, against: str, clock: str) -> Quartiles:
    """Quartiles over the rounds of one arm's cost over another's in the same round."""
    pairs = zip(costs[arm], costs[against], strict=True)
    return Quartiles.of([getattr(one, clock) / getattr(other, clock) for one, other in pairs])


def least_cpu_us(calls: dict[str, Callable[[], object]], *, repeats: int) -> dict[str, float]:
    """Microseconds of process CPU time per call, the least of ``repeats`` blocks of some 5 ms.

    The blocks of all calls take turns. A neighbour on the machine can only make a block longer, so
    the least is the figure that repeats.
    """
    sizes = {name: _calls_per_block(call) for name, call in calls.items()}
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            for _ in range(sizes[name]):
                call()
            least[name] = min(least[name], (time.process_time() - start) / sizes[name])
    return {name: seconds * 1e6 for name, seconds in least.items()}


def _calls_per_block(call: Callable[[], object]) -> int:
    call()
    start = time.process_time()
    for _ in range(3):
        call()
    return max(1, int(0.005 / max((time.process_time() - start) / 3, 1e-7)))


def like_a_training_process() -> None:
    """Let the C allocator keep what is freed, as it does in any process that has trained a while.

    glibc gives freed blocks back to the system until the first block of many megabytes was freed;
    a small benchmark would otherwise measure page faults that no training has.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def environment() -> dict[str, Any]:
    """Where, with what and when: the line that goes with every figure."""
    return {
        "device": "cpu",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "moetrace": _version("moetrace"),
        "commit": _commit(),
        "date": date.today().isoformat(),
    }


def options(question: str) -> argparse.ArgumentParser:
    """The options that every question takes."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument(
        "--quick", action="store_true", help="a look: fewer rounds, wider quartiles"
    )
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    return parser


def publish(question: str, result: dict[str, Any], *, save: bool) -> None:
    """Print the result as one JSON line; keep it as ``results/<question>_<device>_<date>.json``."""
    line = {"question": question, "environment": environment(), **result}
    print(json.dumps(line))
    if save:
        where = line["environment"]
        path = RESULTS / f"{question}_{where['device']}_{where['date']}.json"
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(line, indent=2) + "\n")
        print(f"kept as {path}", file=sys.stderr)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    here = Path(__file__).parent
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None
