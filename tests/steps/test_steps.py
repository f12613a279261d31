"""Steps that are retried, skipped, repeated or never named: each under its own label, none lost."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import moetrace
from moetrace.sinks import MemorySink
from moetrace.store import RunFolder
from tests.store.windows import HEADER, window
from tests.tiny import ScriptedModel

SCRIPT = [[0, 1], [0, 2]]


@pytest.fixture
def model():
    """Each forward sends two tokens to experts 0, 1 and 0, 2 of four."""
    return ScriptedModel(SCRIPT, num_experts=4).train()


@pytest.fixture
def sink():
    """A sink that keeps what it gets."""
    return MemorySink()


def forward(model):
    """One forward of two tokens."""
    return model(torch.ones(2, 4))


def calls(sink):
    """Phase, steps and number of forwards of every window."""
    return [(s.phase, s.first_step, s.last_step, s["blocks.0"].calls) for s in sink.snapshots]


class TestSkippedSteps:
    def test_a_gradient_scaler_that_skips(self, model, sink):
        """E2: six forwards of which two meet an infinity: four steps, and two under their label."""
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            for number in range(6):
                tracer.on_step_begin()
                loss = forward(model).sum() * (float("inf") if number in (1, 2) else 1.0)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                before = scaler.get_scale()
                scaler.update()
                optimizer.zero_grad()
                tracer.on_step_end(skipped=scaler.get_scale() < before)
            assert tracer.step == 4
        train = [found for found in calls(sink) if found[0] == "train"]
        assert train == [("train", step, step, 1) for step in (1, 2, 3, 4)]
        assert [found for found in calls(sink) if found[0] != "train"] == [("skipped", 1, 1, 2)]

    def test_a_rollout_inside_it_stays_a_rollout(self, model, sink):
        """What ran without gradients in a skipped step is told apart, as in any step."""
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            tracer.on_step_begin()
            with torch.no_grad():
                forward(model)
            forward(model)
            tracer.on_step_end(skipped=True)
        assert sorted(calls(sink)) == [("rollout", 0, 0, 1), ("skipped", 0, 0, 1)]

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_under_checkpointing(self, sink, reentrant):
        """A skipped step counts once under checkpoints of both kinds too."""
        model = ScriptedModel(SCRIPT, num_experts=4).train()
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            tracer.on_step_begin()
            hidden = torch.ones(2, 4, requires_grad=True)
            checkpointed = torch.utils.checkpoint.checkpoint(
                model.blocks[0], hidden, use_reentrant=reentrant
            )
            checkpointed.sum().backward()
            tracer.on_step_end(skipped=True)
        assert [found for found in calls(sink) if found[3]] == [("skipped", 0, 0, 1)]

    def test_is_no_step_of_sampling(self, model, sink):
        """A step that sampling leaves out counts nothing, skipped or not."""
        with moetrace.attach(model, every=1, sample=2, sinks=[sink]) as tracer:
            for skipped in (False, True, False, False):
                tracer.on_step_begin()
                forward(model)
                tracer.on_step_end(skipped=skipped)
        assert calls(sink) == [("train", 1, 1, 1), ("train", 3, 3, 1)]


class TestRetriedSteps:
    def test_find_executable_batch_size(self, sink):
        """E1: batches of 32 and 28 run out of memory, 25 fits: only its 15 tokens a step count."""
        accelerate = pytest.importorskip("accelerate.utils")
        tried = []
        model = ScriptedModel([[0]] * 15, num_experts=2).train()

        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:

            @accelerate.find_executable_batch_size(starting_batch_size=32)
            def training(batch_size):
                tried.append(batch_size)
                for _ in range(3):
                    tracer.on_step_begin()
                    model(torch.ones(15, 4))
                    if batch_size > 25:
                        raise RuntimeError("CUDA out of memory.")
                    tracer.on_step_end()

            training()
        assert tried[0] > 25 >= tried[-1]
        counts = {}
        for found in sink.snapshots:
            row = found["blocks.0"].tokens_per_expert
            counts[found.phase] = counts.get(found.phase, 0) + row
        assert counts["train"].tolist() == [45, 0]
        assert counts["aborted"].tolist() == [15 * (len(tried) - 1), 0]
        assert tracer.step == 3


class TestStepNumbers:
    @pytest.mark.parametrize("step", [-1, 1.5, "7", True, 1 << 63, [3], object()])
    def test_what_is_no_number_is_told_once(self, model, sink, caplog, step):
        """E6: the tracer counts on by itself, and nothing raises."""
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            for _ in range(2):
                tracer.on_step_begin(step)
                forward(model)
                tracer.on_step_end(step)
        assert calls(sink) == [("train", 1, 1, 1), ("train", 2, 2, 1)]
        assert caplog.text.count("is not a step number") == 1

    def test_numbers_of_numpy(self, model, sink):
        """E6: what numpy calls an integer is one."""
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            tracer.on_step_begin(np.int64(5))
            forward(model)
            tracer.on_step_end(np.int32(5))
        assert calls(sink) == [("train", 5, 5, 1)]

    def test_counted_from_zero(self, model, tmp_path):
        """E6: a loop that counts from 0 has every step in the run, the aborted one too."""
        with moetrace.attach(model, tmp_path, every=1) as tracer:
            tracer.on_step_begin(0)
            forward(model)
            for step in (0, 1):
                tracer.on_step_begin(step)
                forward(model)
                tracer.on_step_end(step)
        run = moetrace.open_run(tmp_path)
        assert run.steps().tolist() == [[0, 0], [1, 1]]
        assert run.steps(phase="aborted").tolist() == [[0, 0]]
        assert run.faults == ()

    def test_going_back_within_one_attempt(self, model, sink, caplog):
        """E6: steps counted again have windows of their own, flagged, and said once."""
        with moetrace.attach(model, every=10, sinks=[sink]) as tracer:
            for step in (8, 9, 3, 4):
                tracer.on_step_begin(step)
                forward(model)
                tracer.on_step_end(step)
        assert calls(sink) == [("train", 8, 9, 2), ("train", 3, 4, 2)]
        assert [found.seq for found in sink.snapshots] == [0, 1]
        assert sink.snapshots[-1].health["steps_went_back"] == 1
        assert caplog.text.count("went back from 9 to 2") == 1

    def test_a_jump_forward_is_as_it_is(self, model, sink):
        """E6: a window says which steps it covers, whatever lies between them."""
        with moetrace.attach(model, every=10, sinks=[sink]) as tracer:
            for step in (1, 5_000_000_000):
                tracer.on_step_begin(step)
                forward(model)
                tracer.on_step_end(step)
        assert calls(sink) == [("train", 1, 5_000_000_000, 2)]


class TestWindows:
    def test_one_window_for_a_whole_training(self, model, sink):
        """E8: ``every`` may be larger than any run; closing writes what is there."""
        with moetrace.attach(model, every=10**9, sinks=[sink]) as tracer:
            for _ in range(7):
                tracer.on_step_begin()
                forward(model)
                tracer.on_step_end()
        assert calls(sink) == [("train", 1, 7, 7)]

    def test_a_loop_that_names_no_steps(self, model, sink, caplog):
        """E9: two thousand forwards are one window of step 0, in no more memory; one warning."""
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            accumulators = tracer._recording._accumulators.tensors
            before = [tensor.numel() for tensor in accumulators]
            for _ in range(2_000):
                forward(model)
            assert [tensor.numel() for tensor in accumulators] == before
        assert calls(sink) == [("train", 0, 0, 2_000)]
        assert caplog.text.count("no step was ever named") == 1

    def test_a_clock_that_is_set_back(self, model, tmp_path, monkeypatch):
        """E7: windows are ordered by their steps; wall time is told and orders nothing."""
        clock = SimpleNamespace(now=5000.0)
        monkeypatch.setattr("moetrace.recording.time.time", lambda: clock.now)
        with moetrace.attach(model, tmp_path, every=1) as tracer:
            for now in (5000.0, 100.0, 4000.0, 3.0):
                clock.now = now
                tracer.on_step_begin()
                forward(model)
                tracer.on_step_end()
        monkeypatch.undo()
        found = moetrace.open_run(tmp_path).snapshots()
        assert [(s.seq, s.last_step) for s in found] == [(0, 1), (1, 2), (2, 3), (3, 4)]
        assert [s.wall_time for s in found] == [5000.0, 100.0, 4000.0, 3.0]


class TestResume:
    def test_at_an_earlier_step(self, model, tmp_path):
        """E4: killed at step 212, resumed at 201: each step once; what was is countable still."""
        before = copy.deepcopy(model)
        first = moetrace.attach(before, tmp_path, every=4)
        self.take(first, before, range(1, 213), forwards=1)
        first.flush()
        with moetrace.attach(model, tmp_path, every=4) as second:
            self.take(second, model, range(201, 221), forwards=2)
        run = moetrace.open_run(tmp_path)
        calls = {int(s.last_step): s["blocks.0"].calls for s in run.snapshots()}
        assert list(calls) == list(range(4, 221, 4))
        assert [calls[200], calls[204], calls[212], calls[220]] == [4, 8, 8, 8]
        everything = run.snapshots(superseded=True)
        assert sum(s["blocks.0"].calls for s in everything) == 212 + 2 * 20
        assert [s.attempt for s in everything] == [0] * 53 + [1] * 5
        first.close()

    def test_a_crash_loop(self, tmp_path):
        """E5: fifty lives of one run are fifty attempts, and no byte of an earlier one changes."""
        bytes_before = {}
        for life in range(50):
            folder = RunFolder.prepare(tmp_path)
            segment = folder.open_segment(rank=0, header=HEADER)
            found = window(0, {"a": (life, 1)}, attempt=segment.attempt, run_id=folder.run_id)
            segment.append(found)
            segment.close()
            logs = {log: log.read_bytes() for log in tmp_path.glob("segments/*/*")}
            assert bytes_before.items() <= logs.items()
            bytes_before = logs
        run = moetrace.open_run(tmp_path)
        assert run.attempts == tuple(range(50))
        assert [s["a"].tokens_per_expert.tolist() for s in run.snapshots()] == [[49, 1]]
        assert len(run.snapshots(superseded=True)) == 50
        assert run.faults == ()

    def take(self, tracer, model, steps, *, forwards):
        """Steps of so many forwards, under the numbers that a trainer gives."""
        for step in steps:
            tracer.on_step_begin(step)
            for _ in range(forwards):
                model(torch.ones(2, 4))
            tracer.on_step_end(step)
