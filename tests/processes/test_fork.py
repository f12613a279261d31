"""Children of a traced process: they never record for their parent, and never wait for it."""

import os
import signal
import time
from pathlib import Path

import pytest

from moetrace import open_run
from tests.processes.forking import fork_often
from tests.processes.loop import steps_in
from tests.processes.nursery import Nursery
from tests.processes.test_exit import START

CHILD_TRAINS = """
def child():
    train(tracer, traced, 7)
    tracer.flush()
    tracer.close()
"""


class TestFork:
    def test_a_busy_writer_is_forked_often(self, nursery: Nursery, tmp_path: Path) -> None:
        """D9: 50 children of a process whose writer never rests all end; none writes a byte."""
        program = START + "from tests.processes.forking import *\nfork_often(run, 50)\n"
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err) == (0, "")
        steps, hung = (int(word) for word in done.out.split())
        assert hung == 0
        assert steps_in(tmp_path) == steps
        assert len(list(tmp_path.glob("segments/*-*-*"))) == 1
        assert open_run(tmp_path).faults == ()

    @pytest.mark.parametrize("end", ["", "sys.exit(0)", "os._exit(0)"])
    def test_a_child_that_trains_the_model_records_nothing(
        self, nursery: Nursery, tmp_path: Path, end: str
    ) -> None:
        """D9, D10: in the child all of the tracer does nothing, and its exit writes nothing."""
        program = (
            START
            + CHILD_TRAINS
            + "tracer = attach(traced, run, every=100)\n"
            + "train(tracer, traced, 3)\n"
            + "pid = os.fork()\n"
            + f"if pid == 0:\n    child()\n    {end or 'pass'}\n"
            + "else:\n"
            + "    assert os.waitpid(pid, 0)[1] == 0\n"
            + "    train(tracer, traced, 2)\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err, steps_in(tmp_path)) == (0, "", 5)
        assert len(list(tmp_path.glob("segments/*-*-*"))) == 1

    @pytest.mark.parametrize(
        "lock",
        [
            "tracer._recording._lock",
            "tracer._recording._state.lock",
            "tracer._recording.writer._wake",
            "tracer._recording.writer.feeds[0]._wake",
        ],
    )
    def test_a_lock_that_is_held_at_the_fork_stops_no_child(
        self, nursery: Nursery, tmp_path: Path, lock: str
    ) -> None:
        """D10: whatever lock another thread of ours held, the child trains and ends."""
        program = (
            START
            + CHILD_TRAINS
            + "from moetrace.sinks import MemorySink\n"
            + "tracer = attach(traced, run, every=1, sinks=[MemorySink()])\n"
            + "train(tracer, traced, 3)\n"
            + "tracer.flush()\n"
            + "held, go = threading.Event(), threading.Event()\n"
            + "def hold():\n"
            + f"    with {lock}:\n"
            + "        held.set()\n"
            + "        go.wait()\n"
            + "thread = threading.Thread(target=hold, daemon=True)\n"
            + "thread.start()\n"
            + "held.wait()\n"
            + "pid = os.fork()\n"
            + "if pid == 0:\n    child()\n"
            + "else:\n"
            + "    code = os.waitpid(pid, 0)[1]\n"
            + "    go.set()\n"
            + "    sys.exit(code)\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err, steps_in(tmp_path)) == (0, "", 3)

    def test_a_child_may_attach_for_itself(self, nursery: Nursery, tmp_path: Path) -> None:
        """D8: a forked child that attaches to the inherited model is a process of its own."""
        program = START + (
            "tracer = attach(traced, run, every=1)\n"
            "train(tracer, traced, 3)\n"
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    own = attach(traced, run + '-child', every=1)\n"
            "    train(own, traced, 4)\n"
            "else:\n"
            "    assert os.waitpid(pid, 0)[1] == 0\n"
            "    train(tracer, traced, 2)\n"
        )
        done = nursery.run(program, run=str(tmp_path / "run"))
        assert (done.code, done.err) == (0, "")
        assert (steps_in(tmp_path / "run"), steps_in(tmp_path / "run-child")) == (5, 4)

    def test_a_child_may_join_the_run(self, nursery: Nursery, tmp_path: Path) -> None:
        """D8: a child that attaches to the same folder is the next attempt, in its own segment."""
        program = START + (
            "tracer = attach(traced, run, every=1)\n"
            "train(tracer, traced, 3)\n"
            "tracer.flush()\n"
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    own = attach(traced, run, every=1)\n"
            "    own.on_step_begin(4)\n"
            "    traced(torch.zeros(2, 4))\n"
            "    own.on_step_end(4)\n"
            "else:\n"
            "    assert os.waitpid(pid, 0)[1] == 0\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err, steps_in(tmp_path)) == (0, "", 4)
        assert sorted(p.name[:11] for p in tmp_path.glob("segments/*-*-*")) == [
            "00000-00000",
            "00001-00000",
        ]


class TestMultiprocessing:
    @pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
    def test_a_child_that_returns_has_written_everything(
        self, nursery: Nursery, tmp_path: Path, method: str
    ) -> None:
        """D8: a child that attaches, trains and returns without close: 20 of 20 windows."""
        program = (
            "import multiprocessing, sys\n"
            "from tests.processes.loop import attach_and_train\n"
            f"context = multiprocessing.get_context({method!r})\n"
            "child = context.Process(target=attach_and_train, args=(run, 20))\n"
            "child.start()\n"
            "child.join(50)\n"
            "sys.exit(child.exitcode)\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err, steps_in(tmp_path)) == (0, "", 20)
        assert open_run(tmp_path).finished

    @pytest.mark.filterwarnings("ignore")
    def test_workers_of_a_loader_record_nothing(self, nursery: Nursery, tmp_path: Path) -> None:
        """D9: workers that inherit the traced model and run it add nothing and hold nothing."""
        program = START + (
            "from torch.utils.data import DataLoader, Dataset\n"
            "tracer = attach(traced, run, every=1)\n"
            "class Data(Dataset):\n"
            "    def __len__(self): return 8\n"
            "    def __getitem__(self, index):\n"
            "        return traced(torch.zeros(2, 4)).detach()\n"
            "for epoch in range(3):\n"
            "    for batch in DataLoader(Data(), num_workers=2, multiprocessing_context='fork'):\n"
            "        train(tracer, traced, 1)\n"
            "tracer.close()\n"
            "say(str(tracer.step))\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err, done.out) == (0, "", "24\n")
        assert steps_in(tmp_path) == 24
        assert len(list(tmp_path.glob("segments/*-*-*"))) == 1

    def test_a_child_has_no_hooks_on_its_copy(self, nursery: Nursery, tmp_path: Path) -> None:
        """D9: the child's copy of the model is as before attach; the parent's stays traced."""
        program = START + (
            "tracer = attach(traced, run, every=1)\n"
            "hooks = lambda: sum(len(m._forward_hooks) for m in traced.modules())\n"
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    os._exit(hooks())\n"
            "say(f'{os.waitpid(pid, 0)[1]} {hooks()}')\n"
        )
        assert nursery.run(program, run=str(tmp_path)).out == "0 1\n"

    def test_a_program_that_is_started_inherits_no_file(
        self, nursery: Nursery, tmp_path: Path
    ) -> None:
        """D9: descriptors of the run do not pass through exec."""
        program = START + (
            "import subprocess\n"
            "tracer = attach(traced, run, every=1)\n"
            "train(tracer, traced, 2)\n"
            "tracer.flush()\n"
            "say(subprocess.check_output(['ls', '-l', '/proc/self/fd'], text=True,\n"
            "    close_fds=False))\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert done.code == 0
        assert str(tmp_path) not in done.out


def test_the_count_of_hung_children_would_be_seen(tmp_path: Path) -> None:
    """The watcher of forked children kills one that does not end, and counts it."""

    def hangs() -> None:
        time.sleep(60)

    before = signal.getsignal(signal.SIGCHLD)
    steps, hung = fork_often(str(tmp_path), 1, child=hangs, patience=0.1)
    assert hung == 1
    assert steps >= 0
    assert signal.getsignal(signal.SIGCHLD) == before
    assert os.getpid() > 0
