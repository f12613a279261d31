"""Copies, pickles, casts, moves and ends of a model: it stays the user's, and the counts exact.

Rows A9 to A13, A21 and A22 of the fault list: each test names its row.
"""

import copy
import gc
import multiprocessing.reduction
import os
import pickle
import subprocess
import sys
import threading
import weakref

import pytest
import torch

import moetrace
from moetrace.sinks import MemorySink
from tests.tiny import ScriptedModel, batch, seeded

COUNTS = [2, 1, 1, 0]
"""What one forward of `made` counts."""


def made():
    """One router of four experts; each forward sends two tokens to experts 0, 1 and 0, 2."""
    return ScriptedModel([[0, 1], [0, 2]], num_experts=4)


def step(model, tracer, hidden=None):
    """One step of one forward."""
    tracer.on_step_begin()
    model(torch.ones(2, 4) if hidden is None else hidden).sum().backward()
    tracer.on_step_end()


def counts(tracer):
    """Tokens per expert of the newest window."""
    return tracer.flush()["blocks.0"].tokens_per_expert.tolist()


class TestCopies:
    @pytest.mark.parametrize("when", ["before steps", "after steps"])
    def test_deepcopy(self, when):
        """A9: a copy holds no hook of ours that does anything: what it runs is counted nowhere."""
        model = made()
        with moetrace.attach(model, every=1) as tracer:
            if when == "after steps":
                step(model, tracer)
            twin = copy.deepcopy(model)
            for _ in range(3):
                twin(torch.ones(2, 4)).sum().backward()
            step(model, tracer)
            assert counts(tracer) == COUNTS

    def test_averaged_model(self):
        """A9: torch's own moving average of the weights, made in the middle, adds nothing."""
        model = made()
        with moetrace.attach(model, every=1) as tracer:
            step(model, tracer)
            average = torch.optim.swa_utils.AveragedModel(model)
            average.update_parameters(model)
            average(torch.ones(2, 4))
            step(model, tracer)
            assert counts(tracer) == COUNTS

    @pytest.mark.parametrize("way", ["deepcopy", "pickle"])
    def test_copies_can_be_traced_themselves(self, way):
        """A9: a tracer of its own on the copy counts the copy and leaves the original alone."""
        model = made()
        with moetrace.attach(model, every=1) as tracer:
            twin = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
            with moetrace.attach(twin, every=1) as second:
                step(twin, second)
                assert counts(second) == COUNTS
            step(model, tracer)
            assert counts(tracer) == COUNTS

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_loads_without_moetrace(self, tmp_path, protocol):
        """A10: what any pickle protocol and torch.save wrote names nothing of moetrace."""
        model = made()
        with moetrace.attach(model) as tracer:
            step(model, tracer)
            torch.save(model, tmp_path / "model.pt", pickle_protocol=max(protocol, 2))
            written = pickle.dumps(model, protocol) + (tmp_path / "model.pt").read_bytes()
        assert b"moetrace" not in written
        assert pickle.loads(pickle.dumps(model, protocol))(torch.ones(2, 4)).shape == (2, 4)

    def test_through_a_queue(self):
        """A10: the pickler that queues and spawned processes use takes the model along."""
        model = made()
        with moetrace.attach(model) as tracer:
            sent = bytes(multiprocessing.reduction.ForkingPickler.dumps(model))
            received = pickle.loads(sent)
            received(torch.ones(2, 4))
            assert tracer.flush() is None
            assert b"moetrace" not in sent

    def test_loads_where_moetrace_cannot_be_imported(self, tmp_path):
        """A10: a saved model runs in a process in which moetrace is not installed."""
        model = made()
        with moetrace.attach(model):
            torch.save(model, tmp_path / "model.pt")
        program = (
            "import sys; sys.modules['moetrace'] = None\n"
            "import torch\n"
            f"model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)\n"
            "print(tuple(model(torch.ones(2, 4)).shape))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
        )
        assert done.stdout.strip() == "(2, 4)", done.stderr


class TestState:
    def test_is_unchanged(self):
        """A11: keys, order and bytes of the state, and every list of parameters, are the same."""
        model = copy.deepcopy(seeded("Qwen3Moe"))

        def state():
            return (
                [(key, value.numpy().tobytes()) for key, value in model.state_dict().items()],
                [name for name, _ in model.named_parameters()],
                [name for name, _ in model.named_buffers()],
                [name for name, _ in model.named_modules()],
                model.num_parameters(),
            )

        before = state()
        with moetrace.attach(model) as tracer:
            ids, mask = batch(0)
            tracer.on_step_begin()
            model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
            tracer.on_step_end()
            assert state() == before
            assert not model.load_state_dict(copy.deepcopy(seeded("Qwen3Moe")).state_dict())[0]
        assert state() == before


class TestMoves:
    @pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "float"])
    def test_casts(self, cast):
        """A12: a model that is cast after attach is counted on in integers."""
        model = made()
        with moetrace.attach(model, every=1) as tracer:
            step(model, tracer)
            getattr(model, cast)()
            hidden = getattr(torch.ones(2, 4), cast)()
            step(model, tracer, hidden)
            stats = tracer.flush()["blocks.0"]
        assert stats.tokens_per_expert.tolist() == COUNTS
        assert stats.tokens_per_expert.dtype == "int64"

    def test_meta_and_back(self):
        """A12: a model that goes to the meta device is not counted there, and is again after."""
        model = made()
        with moetrace.attach(model, every=1) as tracer:
            model.to("meta")
            model.to_empty(device="cpu")
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.zero_()
            step(model, tracer)
            assert counts(tracer) == COUNTS

    def test_attached_under_an_ambient_device_and_dtype(self):
        """A12: the sums are made on the model's device whatever the context of attach says."""
        model = made()
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"):
                tracer = moetrace.attach(model, every=1)
        finally:
            torch.set_default_dtype(default)
        with tracer:
            step(model, tracer)
            assert counts(tracer) == COUNTS

    @pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad])
    def test_evaluation_first(self, first):
        """A13: evaluation under inference mode, then training, then evaluation: no error, exact."""
        model, sink = made(), MemorySink()
        with first():
            tracer = moetrace.attach(model, every=1, sinks=[sink])
            model.eval()(torch.ones(2, 4), attention_mask=torch.ones(1, 2))
        with tracer:
            step(model.train(), tracer)
            with first():
                model.eval()(torch.ones(2, 4), attention_mask=torch.ones(1, 2))
            step(model.train(), tracer)
        phases = [(s.phase, s["blocks.0"].tokens_per_expert.tolist()) for s in sink.snapshots]
        assert phases == [("eval", COUNTS), ("train", COUNTS)] * 2
        assert all("errors" not in s.health for s in sink.snapshots)


class TestEnds:
    def test_a_thousand_times(self, tmp_path):
        """A21: attach and close leave no hook, thread or open file, however often."""
        model = made()
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]

        def open_files():
            return len(os.listdir("/proc/self/fd"))

        moetrace.attach(model).close()
        before = threading.active_count(), open_files()
        for number in range(1000):
            # Every fiftieth into a folder: the rest would only wait for the disk.
            run = tmp_path / f"{number}" if number % 50 == 0 else None
            moetrace.attach(model, run).close()
        assert (threading.active_count(), open_files()) == before
        assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks

    @pytest.mark.parametrize("end", ["close", "drop"])
    def test_nothing_is_kept_alive(self, end):
        """A21: after close, or when the tracer is dropped, model and tracer are freed."""
        model = made()
        tracer = moetrace.attach(model, every=1)
        step(model, tracer)
        alive = [weakref.ref(model), weakref.ref(tracer)]
        if end == "close":
            tracer.close()
        del model, tracer
        gc.collect()
        assert [ref() for ref in alive] == [None, None]

    def test_the_model_may_go_first(self):
        """A22: a model that is deleted while it is traced is freed; the tracer gives its counts."""
        model, sink = made(), MemorySink()
        with moetrace.attach(model, every=10, sinks=[sink]) as tracer:
            step(model, tracer)
            ref = weakref.ref(model)
            del model
            gc.collect()
            assert ref() is None
            assert counts(tracer) == COUNTS
