"""What discover says of what attach leaves out: why, and what to do."""

import pytest
import torch
from torch import nn

import moetrace
from tests.readers.test_traps import Deep, GatedMlp, equal


class CallersChoice(nn.Module):
    """Experts that the caller names, as in ViTPose."""

    def __init__(self):
        super().__init__()
        self.experts = equal(4)

    def forward(self, x, index):
        """The rows through the expert of that index."""
        return self.experts[index](x)


class SoftRouting(nn.Module):
    """Slots per expert, filled by every token."""

    def __init__(self):
        super().__init__()
        self.slots = nn.Parameter(torch.randn(4, 2, 8))
        self.experts = equal(4)

    def forward(self, x):
        """Nothing of interest here."""
        return x


class WithinGroups(nn.Module):
    """A gate with a matrix per group."""

    def __init__(self):
        super().__init__()
        self.inner_gate = nn.Module()
        self.inner_gate.weight = nn.Parameter(torch.randn(4, 8, 2))


class BareGate(nn.Module):
    """Scores whose use no source shows."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(8, 4), equal(4)

    def forward(self, x):
        """The scores go somewhere else."""
        return self.elsewhere(self.gate(x))

    elsewhere = staticmethod(torch.relu)


class HasNoNumber:
    """A reader of the user's for what has no number of experts."""

    def matches(self, module):
        """Every identity."""
        return isinstance(module, nn.Identity)

    def read(self, module, args, kwargs, output):
        """Nothing."""
        return None


@pytest.mark.parametrize(
    ("model", "why", "what"),
    [
        (CallersChoice, "nothing beside them has a matrix of 4 rows", "pass a reader for a module"),
        (SoftRouting, "every token goes to all 4 experts", "nothing can be done about it"),
        (WithinGroups, "a matrix for each of 4 groups", "counted where their gate is read"),
        (BareGate, "returns bare logits of 4 experts", "ChoiceReader"),
        (GatedMlp, "a matrix of 16 rows, but no experts beside it", "pass a reader for it"),
        (Deep, "nothing here is called a router", "if it chooses among them, pass a reader"),
    ],
)
class TestNearMisses:
    def test_says_why_and_what_to_do(self, model, why, what):
        """Each near miss has its reason, and what the user can do, in the site that is listed."""
        (site,) = moetrace.discover(nn.ModuleDict({"block": model()}))
        assert not site.taken
        assert site.name.startswith("block")
        assert why in site.reason
        assert what in site.reason + site.remedy

    def test_attach_says_the_same(self, model, why, what):
        """Where nothing else is there, attach raises with the same words."""
        with pytest.raises(moetrace.NoRouterFound) as caught:
            moetrace.attach(nn.ModuleDict({"block": model()}))
        assert why in str(caught.value)
        assert what in str(caught.value)


def test_a_reader_without_a_number_of_experts():
    """A module that a reader of the user's matches needs its number of experts in some place."""
    (site,) = moetrace.discover(nn.Sequential(nn.Identity()), readers=[HasNoNumber()])
    assert site.reason.startswith("a reader of yours matches it, but its number of experts")


def test_experts_beside_what_is_traced(caplog):
    """Beside a router that is traced, one line names the experts that nothing counts."""
    from tests.tiny import ScriptedBlock

    blocks = {"free": CallersChoice(), "dense": GatedMlp(), "routed": ScriptedBlock([[0]], 4)}
    with moetrace.attach(nn.ModuleDict(blocks)):
        pass
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("experts that are not counted: free: holds 4 experts")
