"""Forks a traced process at random moments, while its writer and its sink are busy."""

import os
import random
import signal
import time
from collections.abc import Callable

from moetrace import attach
from moetrace.sinks import MemorySink
from tests.processes.loop import model, say, train

__all__ = ["fork_often"]


def fork_often(
    folder: str, times: int, *, child: Callable[[], object] | None = None, patience: float = 20.0
) -> tuple[int, int]:
    """Train and fork; every child runs the model, flushes, closes and ends as a process does.

    Args:
        folder: Of the run.
        times: Forks.
        child: What a child does instead.
        patience: Seconds that a child gets; one that takes longer hangs.

    Returns:
        Steps of the parent and children that hung, which are also printed.
    """
    traced, chance = model(), random.Random(times)
    hung = 0
    with attach(traced, folder, every=1, sinks=[MemorySink()], alerts=None) as tracer:

        def trained_on() -> None:
            train(tracer, traced, 2)
            tracer.flush()
            tracer.close()

        for _ in range(times):
            train(tracer, traced, 1 + chance.randrange(3))
            time.sleep(chance.random() * 0.001)  # the writer is somewhere
            pid = os.fork()
            if pid == 0:
                try:
                    (child or trained_on)()
                finally:
                    os._exit(0)
            hung += _hangs(pid, patience)
        steps = tracer.step
    say(f"{steps} {hung}")
    return steps, hung


def _hangs(pid: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.0002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True
