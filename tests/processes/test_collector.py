"""Code that runs in the middle of ours: collectors, destructors, log handlers, sinks."""

from pathlib import Path

from moetrace import open_run
from tests.processes.loop import steps_in
from tests.processes.nursery import Nursery
from tests.processes.test_exit import START


class TestReentry:
    def test_destructors_may_call_the_tracer_anywhere(
        self, nursery: Nursery, tmp_path: Path
    ) -> None:
        """B9: a collection at each allocation whose destructors flush and log stops nobody."""
        program = START + (
            "import gc, logging\n"
            "from moetrace.sinks import MemorySink\n"
            "class Handler(logging.Handler):\n"
            "    def emit(self, record): tracer.flush()\n"
            "class Cycle:\n"
            "    def __init__(self): self.me = self\n"
            "    def __del__(self):\n"
            "        tracer._recording.close_windows()\n"
            "        logging.getLogger('moetrace').warning('collected')\n"
            "tracer = attach(traced, run, every=1, sinks=[MemorySink(), MemorySink()])\n"
            "logging.getLogger('moetrace').addHandler(Handler())\n"
            "gc.set_threshold(1)\n"
            "train(tracer, traced, 100, after=lambda: tracer.step % 10 or Cycle())\n"
            "gc.set_threshold(700)\n"
            "tracer.close()\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err, steps_in(tmp_path)) == (0, "", 100)

    def test_a_tracer_may_be_collected_on_any_thread(
        self, nursery: Nursery, tmp_path: Path
    ) -> None:
        """B9: a dropped tracer that a sink's thread collects is closed there; nothing is lost."""
        program = START + (
            "import gc\n"
            "gc.disable()\n"
            "collected = threading.Event()\n"
            "class Collects:\n"
            "    def write(self, snapshot):\n"
            "        if snapshot.last_step == 5:\n"
            "            dropped.wait(); gc.collect(); collected.set()\n"
            "    def close(self): pass\n"
            "dropped = threading.Event()\n"
            "tracer = attach(traced, run, every=1, sinks=[Collects()])\n"
            "train(tracer, traced, 5)\n"
            "cycle = [tracer]; cycle.append(cycle)\n"
            "del tracer, cycle\n"
            "dropped.set()\n"
            "assert collected.wait(50)\n"
            "say(str(sum(len(m._forward_hooks) for m in traced.modules())))\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err, done.out) == (0, "", "0\n")
        assert steps_in(tmp_path) == 5

    def test_a_sink_may_call_the_tracer(self, nursery: Nursery, tmp_path: Path) -> None:
        """B7: a sink that flushes, reads, and at last closes the tracer stops nobody."""
        program = START + (
            "class Calls:\n"
            "    def write(self, snapshot):\n"
            "        tracer.flush(); repr(tracer.latest); tracer.failed_sinks\n"
            "        if snapshot.last_step == 50: tracer.close()\n"
            "    def close(self): pass\n"
            "tracer = attach(traced, run, every=1, sinks=[Calls()])\n"
            "train(tracer, traced, 50)\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err, steps_in(tmp_path)) == (0, "", 50)

    def test_a_sink_that_starts_a_model_is_not_counted_as_training(
        self, nursery: Nursery, tmp_path: Path
    ) -> None:
        """B7: forwards of a sink's thread are counted, once, and reach no other step by halves."""
        program = START + (
            "class Runs:\n"
            "    def write(self, snapshot): traced(torch.zeros(2, 4))\n"
            "    def close(self): pass\n"
            "tracer = attach(traced, run, every=1, sinks=[Runs()])\n"
            "train(tracer, traced, 20)\n"
            "tracer.flush()\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err) == (0, "")
        counts = [
            snapshot["blocks.0"].tokens_per_expert
            for phase in open_run(tmp_path).phases
            for snapshot in open_run(tmp_path).snapshots(phase=phase)
        ]
        total = sum(counts)
        assert total[0] == 2 * total[1] == 2 * total[2]  # type: ignore[index]
        assert total[0] >= 40  # type: ignore[index]


class TestPrivateCopies:
    def test_a_snapshot_does_not_change_while_training_goes_on(
        self, nursery: Nursery, tmp_path: Path
    ) -> None:
        """B11: what a slow sink holds is what its window counted, whatever is counted meanwhile."""
        program = START + (
            "class Slow:\n"
            "    seen = []\n"
            "    def write(self, snapshot):\n"
            "        before = snapshot['blocks.0'].tokens_per_expert.tolist()\n"
            "        time.sleep(0.01)\n"
            "        after = snapshot['blocks.0'].tokens_per_expert.tolist()\n"
            "        steps = snapshot.last_step - snapshot.first_step + 1\n"
            "        assert before == after == [steps * n for n in STEP], (before, after)\n"
            "        self.seen.append(steps)\n"
            "    def close(self): say(str(sum(self.seen)))\n"
            "tracer = attach(traced, run, every=1, sinks=[Slow()], alerts=None)\n"
            "train(tracer, traced, 200)\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err, done.out) == (0, "", "200\n")
        assert steps_in(tmp_path) == 200


class TestThreads:
    def test_eight_threads_lose_no_forward(self, nursery: Nursery, tmp_path: Path) -> None:
        """H2: one model, eight threads that are switched all the time: every forward counts."""
        program = START + (
            "sys.setswitchinterval(1e-6)\n"
            "tracer = attach(traced, run, every=1)\n"
            "start = threading.Barrier(8)\n"
            "def work():\n"
            "    start.wait()\n"
            "    for _ in range(100): traced(torch.zeros(2, 4))\n"
            "tracer.on_step_begin()\n"
            "threads = [threading.Thread(target=work) for _ in range(8)]\n"
            "[thread.start() for thread in threads]\n"
            "[thread.join() for thread in threads]\n"
            "tracer.on_step_end()\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err, steps_in(tmp_path)) == (0, "", 800)

    def test_steps_flushes_and_the_end_may_come_from_several_threads(
        self, nursery: Nursery, tmp_path: Path
    ) -> None:
        """H3: whichever order they come in, nothing hangs, nothing raises, no count is torn."""
        program = START + (
            "import random\n"
            "sys.setswitchinterval(1e-6)\n"
            "for seed in range(10):\n"
            "    tracer = attach(traced, f'{run}/{seed}', every=2)\n"
            "    chance = random.Random(seed)\n"
            "    def flushes():\n"
            "        for _ in range(20): tracer.flush(); time.sleep(chance.random() / 1000)\n"
            "    def closes():\n"
            "        time.sleep(chance.random() / 50); tracer.close()\n"
            "    threads = [threading.Thread(target=t) for t in (flushes, flushes, closes)]\n"
            "    [thread.start() for thread in threads]\n"
            "    train(tracer, traced, 40)\n"
            "    [thread.join() for thread in threads]\n"
            "    tracer.close()\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err) == (0, "")
        for seed in range(10):
            run = open_run(tmp_path / str(seed))
            assert (run.faults, run.finished) == ((), True)
            for snapshot in run.snapshots():
                found = snapshot["blocks.0"].tokens_per_expert.tolist()
                assert found == [found[1] * n for n in (2, 1, 1, 0)]

    def test_two_models_are_two_runs(self, nursery: Nursery, tmp_path: Path) -> None:
        """H1: tracers of two models, trained by turns and at once, do not see each other."""
        program = START + (
            "other = model()\n"
            "with attach(traced, run + '/a') as a, attach(other, run + '/b') as b:\n"
            "    def work(): train(b, other, 30)\n"
            "    thread = threading.Thread(target=work)\n"
            "    thread.start()\n"
            "    train(a, traced, 20)\n"
            "    thread.join()\n"
            "    train(b, other, 3)\n"
            "    train(a, traced, 3)\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err) == (0, "")
        assert (steps_in(tmp_path / "a"), steps_in(tmp_path / "b")) == (23, 33)
