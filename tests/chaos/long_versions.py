"""What takes minutes: many kills, many forks, many crash states, long fuzzing, a soak."""

import gc
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moetrace.errors import RunNotReadable
from moetrace.run import open_run
from tests.processes.nursery import REPOSITORY, Nursery
from tests.processes.test_exit import START
from tests.store.cases import CORPUS
from tests.store.fuzzing import HAS_ATHERIS, fuzz
from tests.store.killed_writers import snapshot
from tests.store.test_crash_states import check_states, recorded
from tests.store.windows import plain

Outcome = tuple[int, int, str]
"""Tries, failures, and what else is worth telling."""

STEADY_KIB = 64
"""Resident memory that a million steps may add."""


def kills(count: int, folder: Path) -> Outcome:
    """SIGKILL at random moments of writers that write as fast as they can."""
    program = [sys.executable, "-m", "tests.store.killed_writers", str(folder), str(count)]
    subprocess.run(program, cwd=REPOSITORY, check=True)
    failures = total = 0
    for number in range(count):
        acked = int.from_bytes((folder / f"{number}.acked").read_bytes(), "little")
        total += acked
        try:
            run = open_run(folder / str(number))
            found = plain(run.snapshots())
            expected = plain([snapshot(seq, run.run_id) for seq in range(len(found))])
            good = acked <= len(found) <= acked + 1 and found == expected
        except RunNotReadable:
            good = acked == 0
        failures += not good
    return count, failures, f"{total} snapshots were acknowledged before the kills"


def forks(count: int, folder: Path) -> Outcome:
    """Forks of a process whose writer and sink never rest."""
    with Nursery(folder, longest=60 + count * 1.0) as nursery:
        source = START + "from tests.processes.forking import *\nfork_often(run, count)\n"
        done = nursery.run(source, run=str(folder / "run"), count=count)
    steps, hung = (int(word) for word in done.out.split())
    found = sum(s.routing[0].tokens for s in open_run(folder / "run").snapshots())
    wrong = int(done.code != 0) + int(found != 2 * steps)
    return count, hung + wrong, f"{steps} steps of the parent, all in its run"


def crash_states(count: int, folder: Path) -> Outcome:
    """Folders that a machine may wake up with, over recordings whose syncs fail at random."""
    chance, each, failures = random.Random(count), 100, 0
    with pytest.MonkeyPatch.context() as patched:
        for recording in range(-(-count // each)):
            root = folder / str(recording) / "run"
            root.parent.mkdir()
            failing = frozenset(chance.sample(range(3, 16), chance.randrange(4)))
            disk = recorded(root, failing, patched)
            try:
                list(check_states(disk, root, chance, min(each, count - recording * each)))
            except AssertionError as error:
                failures += 1
                sys.stderr.write(f"syncs {sorted(failing)} failed: {error}\n")
    return count, failures, ""


def fuzzed(seconds: int, folder: Path) -> Outcome:
    """Kept cases and what coverage makes of them; what a reader fails at is kept as well."""
    if not HAS_ATHERIS:
        return 0, 0, "atheris has no wheel for this Python; the kept cases were read"
    done = fuzz(folder, f"-max_total_time={seconds}")
    if done.found:
        sys.stderr.write(done.told[-4000:])
        shutil.copy(done.found, CORPUS / f"found-{done.found.name[-40:][:8]}.json")
    note = f"{done.coverage} edges, {done.corpus} cases that each reach something of their own"
    return done.runs, int(done.found is not None), note


def exits(count: int, folder: Path) -> Outcome:
    """Programs that end right after their last step, without a close."""
    failures = 0
    with Nursery(folder) as nursery:
        program = START + "tracer = attach(traced, run, every=1)\ntrain(tracer, traced, 3)\n"
        for number in range(count):
            done = nursery.run(program, run=str(folder / str(number)))
            found = sum(s.routing[0].tokens for s in open_run(folder / str(number)).snapshots())
            failures += (done.code, done.err, found) != (0, "", 6)
    return count, failures, ""


def soak(steps: int, folder: Path) -> Outcome:
    """Many steps with a run folder and two sinks: memory, threads and files stay as they are."""
    import torch

    from moetrace import attach
    from moetrace.sinks import CallableSink, ConsoleSink
    from tests.tiny import ScriptedModel

    torch.set_num_threads(1)
    model = ScriptedModel([[0, 1]] * 16, [[2, 3]] * 16, num_experts=8)
    tokens = [0]
    hidden = torch.zeros(16, 4)

    def add(snapshot: object) -> None:
        tokens[0] += snapshot["blocks.0"].tokens  # type: ignore[index]

    # Made beforehand: a list of 500 samples would be half of what a million steps may add.
    every = max(1, steps // 500)
    taken = np.zeros((steps // every, 2), dtype=np.int64)
    with Path(os.devnull).open("w") as nowhere:
        sinks = [CallableSink(add), ConsoleSink(nowhere)]
        with attach(model, folder, every=100, sinks=sinks, alerts=None) as tracer:
            for step in range(1, steps + 1):
                tracer.on_step_begin()
                model(hidden)
                tracer.on_step_end()
                if step == max(1, steps // 5):
                    gc.collect()
                    start = _handles()
                if step % every == 0:
                    taken[step // every - 1] = step, _resident_kib()
            gc.collect()
            end = _handles()
    late = taken[taken[:, 0] > steps // 5]
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) * 1e6
    wrong = [
        tokens[0] != 16 * steps,
        start != end,
        slope > STEADY_KIB and steps >= 1_000_000,
    ]
    note = f"{steps} steps: {slope:+.1f} KiB per million steps, {end[0]} threads, {end[1]} files"
    return steps, sum(wrong), note


def _handles() -> tuple[int, int]:
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def _resident_kib() -> int:
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


LONG: dict[str, tuple[tuple[str, ...], Callable[[int, Path], Outcome]]] = {
    "kills": (("D1",), kills),
    "forks": (("D9",), forks),
    "states": (("C13",), crash_states),
    "fuzz": (("I1",), fuzzed),
    "exits": (("D6", "D13"), exits),
    "soak": (("H4",), soak),
}
"""Rows and check of each long version, by the option that says its size."""
