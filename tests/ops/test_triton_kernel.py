import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moetrace.layout import SCORINGS, AccumulatorLayout
from moetrace.ops import Bin, TracerState, count, fused, register
from moetrace.ops.fused import add_fused, operator_form
from moetrace.ops.host_form import has_host_kernel
from moetrace.ops.reference import routing_delta
from moetrace.routing import Routing

LOGITS, IDS = torch.randn(3, 8), torch.tensor([[0, 1], [1, 2], [7, 0]])
WIDTH = AccumulatorLayout(8).width
INTERPRETED = Path(__file__).parent / "interpreted_kernel.py"


class Subclass(torch.Tensor):
    """Stands for a DTensor."""


@pytest.fixture
def unresolved(monkeypatch):
    """No kernel was asked for yet, and the CPU passes for a device that has one."""
    kernel = fused._Kernel()
    monkeypatch.setattr(fused, "_kernel", kernel)
    monkeypatch.setattr(fused, "_DEVICES", {"cpu"})
    return kernel


def row():
    """The sums of a router with eight experts."""
    return torch.zeros(WIDTH, dtype=torch.int64)


class TestKernel:
    @pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
    def test_under_the_interpreter(self):
        """The kernel equals the composition: every test of ``interpreted_kernel.py`` passes."""
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", INTERPRETED],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        assert " passed" in done.stdout

    def test_is_not_imported_for_a_cpu(self):
        """Counting on a CPU imports no Triton."""
        program = (
            "import sys, torch; from moetrace.ops import TracerState, count, register\n"
            "from moetrace.ops.fused import operator_form\n"
            "s = TracerState(); register(s); a = torch.zeros(4, 35, dtype=torch.int64)\n"
            "i = torch.zeros(2, 1, dtype=torch.int64)\n"
            "count(a, torch.zeros(2, 8), i, None, None, None, True, True, 0, s.handle)\n"
            "operator_form(torch.device('cpu'))\n"
            "assert a.any() and not s.errors\n"
            "sys.exit('moetrace.ops.triton_kernel' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


class TestFallsBack:
    def test_without_triton(self, unresolved, monkeypatch, caplog):
        """Without Triton the composition counts; that is said once and is no error."""
        monkeypatch.setitem(sys.modules, "moetrace.ops.triton_kernel", None)
        monkeypatch.setattr("moetrace.ops.library.add_on_host", lambda *_: None)
        state = TracerState()
        register(state)
        accumulator = torch.zeros(len(Bin), WIDTH, dtype=torch.int64)
        for _ in range(2):
            count(accumulator, LOGITS, IDS, None, None, None, True, True, 0, state.handle)
        assert torch.equal(
            accumulator[Bin.FIRST], 2 * routing_delta(Routing(IDS, LOGITS), None, 8, 0)
        )
        assert not state.errors
        (said,) = [record.message for record in caplog.records if "fused" in record.message]
        assert "install a triton that fits torch" in said

    def test_where_the_kernel_does_not_build(self, unresolved):
        """A launch that fails hands this forward and all later ones to the composition."""
        launches = []

        def fail(*_):
            launches.append(1)
            raise RuntimeError("no compiler")

        unresolved.add = fail
        assert not add_fused(row(), Routing(IDS, LOGITS), None, 8, 0)
        assert not add_fused(row(), Routing(IDS, LOGITS), None, 8, 0)
        assert (len(launches), operator_form(torch.device("cpu"))) == (
            1,
            "torch composition, since the fused kernel failed: RuntimeError: no compiler",
        )

    @pytest.mark.parametrize("error", [ValueError, torch.OutOfMemoryError])
    def test_an_error_of_the_forward_is_none_of_the_kernel(self, unresolved, error):
        """Bad shapes or a full device concern one forward; the kernel stays in use."""

        def fail(*_):
            raise error("planted")

        unresolved.add = fail
        with pytest.raises(error, match="planted"):
            add_fused(row(), Routing(IDS, LOGITS), None, 8, 0)
        assert operator_form(torch.device("cpu")) == "fused kernel"

    @pytest.mark.parametrize(
        ("routing", "num_experts", "scoring"),
        [
            (Routing(IDS), 8, 0),
            (Routing(None, LOGITS, None, LOGITS > 0), 8, 0),
            (Routing(IDS, torch.zeros(3, 1025)), 1025, 0),
            (Routing(IDS, LOGITS), 8, SCORINGS.index("probabilities")),
            (Routing(IDS, LOGITS.int()), 8, 0),
            (Routing(IDS, LOGITS, torch.ones(3, 1)), 8, 0),
            (Routing(IDS, LOGITS.as_subclass(Subclass)), 8, 0),
            (Routing(IDS.to("meta"), LOGITS), 8, 0),
            (Routing(IDS, torch.zeros(3, 9)), 8, 0),
        ],
        ids=["logits", "map", "many", "scoring", "dtype", "weights", "type", "device", "width"],
    )
    def test_what_the_kernel_does_not_take(self, unresolved, routing, num_experts, scoring):
        """Such a forward is for the composition; the kernel is not even asked."""
        unresolved.add = pytest.fail
        width = AccumulatorLayout(num_experts).width
        sums = torch.zeros(width, dtype=torch.int64)
        assert not add_fused(sums, routing, None, num_experts, scoring)


class TestOperatorForm:
    def test_on_a_cpu(self):
        """On a CPU the host kernel counts, elsewhere without a kernel the composition."""
        kernel, none = "host kernel", "numpy, since no host kernel was built"
        assert operator_form(torch.device("cpu")) == (kernel if has_host_kernel() else none)
        assert operator_form(torch.device("xpu")) == "torch composition"

    def test_where_there_is_the_kernel(self, unresolved):
        """Where the kernel was found it is named."""
        unresolved.add = print
        assert operator_form(torch.device("cpu")) == "fused kernel"
