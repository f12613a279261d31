"""The wrapper in a real loop of accelerate, in one process."""

import copy
import json
import logging
import threading

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from torch import nn
from torch.utils.data import DataLoader

import moetrace
from moetrace.sinks import MemorySink
from moetrace.tracer import Tracer
from moetrace_adapters.accelerate import AcceleratedTrace
from tests.adapters.truth import LAYERS, counted, found, spans, watched
from tests.tiny import batch, seeded


class Loop:
    """A loop of accelerate: a model, its optimizer and loader, prepared, and what it leaves."""

    def __init__(self, *, rows=16, steps=1, trackers=None, folder=None):
        self.accelerator = Accelerator(
            cpu=True, gradient_accumulation_steps=steps, log_with=trackers, project_dir=folder
        )
        self.net = copy.deepcopy(seeded("Qwen3Moe"))
        ids, mask = batch(1, rows=rows)
        data = [
            {"input_ids": i, "attention_mask": m, "labels": i}
            for i, m in zip(ids, mask, strict=True)
        ]
        self.loader = DataLoader(data, batch_size=2)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.losses = []

    def prepare(self):
        """Let the accelerator take them."""
        self.net, self.optimizer, self.loader = self.accelerator.prepare(
            self.net, self.optimizer, self.loader
        )
        return self

    def run(self, accumulate, *, loader=None, before_backward=lambda: None):
        """One pass over the loader; what the training leaves."""
        torch.manual_seed(0)
        for rows in self.loader if loader is None else loader:
            with accumulate(self.net):
                loss = self.net(**rows).loss
                self.losses.append(loss.detach())
                before_backward()
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return [*self.losses, *self.net.state_dict().values(), torch.get_rng_state()]


def same(one, other):
    """Whether two trainings left the same, bit for bit."""
    return len(one) == len(other) and all(map(torch.equal, one, other))


def untraced(**options):
    """What a plain loop leaves, and what the oracle counts in it."""
    loop = Loop(**options)
    oracle = watched(loop.net)
    loop.prepare()
    return loop.run(loop.accelerator.accumulate), found(oracle)


class TestCounting:
    @pytest.mark.parametrize("attached", ["before", "after"])
    @pytest.mark.parametrize(
        ("options", "windows"),
        [
            ({"rows": 8}, [(1, 2), (3, 4)]),
            ({"steps": 2}, [(1, 2), (3, 4)]),
            ({"steps": 3, "rows": 14}, [(1, 2), (3, 3)]),
        ],
        ids=["plain", "accumulation", "a short last accumulation"],
    )
    def test_every_token_once(self, options, windows, attached):
        """Before or after prepare, counts equal the oracle and no bit of the training changes."""
        before, truth = untraced(**options)
        loop, sink = Loop(**options), MemorySink()
        if attached == "after":
            loop.prepare()
        with AcceleratedTrace(loop.accelerator, loop.net, every=2, sinks=[sink]) as trace:
            if attached == "before":
                loop.prepare()
            after = loop.run(trace.accumulate)
        assert counted(sink.snapshots, "train") == truth["train"]
        assert spans(sink.snapshots, "train") == windows
        assert sink.snapshots[0].layers == LAYERS
        assert same(after, before)

    def test_evaluation_is_a_phase(self):
        """Forwards in eval mode between two passes belong to eval."""
        loop, sink = Loop(rows=4).prepare(), MemorySink()
        with AcceleratedTrace(loop.accelerator, loop.net, sinks=[sink]) as trace:
            loop.run(trace.accumulate)
            loop.net.eval()
            with torch.no_grad():
                for rows in loop.loader:
                    loop.net(**rows)
        assert spans(sink.snapshots, "eval") == [(2, 2)]
        # 4 rows of 12 tokens, 5 of them padding
        assert {s.phase: s[LAYERS[0]].tokens for s in sink.snapshots} == {"train": 43, "eval": 43}

    def test_a_micro_batch_that_fails_gives_up_its_step(self):
        """What raised, and its step's micro-batches before it, belong to no window of train."""
        loop, sink = Loop(rows=8, steps=2).prepare(), MemorySink()

        def out_of_memory():
            if len(loop.losses) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        with AcceleratedTrace(loop.accelerator, loop.net, every=1, sinks=[sink]) as trace:
            with pytest.raises(torch.OutOfMemoryError):
                loop.run(trace.accumulate, before_backward=out_of_memory)
            loop.run(trace.accumulate)
        assert spans(sink.snapshots, "train") == [(1, 1), (2, 2)]
        tokens = {"train": 0, "aborted": 0}
        for snapshot in sink.snapshots:
            tokens[snapshot.phase] += snapshot[LAYERS[0]].tokens
        # 8 rows of 12 tokens, 5 of them padding; before that 2 micro-batches of 2 rows.
        assert tokens == {"train": 91, "aborted": 43}

    def test_a_step_that_the_scaler_skips_is_none(self):
        """E2: where the accelerator says that the optimizer did not step, the tokens say so too."""
        loop, sink = Loop(rows=8).prepare(), MemorySink()

        def overflow():
            # What accelerate notes when its gradient scaler finds an infinity.
            loop.optimizer._is_overflow = len(loop.losses) == 2

        loop.optimizer.step = lambda: None
        with AcceleratedTrace(loop.accelerator, loop.net, every=1, sinks=[sink]) as trace:
            loop.run(trace.accumulate, before_backward=overflow)
        assert spans(sink.snapshots, "train") == [(1, 1), (2, 2), (3, 3)]
        assert sum(s.phase == "skipped" for s in sink.snapshots) == 1


class Tracker(GeneralTracker):
    """Notes what it is told, with the thread."""

    requires_logging_directory = False

    def __init__(self, name):
        self.name = name
        super().__init__()
        self.told = []

    @property
    def tracker(self):
        """Nothing behind it."""
        return self.told

    def log(self, values, step=None, **kwargs):
        """Note it."""
        self.told.append((step, threading.current_thread(), values))


class TestTrackers:
    def test_each_gets_every_window_on_the_training_thread(self):
        """A tracker of accelerate may be bound to its thread; the step is the window's last."""
        tracker, sink = Tracker("plain"), MemorySink()
        loop = Loop(trackers=tracker)
        loop.accelerator.init_trackers("project")
        loop.prepare()
        with AcceleratedTrace(loop.accelerator, loop.net, every=3, sinks=[sink]) as trace:
            loop.run(trace.accumulate)
        assert [step for step, _, _ in tracker.told] == [3, 6, 8]
        assert {thread for _, thread, _ in tracker.told} == {threading.main_thread()}
        for (_, _, row), snapshot in zip(tracker.told, sink.snapshots, strict=True):
            assert row.items() >= snapshot.metrics().items()

    def test_wandb_gets_the_step_in_the_row(self):
        """W&B drops rows with a step beside another logger, so the row carries it."""
        tracker = Tracker("wandb")
        loop = Loop(trackers=tracker)
        loop.accelerator.init_trackers("project")
        loop.prepare()
        with AcceleratedTrace(loop.accelerator, loop.net, every=4) as trace:
            loop.run(trace.accumulate)
        assert [(step, row["moe/step"]) for step, _, row in tracker.told] == [(None, 4), (None, 8)]

    def test_tensorboard(self, tmp_path):
        """The scalars stand in the event file that accelerate opened."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        loop, sink = Loop(trackers="tensorboard", folder=tmp_path), MemorySink()
        loop.accelerator.init_trackers("project")
        loop.prepare()
        with AcceleratedTrace(loop.accelerator, loop.net, every=4, sinks=[sink]) as trace:
            loop.run(trace.accumulate)
        loop.accelerator.end_training()
        events = EventAccumulator(str(tmp_path / "project"))
        events.Reload()
        shown = [(e.step, e.value) for e in events.Scalars("moe/avg_expert_cv")]
        expected = [(s.last_step, s.metrics()["moe/avg_expert_cv"]) for s in sink.snapshots]
        assert [step for step, _ in shown] == [4, 8]
        assert [value for _, value in shown] == pytest.approx([value for _, value in expected])

    def test_may_be_switched_off(self):
        """log=False leaves the trackers to the user."""
        tracker = Tracker("plain")
        loop = Loop(trackers=tracker)
        loop.accelerator.init_trackers("project")
        loop.prepare()
        with AcceleratedTrace(loop.accelerator, loop.net, every=1, log=False) as trace:
            loop.run(trace.accumulate)
        assert tracker.told == []


class TestResume:
    def test_a_loaded_state_goes_on_with_its_step(self, tmp_path):
        """save_state closes the windows and leaves the step; load_state takes it up."""
        folder, state = tmp_path / "run", tmp_path / "state"
        first = Loop(rows=10).prepare()
        with AcceleratedTrace(first.accelerator, first.net, folder, every=2) as trace:
            first.run(trace.accumulate)
            first.accelerator.save_state(state)
            first.run(trace.accumulate, loader=list(first.loader)[:1])
        pointer = json.loads((state / "moetrace.json").read_text())
        run_id = moetrace.open_run(folder).run_id
        assert pointer == {"run": str(folder), "run_id": run_id, "attempt": 0, "step": 5}

        second = Loop(rows=6).prepare()
        with AcceleratedTrace(second.accelerator, second.net, folder, every=2) as trace:
            second.accelerator.load_state(state)
            second.run(trace.accumulate)
        run = moetrace.open_run(folder)
        assert run.steps().tolist() == [[1, 2], [3, 4], [5, 5], [6, 6], [7, 8]]
        assert run.attempts == (0, 1)

    def test_a_state_from_before_has_no_step(self, tmp_path):
        """A state that was saved without moetrace is loaded as it is, and counting begins at 1."""
        plain = Loop(rows=4).prepare()
        plain.accelerator.save_state(tmp_path)
        sink = MemorySink()
        with AcceleratedTrace(plain.accelerator, plain.net, every=2, sinks=[sink]) as trace:
            plain.accelerator.load_state(tmp_path)
            plain.run(trace.accumulate)
        assert spans(sink.snapshots, "train") == [(1, 2)]

    def test_nothing_is_left_on_the_accelerator(self):
        """After close() the accelerator holds no hook of ours."""
        loop = Loop(rows=4).prepare()
        trace = AcceleratedTrace(loop.accelerator, loop.net)
        trace.close()
        trace.close()
        hooks = (
            loop.accelerator._save_model_state_pre_hook,
            loop.accelerator._load_model_state_pre_hook,
        )
        assert [len(hook) for hook in hooks] == [0, 0]


def broken(*args, **kwargs):
    """What a tracer does that has a fault in it."""
    raise RuntimeError("a fault of ours")


class TestBarrier:
    @pytest.mark.parametrize("method", ["on_step_begin", "on_step_end", "flush", "close"])
    def test_a_broken_tracer_changes_no_bit_of_the_training(
        self, tmp_path, monkeypatch, caplog, method
    ):
        """A fault of ours is a line in the log, once."""
        before, _ = untraced(steps=2)
        whole = getattr(Tracer, method)
        monkeypatch.setattr(Tracer, method, broken)
        loop = Loop(steps=2).prepare()
        with (
            caplog.at_level(logging.WARNING, "moetrace"),
            AcceleratedTrace(loop.accelerator, loop.net) as trace,
        ):
            after = loop.run(trace.accumulate)
            loop.accelerator.save_state(tmp_path)
        assert same(after, before)
        said = [record.getMessage() for record in caplog.records if "a fault" in record.message]
        assert said == ["moetrace failed and training goes on: RuntimeError: a fault of ours"]
        monkeypatch.setattr(Tracer, method, whole)
        trace.tracer.close()

    def test_a_tracker_that_raises_changes_no_bit(self, monkeypatch, caplog):
        """What a tracker does with our row cannot stop the training."""
        before, _ = untraced(rows=4)
        tracker = Tracker("plain")
        monkeypatch.setattr(tracker, "log", broken)
        loop = Loop(rows=4, trackers=tracker)
        loop.accelerator.init_trackers("project")
        loop.prepare()
        with AcceleratedTrace(loop.accelerator, loop.net, every=1) as trace:
            after = loop.run(trace.accumulate)
        assert same(after, before)
        assert "a fault of ours" in caplog.text

    def test_a_pointer_that_nobody_can_read_is_let_pass(self, tmp_path, caplog):
        """A damaged moetrace.json does not stop load_state."""
        loop = Loop(rows=4).prepare()
        loop.accelerator.save_state(tmp_path)
        (tmp_path / "moetrace.json").write_text("{")
        with AcceleratedTrace(loop.accelerator, loop.net):
            loop.accelerator.load_state(tmp_path)
        assert "moetrace failed and training goes on: JSONDecodeError" in caplog.text

    def test_no_router_is_an_error_of_use(self):
        """A model without a router is refused at once, or let pass where that was asked for."""
        accelerator, plain = Accelerator(cpu=True), nn.Sequential(nn.Linear(2, 2))
        with pytest.raises(moetrace.NoRouterFound):
            AcceleratedTrace(accelerator, plain)
        with AcceleratedTrace(accelerator, plain, on_missing="warn") as trace:
            assert trace.tracer is None
            with trace.accumulate(plain):
                plain(torch.zeros(1, 2))
