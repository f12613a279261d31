"""However a process ends, what was acknowledged is in its run, and the end is the process's own."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from moetrace import open_run
from tests.processes.loop import steps_in
from tests.processes.nursery import Nursery

START = """
import os, signal, sys, threading, time, torch
import functools, moetrace
from tests.processes.loop import *
attach = functools.partial(moetrace.attach, alerts=None)  # the counts are always the same
traced = model()
"""

TWENTY = START + "tracer = attach(traced, run, every=1)\ntrain(tracer, traced, 20)\n"

ACKNOWLEDGED = (
    START
    + """
tracer = attach(traced, run, every=1)
train(tracer, traced, 20)
tracer.flush()
say("acknowledged")
"""
)


@pytest.fixture(scope="module")
def nursery(nursery: Nursery) -> Iterator[Nursery]:
    """Where programs end in full."""
    nursery.thaws = True
    yield nursery
    nursery.thaws = False


class TestWithoutClose:
    @pytest.mark.parametrize(
        ("end", "code"),
        [
            ("", 0),
            ("sys.exit(3)", 3),
            ("raise SystemExit(4)", 4),
            ("raise ValueError('of the user')", 1),
            ("raise KeyboardInterrupt", -signal.SIGINT),
            ("threading.Thread(target=time.sleep, args=(0.05,)).start()", 0),
            ("threading.Thread(target=time.sleep, args=(9,), daemon=True).start()", 0),
            ("threading.Thread(target=sys.exit, args=(5,)).start()", 0),
        ],
    )
    def test_every_window_is_written_and_the_exit_code_stays(
        self, nursery: Nursery, tmp_path: Path, end: str, code: int
    ) -> None:
        """D6: falling off the end, ``sys.exit``, an exception, threads: 20 of 20 windows."""
        done = nursery.run(TWENTY + end, run=str(tmp_path))
        assert (done.code, steps_in(tmp_path)) == (code, 20)
        assert open_run(tmp_path).finished
        said = done.err.splitlines()
        expected = {1: "ValueError: of the user", -signal.SIGINT: "KeyboardInterrupt"}
        assert said[-1:] == [expected[code]] if code in expected else not said

    def test_the_open_window_is_written_too(self, nursery: Nursery, tmp_path: Path) -> None:
        """D6: a process that ends in the middle of a window loses none of its steps."""
        program = START + "tracer = attach(traced, run, every=100)\ntrain(tracer, traced, 7)\n"
        assert nursery.run(program, run=str(tmp_path)).code == 0
        assert steps_in(tmp_path) == 7

    def test_a_thread_may_hold_the_tracer(self, nursery: Nursery, tmp_path: Path) -> None:
        """D6: a training that runs in a thread is written as well."""
        program = START + (
            "def work():\n"
            "    global tracer\n"
            "    tracer = attach(traced, run, every=1)\n"
            "    train(tracer, traced, 20)\n"
            "    sys.exit(3)\n"
            "thread = threading.Thread(target=work)\n"
            "thread.start()\n"
        )
        assert nursery.run(program, run=str(tmp_path)).code == 0
        assert steps_in(tmp_path) == 20

    def test_forwards_at_the_end_of_the_interpreter_say_nothing(
        self, nursery: Nursery, tmp_path: Path
    ) -> None:
        """D12: the model may run in atexit handlers, before and after ours; no word on stderr."""
        program = (
            START
            + "import atexit, weakref\n"
            + "atexit.register(lambda: traced(torch.zeros(2, 4)))\n"
            + TWENTY.removeprefix(START)
            + "atexit.register(lambda: train(tracer, traced, 1))\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err, steps_in(tmp_path)) == (0, "", 21)

    def test_a_daemon_thread_may_step_on_while_the_interpreter_ends(
        self, nursery: Nursery, tmp_path: Path
    ) -> None:
        """D13: a daemon thread that never stops finds a closed tracer, and no word is said.

        It runs no operator of torch: those abort a daemon thread at the end, traced or not.
        """
        program = START + (
            "tracer = attach(traced, run, every=1)\n"
            "train(tracer, traced, 5)\n"
            "def work():\n"
            "    while True:\n"
            "        tracer.on_step_begin()\n"
            "        tracer.on_step_end()\n"
            "        tracer.flush()\n"
            "threading.Thread(target=work, daemon=True).start()\n"
            "time.sleep(0.02)\n"
        )
        for number in range(5):
            done = nursery.run(program, run=str(tmp_path / str(number)))
            assert (done.code, done.err) == (0, "")
            assert steps_in(tmp_path / str(number)) == 5


class TestSuddenEnd:
    @pytest.mark.parametrize(
        ("end", "code"),
        [
            ("os._exit(6)", 6),
            ("os.abort()", -signal.SIGABRT),
            ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
            ("import faulthandler; faulthandler.enable(); faulthandler._sigsegv()", -11),
            ("os.kill(os.getpid(), signal.SIGXCPU)", -signal.SIGXCPU),
            ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ],
    )
    def test_what_was_acknowledged_is_read_back(
        self, nursery: Nursery, tmp_path: Path, end: str, code: int
    ) -> None:
        """D7: no way to die takes an acknowledged window."""
        done = nursery.run(ACKNOWLEDGED + end, run=str(tmp_path))
        assert (done.code, steps_in(tmp_path)) == (code, 20)
        run = open_run(tmp_path)
        assert (run.faults, run.finished) == ((), False)

    def test_a_sink_that_ends_the_process_loses_nothing(
        self, nursery: Nursery, tmp_path: Path
    ) -> None:
        """B5: sinks come after the run folder; one that calls ``os._exit`` finds all written."""
        program = START + (
            "class Ends:\n"
            "    def write(self, snapshot):\n"
            "        if snapshot.last_step == 5: os._exit(7)\n"
            "    def close(self): pass\n"
            "tracer = attach(traced, run, every=1, sinks=[Ends()])\n"
            "train(tracer, traced, 1000)\n"
        )
        assert nursery.run(program, run=str(tmp_path)).code == 7
        assert steps_in(tmp_path) >= 5

    def test_memory_that_runs_out_takes_nothing(self, nursery: Nursery, tmp_path: Path) -> None:
        """D15: a training that allocates until it fails ends as it would without us."""
        program = ACKNOWLEDGED + (
            "import resource\n"
            "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
            "resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)\n"
            "held = []\n"
            "while True:\n"
            "    held.append(bytearray(8 << 20))\n"
            "    train(tracer, traced, 1)\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert done.code == 1
        assert done.err.rstrip().endswith("MemoryError")
        assert steps_in(tmp_path) >= 20


class TestSignals:
    def test_sigterm_by_default_loses_the_open_window_only(
        self, nursery: Nursery, tmp_path: Path
    ) -> None:
        """D3: without a handler SIGTERM ends at once; all windows but the open one are there."""
        program = START + (
            "tracer = attach(traced, run, every=10)\n"
            "train(tracer, traced, 25)\n"
            "say('trained')\n"
            "time.sleep(60)\n"
        )
        running = nursery.start(program, run=str(tmp_path))
        running.wait_for("trained")
        while steps_in(tmp_path) < 20:
            pass
        running.send(signal.SIGTERM)
        assert running.done().code == -signal.SIGTERM
        assert steps_in(tmp_path) == 20

    def test_sigterm_with_a_handler_of_the_user_saves_the_open_window(
        self, nursery: Nursery, tmp_path: Path
    ) -> None:
        """D4: the handler is the user's; where it ends the process in order, nothing is lost."""
        program = START + (
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
            "tracer = attach(traced, run, every=10)\n"
            "train(tracer, traced, 25)\n"
            "say('trained')\n"
            "time.sleep(60)\n"
        )
        running = nursery.start(program, run=str(tmp_path))
        running.wait_for("trained")
        running.send(signal.SIGTERM)
        assert running.done().code == 143
        assert steps_in(tmp_path) == 25

    def test_one_sigint_is_the_user_s(self, nursery: Nursery, tmp_path: Path) -> None:
        """D5: Ctrl-C in the training is a KeyboardInterrupt, and the windows are written."""
        program = START + (
            "tracer = attach(traced, run, every=10)\n"
            "try:\n"
            "    train(tracer, traced, 10**9, after=lambda: tracer.step == 25 and say('trained'))\n"
            "except KeyboardInterrupt:\n"
            "    say('interrupted')\n"
        )
        running = nursery.start(program, run=str(tmp_path))
        running.wait_for("trained")
        running.send(signal.SIGINT)
        done = running.done()
        assert (done.code, done.err) == (0, "")
        assert "interrupted" in done.out
        assert sum(s["blocks.0"].tokens for s in open_run(tmp_path).snapshots()) >= 50

    @pytest.mark.parametrize("act", ["close", "flush"])
    def test_another_sigint_ends_the_waiting(
        self, nursery: Nursery, tmp_path: Path, act: str
    ) -> None:
        """D5: Ctrl-C while we wait for a sink or a disk ends that wait, and the process."""
        program = START + (
            "from moetrace import recording, tracer as tracers\n"
            "from moetrace.store import files\n"
            "recording.CLOSE_TIMEOUT = tracers._FLUSH_TIMEOUT = 50.0\n"  # the limit is 60 s
            "tracer = attach(traced, run, every=1)\n"
            "files.write = lambda *_: time.sleep(10**6)\n"
            "train(tracer, traced, 1)\n"
            "def interrupted(*_):\n"
            "    say('again')\n"
            "    raise KeyboardInterrupt\n"
            "signal.signal(signal.SIGINT, interrupted)\n"
            "say('waiting')\n"
            f"tracer.{act}()\n"
        )
        running = nursery.start(program, run=str(tmp_path))
        running.wait_for("waiting")
        running.send(signal.SIGINT)
        running.wait_for("again")
        running.interrupt()
        assert running.done().code == -signal.SIGINT


class TestHungSink:
    @pytest.mark.parametrize("where", ["write", "close"])
    def test_the_exit_has_a_limit(self, nursery: Nursery, tmp_path: Path, where: str) -> None:
        """B3: a sink that hangs holds the exit no longer than the limit, and it is said."""
        program = START + (
            "class Hangs:\n"
            "    def write(self, snapshot): pass\n"
            "    def close(self): pass\n"
            "setattr(Hangs, where, lambda *_: time.sleep(10**6))\n"
            "from moetrace import recording\n"
            "recording.CLOSE_TIMEOUT = 0.5\n"
            "tracer = attach(traced, run, every=1, sinks=[Hangs()])\n"
            "train(tracer, traced, 20)\n"
        )
        done = nursery.run(program, run=str(tmp_path), where=where)
        assert (done.code, steps_in(tmp_path)) == (0, 20)
        assert done.err.count("Hangs did not finish in time") == 1

    def test_a_lock_that_is_never_released_costs_no_step(
        self, nursery: Nursery, tmp_path: Path
    ) -> None:
        """B2: with every sink hung, steps go on, and the run folder has them all."""
        program = START + (
            "class Hangs:\n"
            "    lock = threading.Lock()\n"
            "    def write(self, snapshot): self.lock.acquire()\n"
            "    def close(self): pass\n"
            "Hangs.lock.acquire()\n"
            "tracer = attach(traced, run, every=1, sinks=[Hangs(), Hangs()])\n"
            "train(tracer, traced, 500)\n"
            "snapshot = tracer.flush()\n"
            "say(f'{snapshot.last_step}')\n"
            "os._exit(0)\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.out) == (0, "500\n")
        assert steps_in(tmp_path) == 500
