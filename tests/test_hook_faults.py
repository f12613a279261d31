"""What goes wrong in a hook, or around one, never reaches the training and never leaves the counts.

Rows A1 to A8 of the fault list: each test names its row.
"""

import copy
import gc
import logging
import os
import signal
import traceback

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import moetrace
from moetrace.ops import library
from moetrace.sinks import MemorySink
from tests.matrix.training import as_lists, labelled
from tests.oracle import Oracle
from tests.tiny import ScriptedModel, batch, seeded

FAMILY = "Qwen3Moe"
CALLS = 6
"""Router calls in three steps of a model with two routers."""

ERRORS = (
    RuntimeError,
    ValueError,
    KeyError,
    AssertionError,
    StopIteration,
    RecursionError,
    MemoryError,
    torch.OutOfMemoryError,
)
INTERRUPTS = (KeyboardInterrupt, SystemExit, GeneratorExit)


def steps(model, tracer=None, count=3):
    """A few steps; every tensor of the training."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    left = []
    for step in range(count):
        if tracer:
            tracer.on_step_begin()
        ids, mask = batch(step)
        loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
        loss.backward()
        left += [loss.detach(), *(p.grad.clone() for p in model.parameters())]
        optimizer.step()
        optimizer.zero_grad()
        if tracer:
            tracer.on_step_end()
    return [*left, *(p.detach().clone() for p in model.parameters()), torch.get_rng_state()]


def fresh():
    """A copy of the tiny model."""
    return copy.deepcopy(seeded(FAMILY))


@pytest.fixture(scope="module")
def untraced():
    """What the training leaves where nobody watches."""
    return steps(fresh())


def same(one, other):
    """Whether two runs left the same tensors, bit for bit."""
    return len(one) == len(other) and all(map(torch.equal, one, other))


def failing(monkeypatch, error, fails):
    """Let the counting raise at the calls for which ``fails`` holds, counted from 1."""
    real, calls = library.add_on_host, iter(range(1, 1_000_000))

    def sometimes(*args):
        if fails(next(calls)):
            raise error
        return real(*args)

    monkeypatch.setattr(library, "add_on_host", sometimes)


def tokens(snapshots, phase):
    """Tokens per layer over all windows of a phase."""
    return [
        sum(s[layer].tokens for s in snapshots if s.phase == phase)
        for layer in ("model.layers.0.mlp", "model.layers.1.mlp")
    ]


class TestErrorsOfOurs:
    @pytest.mark.parametrize("call", range(1, CALLS + 1))
    def test_at_every_call(self, monkeypatch, untraced, call):
        """A1: whichever call of the counting raises, the training is the same, and it is told."""
        failing(monkeypatch, RuntimeError("planted"), lambda number: number == call)
        sink = MemorySink()
        with moetrace.attach(model := fresh(), every=3, sinks=[sink]) as tracer:
            assert same(steps(model, tracer), untraced)
        lost = [19, 0] if call % 2 else [0, 19]
        assert tokens(sink.snapshots, "train") == [57 - lost[0], 57 - lost[1]]
        assert sink.snapshots[0].health["errors"] == 1

    @pytest.mark.parametrize("error", ERRORS)
    def test_of_every_class(self, monkeypatch, caplog, error):
        """A1: no exception class gets out; it is said once; three in a row end the site."""
        failing(monkeypatch, error("planted"), lambda number: True)
        sink = MemorySink()
        with (
            caplog.at_level(logging.WARNING, "moetrace"),
            moetrace.attach(model := fresh(), every=1, sinks=[sink]) as tracer,
        ):
            assert same(steps(model, tracer, count=4), steps(fresh(), count=4))
        said = [text for text in caplog.messages if "could not be counted" in text]
        assert len(said) == 1
        assert "planted" in said[0]
        assert sink.snapshots[-1].health["errors"] == 2 * 3
        assert tokens(sink.snapshots, "train") == [0, 0]

    @pytest.mark.parametrize("interrupt", INTERRUPTS)
    def test_an_interrupt_goes_through(self, monkeypatch, interrupt):
        """A2: an interrupt in the counting ends the step, and the next steps are counted right."""
        failing(monkeypatch, interrupt(), lambda number: number == 2)
        sink = MemorySink()
        with moetrace.attach(model := fresh(), every=1, sinks=[sink]) as tracer:
            with pytest.raises(interrupt):
                steps(model, tracer)
            steps(model, tracer)
        assert tokens(sink.snapshots, "train") == [57, 57]
        assert tokens(sink.snapshots, "aborted") == [19, 0]

    def test_a_signal_goes_through(self, monkeypatch):
        """A2: Ctrl-C while a hook counts is the user's KeyboardInterrupt, and nothing is stuck."""
        real, calls = library.add_on_host, iter(range(1, 1000))

        def interrupted(*args):
            if next(calls) == 1:
                signal.raise_signal(signal.SIGINT)
            return real(*args)

        monkeypatch.setattr(library, "add_on_host", interrupted)
        # Started in the background, as by a CI, a process ignores the signal.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with moetrace.attach(model := fresh(), every=1, sinks=[sink := MemorySink()]) as tracer:
                with pytest.raises(KeyboardInterrupt):
                    steps(model, tracer)
                steps(model, tracer)
        finally:
            signal.signal(signal.SIGINT, before)
        assert tokens(sink.snapshots, "train") == [57, 57]


class TestErrorsOfTheModel:
    @pytest.mark.parametrize("always_call", [False, True])
    def test_are_those_of_the_untraced_model(self, always_call):
        """A3: the model's own exception is the same, and what the step counted is aborted."""
        raised = []
        sink = MemorySink()
        for traced in (False, True):
            model = fresh()

            def broken(module, args):
                raise ValueError("the model's own mistake")

            model.model.layers[1].mlp.gate.register_forward_pre_hook(broken)
            if always_call:
                gate = model.model.layers[1].mlp.gate
                gate.register_forward_hook(lambda *_: None, always_call=True)
            tracer = moetrace.attach(model, every=1, sinks=[sink]) if traced else None
            with pytest.raises(ValueError, match="the model's own mistake") as caught:
                steps(model, tracer)
            raised.append(caught.value)
            if tracer:
                tracer.close()
        untraced, traced = raised
        assert (type(traced), traced.args) == (type(untraced), untraced.args)
        assert (traced.__context__, traced.__cause__) == (None, None)
        files = [frame.filename for frame in traceback.extract_tb(traced.__traceback__)]
        ours = os.path.dirname(moetrace.__file__) + os.sep
        assert not [file for file in files if file.startswith(ours)]
        assert tokens(sink.snapshots, "aborted") == [19, 0]
        assert tokens(sink.snapshots, "train") == [0, 0]


class Passing(TorchDispatchMode):
    """A dispatch mode that changes nothing."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Do what was asked."""
        return function(*args, **(kwargs or {}))


class TestUnchanged:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("deterministic", [False, True])
    def test_bits(self, dtype, deterministic):
        """A4: in each precision, deterministic or not, every bit is that of the untraced twin."""
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(deterministic)
        try:
            untraced = steps(fresh().to(dtype))
            with moetrace.attach(model := fresh().to(dtype), every=2) as tracer:
                assert same(steps(model, tracer), untraced)
        finally:
            torch.use_deterministic_algorithms(before)

    def test_returns_none_on_every_path(self, monkeypatch):
        """A5: whatever a router returns and whoever watches, the hook returns None."""
        model = fresh()
        with moetrace.attach(model) as tracer:
            gate = model.model.layers[0].mlp.gate
            (hook,) = gate._forward_hooks.values()
            hidden = torch.randn(3, 32)
            good = gate(hidden)
            outputs = [
                good,
                None,
                (),
                hidden,
                "text",
                {"logits": hidden},
                [*good],
                good[:2],
                tuple(part[:0] for part in good),
                tuple(part.to("meta") for part in good),
                tuple(part[0] for part in good),
                (*good[:2], good[2].float()),
                (good[0], good[1], good[2] + 10**6),
                (good[0] * float("nan"), *good[1:]),
            ]
            assert [hook(gate, (hidden,), {}, output) for output in outputs] == [None] * 14
            with Passing():
                assert hook(gate, (hidden,), {}, good) is None
            for tracing in ("torch.compiler.is_exporting", "moetrace.probes.execution._is_tracing"):
                with monkeypatch.context() as patched:
                    patched.setattr(tracing, lambda: True)
                    assert hook(gate, (hidden,), {}, good) is None
            with monkeypatch.context() as patched:
                patched.setattr(hook, "reader", None)  # whatever it is asked, it raises
                assert hook(gate, (hidden,), {}, good) is None
            assert hook(gate.eval(), (hidden,), {}, good) is None
            tracer.close()
            assert hook(gate, (hidden,), {}, good) is None

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    def test_saves_nothing_for_the_backward(self):
        """A7: autograd keeps as many tensors as for the untraced model, checkpointed or not."""
        found = []
        for checkpointed in (False, True):
            for traced in (False, True):
                model = fresh()
                if checkpointed:
                    model.gradient_checkpointing_enable({"use_reentrant": False})
                tracer = moetrace.attach(model) if traced else None
                kept = []

                def keep(tensor, kept=kept):
                    kept.append(tuple(tensor.shape))
                    return tensor

                with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                    steps(model, count=1)
                found.append(kept)
                if tracer:
                    tracer.close()
        assert found[0] == found[1]
        assert found[2] == found[3]
        assert len(found[0]) > 20

    def test_holds_no_graph(self):
        """A8: after many steps no tensor with a graph behind it is left over."""
        model = ScriptedModel([[0, 1], [0, 2]], num_experts=4)
        with moetrace.attach(model, every=10) as tracer:
            counts = []
            for step in range(500):
                tracer.on_step_begin()
                model(torch.ones(2, 4)).sum().backward()
                tracer.on_step_end()
                if step in (50, 499):
                    gc.collect()
                    counts.append(
                        sum(
                            isinstance(o, torch.Tensor) and o.grad_fn is not None for o in tensors()
                        )
                    )
        assert counts[1] == counts[0]


def tensors():
    """Every tensor that the collector knows."""
    return [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)]


def nested(model, reentrant):
    """A checkpoint around the whole model and one around each layer inside it."""
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return whole(model, reentrant)


def whole(model, reentrant):
    """A checkpoint around the whole model."""

    def forward(ids, mask):
        def run(_, ids, mask):
            return model(input_ids=ids, attention_mask=mask, labels=ids).loss

        # A reentrant checkpoint recomputes only where an input asks for gradients.
        return checkpoint(
            run, torch.ones(1, requires_grad=True), ids, mask, use_reentrant=reentrant
        )

    return forward


def per_layer(model, reentrant):
    """A checkpoint around each layer."""
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask, labels=ids).loss


def once(loss, model):
    """One backward."""
    loss.backward()


def twice(loss, model):
    """Two backwards through one graph."""
    loss.backward(retain_graph=True)
    loss.backward()


def double(loss, model):
    """A gradient of a gradient."""
    weight = model.lm_head.weight
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    gradient.square().sum().backward()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
class TestCheckpointing:
    @pytest.mark.parametrize(
        ("wrap", "reentrant", "backward"),
        [
            (per_layer, True, once),
            (per_layer, False, once),
            (whole, True, once),
            (whole, False, once),
            (nested, True, once),
            (nested, False, once),
            (per_layer, False, twice),
            (nested, False, twice),
            (per_layer, False, double),
        ],
    )
    def test_counts_once(self, wrap, reentrant, backward):
        """A6: nested, around everything, stopped early, run backward twice: counted once."""
        model, sink = fresh(), MemorySink()
        forward = wrap(model, reentrant)
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            for step in range(2):
                tracer.on_step_begin()
                backward(forward(*batch(step)), model)
                tracer.on_step_end()
        plain = fresh()
        layers = [f"model.layers.{n}.mlp" for n in range(2)]
        oracle = Oracle(plain, [(layer, f"{layer}.gate") for layer in layers])
        for step in range(2):
            ids, mask = batch(step)
            with oracle.says(("train", step), mask):
                plain(input_ids=ids, attention_mask=mask)
        assert labelled(sink.snapshots) == as_lists(oracle.counts)
