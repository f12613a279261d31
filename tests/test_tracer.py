import logging
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

import moetrace
from moetrace import writer
from moetrace.ops.fused import operator_form
from moetrace.sinks import CallableSink, MemorySink
from moetrace.store.segment_writer import SegmentWriter
from tests.tiny import ScriptedModel

TWO_TOKENS = [[0, 1], [0, 2]]


def hidden(tokens=2):
    """Something for a scripted model to run on."""
    return torch.ones(tokens, 4)


def counts(snapshot, layer="blocks.0"):
    """Tokens per expert as a plain list."""
    return snapshot[layer].tokens_per_expert.tolist()


@pytest.fixture
def model():
    """One block of four experts; each forward sends two tokens to experts 0, 1 and 0, 2."""
    return ScriptedModel(TWO_TOKENS, num_experts=4).train()


@pytest.fixture
def sink():
    """A sink that keeps what it gets."""
    return MemorySink()


@pytest.fixture
def disk(monkeypatch):
    """A run folder takes nothing until this event is set; two windows may wait for it."""
    monkeypatch.setattr(writer, "_LONGEST_QUEUE", 2)
    ready, append = threading.Event(), SegmentWriter.append

    def slow(segment, snapshot):
        ready.wait(30)
        append(segment, snapshot)

    monkeypatch.setattr(SegmentWriter, "append", slow)
    yield ready
    ready.set()


def take_steps(tracer, model, steps):
    """Optimizer steps of one forward each."""
    for _ in range(steps):
        tracer.on_step_begin()
        model(hidden())
        tracer.on_step_end()


class TestWindows:
    def test_counts_the_script(self, model, sink):
        """One step of one forward counts exactly what the router was told to do."""
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            tracer.on_step_begin()
            model(hidden())
            tracer.on_step_end()
        stats = sink.snapshots[0]["blocks.0"]
        assert stats.tokens_per_expert.tolist() == [2, 1, 1, 0]
        assert (stats.tokens, stats.calls, stats.top_k) == (2, 1, 2)
        assert stats.decoded("gate_weight_sum").tolist() == [1.0, 0.5, 0.5, 0.0]

    def test_closes_every_n_steps(self, model, sink):
        """Five steps in windows of two are two full windows and a last one of one step."""
        with moetrace.attach(model, every=2, sinks=[sink]) as tracer:
            for _ in range(5):
                tracer.on_step_begin()
                model(hidden())
                tracer.on_step_end()
        spans = [(s.first_step, s.last_step, s["blocks.0"].calls) for s in sink.snapshots]
        assert spans == [(1, 2, 2), (3, 4, 2), (5, 5, 1)]

    def test_sums_micro_batches(self, model, sink):
        """E3: steps of one to eight forwards: all forwards of a step are in its window."""
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            for micro_batches in range(1, 9):
                tracer.on_step_begin()
                for _ in range(micro_batches):
                    model(hidden())
                tracer.on_step_end()
        expected = [[2 * n, n, n, 0] for n in range(1, 9)]
        assert [counts(snapshot) for snapshot in sink.snapshots] == expected

    def test_takes_the_users_step_number(self, model, sink):
        """After a resume the steps go on from the number that the user gives."""
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            for step in (1001, 1002):
                tracer.on_step_begin(step)
                model(hidden())
                tracer.on_step_end(step)
        assert [s.last_step for s in sink.snapshots] == [1001, 1002]
        assert tracer.step == 1002

    def test_flush_without_steps_is_step_zero(self, model):
        """A loop that names no steps still sees what ran, as train at step 0."""
        tracer = moetrace.attach(model)
        model(hidden())
        snapshot = tracer.flush()
        tracer.close()
        assert (snapshot.phase, snapshot.last_step, counts(snapshot)) == ("train", 0, [2, 1, 1, 0])

    def test_flush_leaves_an_open_step_pending(self, model, sink):
        """A flush in the middle of a step shows finished steps only; the open one follows."""
        with moetrace.attach(model, every=10, sinks=[sink]) as tracer:
            tracer.on_step_begin()
            model(hidden())
            tracer.on_step_end()
            tracer.on_step_begin()
            model(hidden())
            assert counts(tracer.flush()) == [2, 1, 1, 0]
            tracer.on_step_end()
        assert [counts(s) for s in sink.snapshots] == [[2, 1, 1, 0], [2, 1, 1, 0]]

    def test_flush_waits_for_a_writer_that_is_behind(self, model, disk, tmp_path):
        """B2: a flush closes what grew while the queue of windows was full, and shows it."""
        with moetrace.attach(model, tmp_path / "run", every=1) as tracer:
            take_steps(tracer, model, 10)
            threading.Timer(0.1, disk.set).start()
            snapshot = tracer.flush()
        assert (snapshot.last_step, snapshot.health["coalesced_windows"]) == (10, 8)

    def test_a_flush_that_waits_holds_up_no_step(self, model, disk, tmp_path):
        """B2: while one thread waits for a disk that hangs, another one takes its steps."""
        with moetrace.attach(model, tmp_path / "run", every=1) as tracer:
            take_steps(tracer, model, 10)
            waiting = threading.Thread(target=tracer.flush)
            waiting.start()
            stepping = threading.Thread(target=take_steps, args=(tracer, model, 10))
            stepping.start()
            stepping.join(2.5)  # half of what the flush waits
            assert (stepping.is_alive(), waiting.is_alive()) == (False, True)
            disk.set()
            waiting.join()
        assert tracer.step == 20


class TestSampling:
    def test_counts_the_first_of_every_n_steps(self, model, sink):
        """With ``sample=3`` steps 1 and 4 of six are counted."""
        with moetrace.attach(model, every=3, sample=3, sinks=[sink]) as tracer:
            for _ in range(6):
                tracer.on_step_begin()
                model(hidden())
                tracer.on_step_end()
        calls = [(s.first_step, s.last_step, s["blocks.0"].calls) for s in sink.snapshots]
        assert calls == [(1, 1, 1), (4, 4, 1)]
        assert sink.snapshots[0].health["sample"] == 3
        assert tracer.step == 6

    def test_leaves_evaluation_alone(self, model, sink):
        """A step that is left out takes no evaluation or named phase with it."""
        with moetrace.attach(model, every=10, sample=2, sinks=[sink]) as tracer:
            for _ in range(2):
                tracer.on_step_begin()
                with tracer.phase("probe"):
                    model(hidden())
                model.eval()(hidden())
                model.train()
                tracer.on_step_end()
        calls = {}
        for snapshot in sink.snapshots:
            calls[snapshot.phase] = calls.get(snapshot.phase, 0) + snapshot["blocks.0"].calls
        assert calls == {"probe": 2, "eval": 2, "train": 0}

    @pytest.mark.parametrize("sample", [0, -1, 2.0, True])
    def test_refuses_what_is_no_number_of_steps(self, model, sample):
        """Sampling needs a whole number from 1."""
        with pytest.raises(ValueError, match="1 counts every step"):
            moetrace.attach(model, sample=sample)


class TestPhases:
    def test_eval_mode_has_windows_of_its_own(self, model, sink):
        """Forwards in eval mode never land in train; their window closes when training goes on."""
        with moetrace.attach(model, every=10, sinks=[sink]) as tracer:
            for _ in range(2):
                tracer.on_step_begin()
                model.train()(hidden())
                tracer.on_step_end()
                model.eval()(hidden())
        got = [(s.phase, s.first_step, s.last_step, counts(s)) for s in sink.snapshots]
        assert got == [
            ("eval", 1, 1, [2, 1, 1, 0]),
            ("train", 1, 2, [4, 2, 2, 0]),
            ("eval", 2, 2, [2, 1, 1, 0]),
        ]

    def test_named_phase(self, model, sink):
        """What runs inside a named phase is counted there, with or without gradients."""
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            tracer.on_step_begin()
            with tracer.phase("warm-up"), torch.no_grad():
                model(hidden())
            model(hidden())
            tracer.on_step_end()
        assert {s.phase: counts(s) for s in sink.snapshots} == {
            "warm-up": [2, 1, 1, 0],
            "train": [2, 1, 1, 0],
        }

    def test_nested_phases(self, model, sink):
        """The inner phase counts its own forwards, the outer one goes on after it."""
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            with tracer.phase("outer"):
                model(hidden())
                with tracer.phase("inner"):
                    model(hidden())
                model(hidden())
            tracer.flush()
        calls = {s.phase: s["blocks.0"].calls for s in sink.snapshots}
        assert calls == {"outer": 2, "inner": 1}

    def test_no_grad_inside_a_step_is_a_rollout(self, model, sink):
        """A forward without gradients in train mode that is never recomputed is a rollout."""
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            tracer.on_step_begin()
            with torch.no_grad():
                model(hidden())
            model(hidden())
            tracer.on_step_end()
        assert {s.phase: counts(s) for s in sink.snapshots} == {
            "train": [2, 1, 1, 0],
            "rollout": [2, 1, 1, 0],
        }

    @pytest.mark.parametrize("name", ["", "train", 3])
    def test_refuses_a_name_that_is_none(self, model, name):
        """A phase needs a name of its own."""
        tracer = moetrace.attach(model)
        with pytest.raises(ValueError, match="a phase needs a name of its own"):
            tracer.phase(name)
        tracer.close()


class TestStepsThatDidNotFinish:
    def test_a_failed_step_is_labelled_aborted(self, model, sink):
        """What a step counted that began and never ended is kept under its own label."""
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            tracer.on_step_begin()
            model(hidden())  # out of memory in the backward, say
            tracer.on_step_begin()
            model(hidden())
            tracer.on_step_end()
        assert {s.phase: counts(s) for s in sink.snapshots} == {
            "aborted": [2, 1, 1, 0],
            "train": [2, 1, 1, 0],
        }
        assert tracer.step == 1

    def test_forwards_between_steps_are_labelled_unstepped(self, model, sink):
        """A train forward between two steps is in no step, and is not lost."""
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            model(hidden())
            tracer.on_step_begin()
            model(hidden())
            tracer.on_step_end()
        assert {s.phase: counts(s) for s in sink.snapshots} == {
            "unstepped": [2, 1, 1, 0],
            "train": [2, 1, 1, 0],
        }

    def test_end_without_begin_counts_and_says_so_once(self, model, sink, caplog):
        """A loop that only ends steps is counted right and told what it misses, once."""
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            for _ in range(3):
                model(hidden())
                tracer.on_step_end()
        assert [counts(s) for s in sink.snapshots] == [[2, 1, 1, 0]] * 3
        said = [r.message for r in caplog.records if "without on_step_begin()" in r.message]
        assert len(said) == 1


class TestPadding:
    def test_the_models_own_mask(self, model, sink):
        """Tokens that the attention mask hides are counted as masked and nowhere else."""
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            tracer.on_step_begin()
            model(hidden(), attention_mask=torch.tensor([[1, 0]]))
            tracer.on_step_end()
        stats = sink.snapshots[0]["blocks.0"]
        assert stats.tokens_per_expert.tolist() == [1, 1, 0, 0]
        assert (stats.tokens, stats.masked) == (1, 1)

    def test_a_mask_does_not_outlive_its_forward(self, model, sink):
        """A forward without a mask counts all of its tokens."""
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            tracer.on_step_begin()
            model(hidden(), attention_mask=torch.tensor([[1, 0]]))
            model(hidden())
            tracer.on_step_end()
        assert counts(sink.snapshots[0]) == [3, 2, 1, 0]

    def test_a_given_mask_outranks_the_models(self, model, sink):
        """``tracer.tokens`` decides inside its block, the model's own mask outside of it."""
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            tracer.on_step_begin()
            with tracer.tokens(mask=torch.tensor([False, True])):
                model(hidden(), attention_mask=torch.tensor([[1, 0]]))
            model(hidden(), attention_mask=torch.tensor([[1, 0]]))
            tracer.on_step_end()
        assert counts(sink.snapshots[0]) == [2, 1, 1, 0]

    def test_a_mask_that_does_not_fit_is_reported(self, model, sink, caplog):
        """A mask of another size is not applied and not guessed at: all is counted, and said."""
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            tracer.on_step_begin()
            with tracer.tokens(mask=torch.ones(7)):
                model(hidden())
            tracer.on_step_end()
        assert counts(sink.snapshots[0]) == [2, 1, 1, 0]
        assert sink.snapshots[0].health["masks_not_applied"] == 1
        assert "tracer.tokens(mask=...)" in caplog.text


class TestSinks:
    def test_a_plain_class(self, model):
        """Any object with ``write`` and ``close`` is a sink."""

        class Mine:
            def __init__(self):
                self.phases, self.closed = [], False

            def write(self, snapshot):
                self.phases.append(snapshot.phase)

            def close(self):
                self.closed = True

        mine = Mine()
        with moetrace.attach(model, every=1, sinks=[mine]) as tracer:
            tracer.on_step_begin()
            model(hidden())
            tracer.on_step_end()
        assert (mine.phases, mine.closed) == (["train"], True)

    def test_a_plain_function(self, model):
        """A function becomes a sink through ``CallableSink``."""
        steps = []
        function = CallableSink(lambda snapshot: steps.append(snapshot.last_step))
        with moetrace.attach(model, every=1, sinks=[function]) as tracer:
            tracer.on_step_begin()
            model(hidden())
            tracer.on_step_end()
        assert steps == [1]

    def test_a_sink_that_raises_hurts_nobody(self, model, sink, caplog):
        """Training and the other sinks go on, the error is said once and can be looked up."""

        class Broken:
            def write(self, snapshot):
                raise RuntimeError("no more disk")

            def close(self):
                raise RuntimeError("no more disk")

        with moetrace.attach(model, every=1, sinks=[Broken(), sink]) as tracer:
            for _ in range(3):
                tracer.on_step_begin()
                model(hidden())
                tracer.on_step_end()
        assert len(sink.snapshots) == 3
        assert str(tracer.failed_sinks["Broken"]) == "no more disk"
        assert caplog.text.count("Broken raised") == 1

    def test_strict_raises_on_the_training_thread(self, model):
        """With ``strict=True`` a failing sink is an error, at the latest when the tracer closes."""

        def fail(snapshot):
            raise RuntimeError("no more disk")

        tracer = moetrace.attach(model, every=1, sinks=[CallableSink(fail)], strict=True)
        tracer.on_step_begin()
        model(hidden())
        with pytest.raises(RuntimeError, match="no more disk"):
            for _ in (tracer.on_step_end(), tracer.close()):
                pass


class TestLayers:
    def test_is_a_mask_and_not_a_missing_hook(self, sink):
        """Only the chosen layers are recorded, while every router has its hook."""
        model = ScriptedModel(TWO_TOKENS, TWO_TOKENS, num_experts=4)
        with moetrace.attach(model, every=1, sinks=[sink], layers="*.1") as tracer:
            assert all(len(block.gate._forward_hooks) == 1 for block in model.blocks)
            tracer.on_step_begin()
            model(hidden())
            tracer.on_step_end()
        assert sink.snapshots[0].layers == ("blocks.1",)

    def test_refuses_a_glob_that_matches_nothing(self, model):
        """A glob without a match lists the sites that there are."""
        with pytest.raises(ValueError, match=r"the sites are blocks\.0"):
            moetrace.attach(model, layers="encoder.*")

    def test_none_lets_a_probe_measure_a_model_without_routers(self, sink):
        """With ``layers=()`` gradients are measured on a model that has no router."""
        dense = nn.Sequential(nn.Linear(4, 4, bias=False))
        probes = [moetrace.GradientProbe()]
        with moetrace.attach(dense, every=1, sinks=[sink], layers=(), probes=probes) as tracer:
            tracer.on_step_begin()
            dense(torch.ones(1, 4)).sum().backward()
            tracer.on_gradients()
            tracer.on_step_end()
        assert sink.snapshots[0].layers == ()
        assert sink.snapshots[0].gradients[0].sum_sq == 16.0

    def test_none_records_no_router_of_a_model_that_has_them(self, sink):
        """With ``layers=()`` a model with routers gives what the probes measure, and no counts."""
        model = ScriptedModel(TWO_TOKENS, TWO_TOKENS, num_experts=4)
        probes = [moetrace.WeightProbe()]
        with moetrace.attach(model, every=1, sinks=[sink], layers=(), probes=probes) as tracer:
            tracer.on_step_begin()
            model(hidden())
            tracer.on_step_end()
        assert sink.snapshots[0].layers == ()
        assert {record.layer for record in sink.snapshots[0].weights} == {"blocks.0", "blocks.1"}

    def test_none_needs_a_probe(self, model):
        """With ``layers=()`` and no probe nothing would be recorded, which is a mistake."""
        with pytest.raises(ValueError, match="which records nothing"):
            moetrace.attach(model, layers=())


class TestMistakesAtAttach:
    def test_a_capture_that_began_before(self, model, monkeypatch):
        """In a CUDA graph that is being captured no hook would ever run again: attach says so."""
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(moetrace.MoETraceError, match="attach before the capture"):
            moetrace.attach(model)
        assert not model.blocks[0].gate._forward_hooks

    def test_no_router(self):
        """A model without routers is refused, and the message says how to name one."""
        with pytest.raises(moetrace.NoRouterFound, match=r"readers=\[\.\.\.\]"):
            moetrace.attach(nn.Sequential(nn.Linear(4, 4)))

    def test_near_misses_are_listed(self):
        """A gate that makes its choice in the block around it is named with the reason."""

        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.gate = nn.Linear(4, 8)
                self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))

        with pytest.raises(moetrace.NoRouterFound, match=r"gate \(Linear\): .*returns bare logits"):
            moetrace.attach(nn.Sequential(Block()))

    @pytest.mark.parametrize("every", [0, -1, 1.5, True, None])
    def test_every(self, model, every):
        """A window needs at least one step."""
        with pytest.raises(ValueError, match="at least 1 optimizer step"):
            moetrace.attach(model, every=every)

    def test_no_model(self):
        """Something that is no module is named by its type."""
        with pytest.raises(
            TypeError, match=r"found dict as model; attach takes a torch\.nn\.Module"
        ):
            moetrace.attach({})

    def test_a_bare_function_as_sink(self, model):
        """A function in ``sinks`` is told about ``CallableSink``."""
        with pytest.raises(TypeError, match="wrap the function in CallableSink"):
            moetrace.attach(model, sinks=[print])

    def test_second_attach(self, model):
        """A model that is traced is not traced twice, until the first tracer is closed."""
        first = moetrace.attach(model)
        with pytest.raises(moetrace.AlreadyAttached, match=r"close\(\) the other tracer first"):
            moetrace.attach(model)
        first.close()
        moetrace.attach(model).close()

    def test_foreign_folder(self, model, tmp_path):
        """A folder with somebody's files in it is not written to, and the model stays as it was."""
        (tmp_path / "thesis.tex").write_text("mine")
        with pytest.raises(moetrace.RunFolderError, match=str(tmp_path)):
            moetrace.attach(model, tmp_path)
        assert not model.blocks[0].gate._forward_hooks

    def test_folder_that_cannot_be_written(self, model, tmp_path):
        """A path below a file is refused at attach, by name."""
        (tmp_path / "file").write_text("")
        with pytest.raises(moetrace.RunFolderError, match="file"):
            moetrace.attach(model, tmp_path / "file" / "run")


class TestClose:
    def test_leaves_the_model_as_it_was(self, model):
        """After close no hook is left, and closing twice is harmless."""
        tracer = moetrace.attach(model)
        tracer.close()
        tracer.close()
        hooks = [m._forward_hooks or m._forward_pre_hooks for m in model.modules()]
        assert not any(hooks)

    def test_a_dropped_tracer_lets_go(self, model):
        """A tracer that nobody holds takes its hooks off; the model works on."""
        tracer = moetrace.attach(model)
        del tracer
        assert not model.blocks[0].gate._forward_hooks
        model(hidden())

    def test_hooks_do_not_keep_the_model_alive(self):
        """The model is freed while the tracer lives."""
        import gc
        import weakref

        model = ScriptedModel(TWO_TOKENS, num_experts=4)
        tracer = moetrace.attach(model)
        dead = weakref.ref(model)
        del model
        gc.collect()
        assert dead() is None
        tracer.close()

    def test_exit_without_close_loses_nothing(self, tmp_path):
        """A program that ends without closing its tracer has its last window in the run folder."""
        program = (
            "import torch, moetrace\n"
            "from tests.tiny import ScriptedModel\n"
            "model = ScriptedModel([[0, 1], [0, 2]], num_experts=4)\n"
            f"tracer = moetrace.attach(model, {str(tmp_path / 'run')!r}, every=100)\n"
            "tracer.on_step_begin(); model(torch.ones(2, 4)); tracer.on_step_end()\n"
            "raise SystemExit(3)\n"
        )
        assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 3
        (snapshot,) = moetrace.open_run(tmp_path / "run").snapshots()
        assert counts(snapshot) == [2, 1, 1, 0]


class TestRunFolder:
    def test_holds_what_the_sinks_saw(self, model, sink, tmp_path):
        """Reading the folder gives the same integers as the snapshots in memory."""
        with moetrace.attach(model, tmp_path / "run", every=1, sinks=[sink]) as tracer:
            for _ in range(3):
                tracer.on_step_begin()
                model(hidden())
                tracer.on_step_end()
        run = moetrace.open_run(tmp_path / "run")
        assert run.layers == ("blocks.0",)
        assert run.counts().tolist() == [[[2, 1, 1, 0]]] * 3
        for ours, theirs in zip(run.snapshots(), sink.snapshots, strict=True):
            assert ours.to_dict()["routing"] == theirs.to_dict()["routing"]

    def test_says_which_form_of_the_operator_counts(self, model, tmp_path):
        """Where no compiler was at hand a CPU counts slower, and the run folder tells."""
        with moetrace.attach(model, tmp_path / "run"):
            pass
        form = operator_form(torch.device("cpu"))
        assert moetrace.open_run(tmp_path / "run").manifest["operator"] == form


class TestSilence:
    def test_a_router_that_never_fires_is_said(self, caplog):
        """After the first window a router without a forward is named."""
        model = ScriptedModel(TWO_TOKENS, TWO_TOKENS, num_experts=4)
        with moetrace.attach(model, every=1) as tracer:
            tracer.on_step_begin()
            model.blocks[0](hidden())
            tracer.on_step_end()
        assert "1 of 2 routers counted nothing in the first window (blocks.1)" in caplog.text


class TestUserReader:
    def test_three_lines(self, sink):
        """A router that moetrace does not know is read by a reader of the user's own."""

        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.centroids = nn.Parameter(torch.ones(3, 4))

            def forward(self, x):
                return {"picked": torch.tensor([[2], [1]])}

        class OddReader:
            def matches(self, module):
                return isinstance(module, Odd)

            def read(self, module, args, kwargs, output):
                return moetrace.Routing(output["picked"])

        model = nn.Sequential(Odd())
        with moetrace.attach(model, every=1, sinks=[sink], readers=[OddReader()]) as tracer:
            tracer.on_step_begin()
            model[0](hidden())
            tracer.on_step_end()
        (stats,) = sink.snapshots[0]
        assert stats.tokens_per_expert.tolist() == [0, 1, 1]
        assert (stats.scoring, stats.mean("entropy_sum")) == ("none", None)

    def test_a_reader_that_raises_does_not_end_the_training(self, caplog):
        """An exception of the user's reader shows as a silent router."""

        class Raises:
            def matches(self, module):
                return type(module).__name__ == "ScriptedRouter"

            def read(self, module, args, kwargs, output):
                raise IndexError("list index out of range")

        model = ScriptedModel(TWO_TOKENS, num_experts=4)
        with moetrace.attach(model, every=1, readers=[Raises()]) as tracer:
            tracer.on_step_begin()
            model(hidden())
            tracer.on_step_end()
        assert "counted nothing" in caplog.text


@pytest.fixture(autouse=True)
def warnings_only(caplog):
    """Only what a user would see."""
    caplog.set_level(logging.WARNING, logger="moetrace")
