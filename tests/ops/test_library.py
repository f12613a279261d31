import os

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import moetrace
from moetrace.layout import AccumulatorLayout
from moetrace.ops import Bin, TracerState, accumulate, count, register
from moetrace.ops import library as library_module
from moetrace.ops.backward import in_backward
from tests.tiny import ScriptedModel

IDS = torch.tensor([[0, 1], [0, 2]])
LOGITS = torch.zeros(2, 4)


@pytest.fixture
def state():
    """A registered tracer state; the registry is weak, so the test holds it."""
    state = TracerState()
    register(state)
    return state


@pytest.fixture
def accumulator():
    """Sums of a router with four experts."""
    return torch.zeros(len(Bin), AccumulatorLayout(4).width, dtype=torch.int64)


def call(operator, accumulator, state, *, grad=True, training=True, ids=IDS):
    """One execution of the operator or of its body."""
    operator(accumulator, LOGITS, ids, None, None, None, grad, training, 0, state.handle)


def calls(accumulator):
    """Executions counted, per bin."""
    return accumulator[:, AccumulatorLayout(4).scalar("calls")].tolist()


class TestBins:
    @pytest.mark.parametrize("operator", [count, accumulate])
    @pytest.mark.parametrize(
        ("grad", "training", "named", "expected"),
        [
            (True, True, False, Bin.FIRST),
            (False, True, False, Bin.NO_GRAD),
            (True, False, False, Bin.OTHER),
            (False, False, False, Bin.OTHER),
            (True, True, True, Bin.OTHER),
        ],
    )
    def test_outside_a_backward(
        self, operator, accumulator, state, grad, training, named, expected
    ):
        """Grad mode, training flag and a named phase choose the bin."""
        state.named = named
        call(operator, accumulator, state, grad=grad, training=training)
        assert calls(accumulator) == [int(row == expected) for row in Bin]

    def test_recomputation_does_not_count(self, accumulator, state):
        """Inside a backward nothing is counted where nothing is undecided."""

        def block(x):
            call(count, accumulator, state, grad=torch.is_grad_enabled())
            return x * 2

        x = torch.ones(1, requires_grad=True)
        checkpoint(block, x, use_reentrant=False).sum().backward()
        assert calls(accumulator) == [1, 0, 0, 0]

    def test_recomputation_of_a_reentrant_pass_is_kept_apart(self, accumulator, state):
        """The first pass without gradients and its recomputation go to two bins."""

        def block(x):
            call(count, accumulator, state, grad=torch.is_grad_enabled())
            return x * 2

        x = torch.ones(1, requires_grad=True)
        checkpoint(block, x, use_reentrant=True).sum().backward()
        assert calls(accumulator) == [0, 1, 1, 0]


class TestNeverHurts:
    def test_unknown_tracer(self, accumulator, state):
        """A handle without a tracer means closed: nothing happens."""
        handle = state.handle
        del state
        count(accumulator, LOGITS, IDS, None, None, None, True, True, 0, handle + 10_000)
        assert accumulator.sum() == 0

    def test_paused(self, accumulator, state):
        """A paused tracer counts nothing."""
        state.paused = True
        call(count, accumulator, state)
        assert accumulator.sum() == 0

    @pytest.mark.parametrize("error", [RuntimeError, MemoryError, RecursionError, ValueError])
    def test_an_error_stays_inside(self, accumulator, state, monkeypatch, error):
        """An exception of the counting is noted and swallowed, and adds nothing."""

        def fail(*_):
            raise error("planted")

        monkeypatch.setattr(library_module, "add_on_host", fail)
        call(count, accumulator, state)
        assert accumulator.sum() == 0
        assert state.errors == {f"{error.__name__}: planted": 1}

    def test_three_errors_in_a_row_end_the_site(self, accumulator, state, monkeypatch):
        """After three failures the site is left alone; another site goes on."""
        real = library_module.add_on_host
        failing = {"on": True}

        def sometimes(*args):
            if failing["on"]:
                raise RuntimeError("planted")
            return real(*args)

        monkeypatch.setattr(library_module, "add_on_host", sometimes)
        for _ in range(5):
            call(count, accumulator, state)
        failing["on"] = False
        call(count, accumulator, state)
        other = torch.zeros_like(accumulator)
        call(count, other, state)
        assert sum(state.errors.values()) == 3
        assert (calls(accumulator), calls(other)) == ([0, 0, 0, 0], [1, 0, 0, 0])

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
    def test_an_interrupt_goes_through(self, accumulator, state, monkeypatch, stop):
        """What is not an error of ours reaches the user unchanged."""

        def interrupt(*_):
            raise stop

        monkeypatch.setattr(library_module, "add_on_host", interrupt)
        with pytest.raises(stop):
            call(count, accumulator, state)

    def test_inside_a_functional_transform(self, accumulator, state):
        """Under torch.func nothing is counted and nothing raises."""

        def loss(x):
            call(count, accumulator, state)
            return (x * x).sum()

        torch.func.grad(loss)(torch.ones(2))
        assert accumulator.sum() == 0

    def test_on_the_meta_device(self, accumulator, state):
        """A forward without data is not counted."""
        call(count, accumulator, state, ids=IDS.to("meta"))
        assert (accumulator.sum(), state.errors) == (0, {})

    def test_forked_child(self, accumulator, state):
        """A forked child does not count into its parent's run."""
        pid = os.fork()
        if pid == 0:
            call(count, accumulator, state)
            os._exit(int(accumulator.sum() != 0))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class TestCompiled:
    def test_is_one_node_without_a_break(self, accumulator, state):
        """A compiled function holds the operator once and counts each call."""
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        @torch.compile(fullgraph=True, backend=backend)
        def run(x):
            accumulate(accumulator, LOGITS, IDS, None, None, None, True, True, 0, state.handle)
            return x + 1

        torch._dynamo.reset()
        run(torch.ones(1))
        run(torch.ones(1))
        nodes = [node for node in graphs[0].graph.nodes if "accumulate" in str(node.target)]
        assert (len(graphs), len(nodes)) == (1, 1)
        assert calls(accumulator) == [2, 0, 0, 0]


class TestInBackward:
    def test_by_both_private_names(self, monkeypatch):
        """The graph task id and its fallback agree, outside and inside a backward."""
        from moetrace.ops import backward as module

        first = module._resolve()
        monkeypatch.delattr(torch._C, "_current_graph_task_id")
        fallback = module._resolve()
        seen = []
        x = torch.ones(1, requires_grad=True)
        x.register_hook(lambda gradient: seen.append((first(), fallback())))
        x.sum().backward()
        assert (first(), fallback(), seen) == (False, False, [(True, True)])

    def test_outside(self):
        """Outside of any backward the answer is no."""
        assert in_backward() is False


class TestAbstractForwards:
    def test_fake_tensors_are_left_alone(self):
        """A forward with fake tensors runs as it would untraced, and is not counted."""
        from torch._subclasses import FakeTensorMode

        model = ScriptedModel([[0, 1], [0, 2]], num_experts=4)
        with moetrace.attach(model) as tracer:
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                model(mode.from_tensor(torch.ones(2, 4)))
            assert tracer.flush() is None

    def test_a_recorded_graph_holds_nothing_of_ours(self):
        """A graph that make_fx records is the untraced one, and its recording is not counted."""
        from torch.fx.experimental.proxy_tensor import make_fx

        model = ScriptedModel([[0, 1], [0, 2]], num_experts=4)
        untraced = len(make_fx(model)(torch.ones(2, 4)).graph.nodes)
        with moetrace.attach(model) as tracer:
            assert len(make_fx(model)(torch.ones(2, 4)).graph.nodes) == untraced
            assert tracer.flush() is None
