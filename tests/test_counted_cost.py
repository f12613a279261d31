"""What one router call and one step end may cost, in counts that do not vary from run to run.

The figures are those of ``benchmarks/counted_cost.py``, run as a user would run it.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import moetrace
from moetrace.ops.host_form import has_host_kernel
from tests.tiny import ScriptedModel, batch, family

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "counted_cost.py"
SMALL = "T=256 E=64 K=8"
LARGE = "T=16384 E=128 K=8"


@pytest.fixture(scope="module")
def counted():
    """Everything that the benchmark counts."""
    command = [sys.executable, str(BENCHMARK), "--counts"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)


class TestRouterCall:
    @pytest.mark.parametrize("size", [SMALL, LARGE])
    def test_a_dispatch_mode_sees_one_operator(self, counted, size):
        """Whatever watches the dispatcher sees one operator of ours per router call."""
        seen = counted["router_call"][size]["seen_by_the_model"]
        assert seen["by_name"] == {"moetrace::accumulate": 1}

    @pytest.mark.parametrize("size", [SMALL, LARGE])
    def test_never_waits_for_the_device(self, counted, size):
        """On a device no value is read back, no shape depends on data, no rank is talked to."""
        composition = counted["router_call"][size]["composition"]
        assert composition["syncs_by_name"] == {}
        assert composition["collectives"] == 0

    @pytest.mark.skipif(not has_host_kernel(), reason="built without a C compiler")
    @pytest.mark.parametrize("size", [SMALL, LARGE])
    def test_nothing_inside(self, counted, size):
        """On a CPU the body runs no operator and makes no array: the kernel takes addresses."""
        inside = counted["router_call"][size]["inside"]
        assert (inside["operators"], inside["syncs"], inside["collectives"]) == (0, 0, 0)

    @pytest.mark.parametrize("size", [SMALL, LARGE])
    def test_operators_of_the_composition(self, counted, size):
        """The composition runs at most 54 aten operators, whatever the size."""
        assert counted["router_call"][size]["composition"]["operators"] <= 54

    def test_memory_inside(self, counted):
        """On a CPU the body allocates no tensor; the composition at most four times the logits."""
        call, logits = counted["router_call"][LARGE], 16384 * 128 * 4
        assert call["inside"]["bytes_allocated"] == 0
        assert call["composition"]["bytes_allocated"] <= 4 * logits


class TestStepEnd:
    @pytest.mark.parametrize("routers", ["1 routers", "16 routers"])
    @pytest.mark.parametrize("when", ["between_windows", "closing_a_window"])
    def test_never_waits_for_the_device(self, counted, routers, when):
        """A step end reads nothing back, also when it closes a window, and talks to no rank."""
        end = counted["step_end"][routers][when]
        assert end["syncs_by_name"] == {}
        assert end["collectives"] == 0

    @pytest.mark.parametrize("routers", ["1 routers", "16 routers"])
    @pytest.mark.parametrize("when", ["between_windows", "closing_a_window"])
    def test_three_operators(self, counted, routers, when):
        """A step end runs three operators on a device, however many routers there are."""
        assert counted["step_end"][routers][when]["operators"] == 3

    @pytest.mark.parametrize("routers", ["1 routers", "16 routers"])
    def test_one_copy_a_window(self, counted, routers):
        """A closed window starts one copy per device; a step between windows starts none."""
        ends = counted["step_end"][routers]
        assert ends["closing_a_window"]["host_copies"] == 1
        assert ends["between_windows"]["host_copies"] == 0


class TestTheCounting:
    def test_sees_what_it_looks_for(self, counted):
        """A callback that reads its figures back shows as just that: the counting is not blind."""
        syncs = counted["seed_style"][SMALL]["syncs_by_name"]
        assert syncs == {"aten::_local_scalar_dense": 6, "aten::bincount": 1, "Tensor.cpu": 1}


class TestHooks:
    @pytest.mark.parametrize("training", [True, False])
    def test_return_none(self, training):
        """Every hook returns None, in training and in evaluation, and so replaces nothing."""
        model = family("Qwen3Moe").train(training)
        returned, hooked = [], 0
        with moetrace.attach(model):
            for module in model.modules():
                for hooks in (module._forward_hooks, module._forward_pre_hooks):
                    for key, hook in hooks.items():
                        hooks[key] = _noting(hook, returned)
                        hooked += 1
            ids, mask = batch(0)
            model(input_ids=ids, attention_mask=mask)
        assert hooked >= 3, "two routers and a mask"
        assert returned == [None] * hooked

    def test_return_none_where_nothing_can_be_read(self):
        """A router whose output no reader understands is left alone: the hook returns None."""
        model = ScriptedModel([[0, 1]], num_experts=4)
        with moetrace.attach(model):
            gate = model.blocks[0].gate
            (hook,) = gate._forward_hooks.values()
            assert hook(gate, (), {}, "no routing") is None
            assert hook(gate, (), {}, (torch.zeros(2, 4), None)) is None


def _noting(hook, returned):
    def noted(*args):
        returned.append(hook(*args))
        return returned[-1]

    return noted
