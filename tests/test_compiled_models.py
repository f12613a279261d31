"""What compiling and tracing do to each other: no break, no frame more, no count less.

Rows A14 and A15 of the fault list: each test names its row. The exactly-once matrix holds the
compositions with checkpointing.
"""

import copy

import pytest
import torch
import torch._dynamo.testing

import moetrace
from moetrace.sinks import MemorySink
from tests.matrix.training import as_lists
from tests.oracle import Oracle
from tests.tiny import ScriptedBlock, ScriptedModel, batch, family, seeded

COUNTS = [2, 1, 1, 0]
LENGTHS = (12, 10, 12, 9, 7)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def deep():
    """A model of nine layers: more than dynamo compiles one function for (8 times)."""
    return family("Qwen3Moe", num_hidden_layers=9)


def lengths(model, forward, tracer=None, oracle=None):
    """A step for each length, so that shapes become dynamic; the losses."""
    losses = []
    for step, length in enumerate(LENGTHS):
        ids, mask = batch(step, length=length)
        if tracer:
            tracer.on_step_begin()
        if oracle:
            with oracle.says("train", mask):
                loss = forward(input_ids=ids, attention_mask=mask, labels=ids).loss
        else:
            loss = forward(input_ids=ids, attention_mask=mask, labels=ids).loss
        loss.backward()
        losses.append(loss.detach())
        model.zero_grad()
        if tracer:
            tracer.on_step_end()
    return losses


def totals(sink):
    """Counts per layer over all train windows, as lists."""
    total = {}
    for snapshot in sink.snapshots:
        for stats in snapshot:
            total[stats.layer] = total.get(stats.layer, 0) + stats.tokens_per_expert
    return {layer: row.tolist() for layer, row in total.items()}


class TestCompiledAfterAttach:
    def test_many_blocks_and_lengths(self, deep):
        """A14: nine blocks compiled one by one, at changing lengths, need no frame more."""
        frames, losses, sink = [], [], MemorySink()
        for traced in (False, True):
            torch._dynamo.reset()
            model = copy.deepcopy(deep)
            counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
            for layer in model.model.layers:
                layer.compile(fullgraph=True, backend=counter)
            tracer = moetrace.attach(model, every=1, sinks=[sink]) if traced else None
            losses.append(lengths(model, model, tracer))
            frames.append(counter.frame_count)
            if tracer:
                tracer.close()
        plain = copy.deepcopy(deep)
        layers = [f"model.layers.{n}.mlp" for n in range(9)]
        oracle = Oracle(plain, [(layer, f"{layer}.gate") for layer in layers])
        lengths(plain, plain, oracle=oracle)
        assert totals(sink) == as_lists(oracle.counts)["train"]
        assert frames[1] <= frames[0]
        assert all(map(torch.equal, *losses))

    def test_breaks_nothing(self):
        """A14: dynamo's own explanation of the model lists no break and one graph, as untraced."""
        found = []
        ids, mask = batch(0)
        for traced in (False, True):
            model = copy.deepcopy(seeded("Qwen3Moe"))
            tracer = moetrace.attach(model) if traced else None
            said = torch._dynamo.explain(model)(input_ids=ids, attention_mask=mask)
            found.append((said.graph_count, said.graph_break_count))
            if tracer:
                tracer.close()
        assert found == [(1, 0), (1, 0)]

    @pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
    def test_a_hundred_calls(self, backend):
        """A14: a hundred calls of one compiled graph count a hundred times, in every backend."""
        model = ScriptedModel([[0, 1], [0, 2]], num_experts=4)
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        with moetrace.attach(model, every=100) as tracer:
            for _ in range(100):
                tracer.on_step_begin()
                compiled(torch.ones(2, 4)).sum().backward()
                tracer.on_step_end()
            snapshot = tracer.flush()
        assert snapshot["blocks.0"].tokens_per_expert.tolist() == [200, 100, 100, 0]


def helper(block, hidden):
    """Routes outside of any module's forward, after a graph break."""
    torch._dynamo.graph_break()
    block.gate(hidden)
    return block.experts(hidden)


class BrokenBlock(ScriptedBlock):
    """A graph break before the router."""

    def forward(self, hidden):
        """What runs on after the break is another function for the compiler."""
        hidden = hidden * 2
        torch._dynamo.graph_break()
        self.gate(hidden)
        return self.experts(hidden)


class HelpedBlock(ScriptedBlock):
    """The router is called by a function of the user's."""

    def forward(self, hidden):
        """Pass on."""
        return helper(self, hidden)


class TestCompiledBeforeAttach:
    @pytest.mark.parametrize("block", [ScriptedBlock, BrokenBlock, HelpedBlock])
    @pytest.mark.parametrize("way", ["whole", "in place", "per block"])
    def test_is_counted(self, block, way):
        """A15: a model that ran compiled, breaks in its graph or not, is counted from attach on."""
        model = ScriptedModel([[0, 1], [0, 2]], num_experts=4)
        model.blocks[0].__class__ = block
        forward = torch.compile(model, backend="aot_eager") if way == "whole" else model
        if way != "whole":
            (model if way == "in place" else model.blocks[0]).compile(backend="aot_eager")
        for _ in range(2):
            forward(torch.ones(2, 4))
        with moetrace.attach(model, every=1) as tracer:
            tracer.on_step_begin()
            forward(torch.ones(2, 4)).sum().backward()
            tracer.on_step_end()
            assert tracer.flush()["blocks.0"].tokens_per_expert.tolist() == COUNTS

    def test_again_and_again(self):
        """A15: attach, close and attach again on one compiled model: each tracer counts its own."""
        model = ScriptedModel([[0, 1], [0, 2]], num_experts=4)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for _ in range(3):
            compiled(torch.ones(2, 4))
            with moetrace.attach(model, every=1) as tracer:
                tracer.on_step_begin()
                compiled(torch.ones(2, 4)).sum().backward()
                tracer.on_step_end()
                assert tracer.flush()["blocks.0"].tokens_per_expert.tolist() == COUNTS
