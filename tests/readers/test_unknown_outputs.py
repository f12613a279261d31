"""Whatever a router returns is counted, or skipped with a reason, and never raises."""

import logging

import pytest
import torch
from torch import nn

import moetrace
from tests.readers.unknown_outputs import (
    COUNTED,
    IDS,
    ON_NO_DEVICE,
    SCORES,
    SKIPPED,
    WEIGHTS,
    E,
    K,
    T,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, about the layouts it has
D = 8


class Router(nn.Module):
    """Chooses, and returns whatever it is told to."""

    def __init__(self, make):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(E, D))
        self.top_k, self.make = K, make

    def forward(self, hidden):
        """Nothing but the top-k in its source says that it chooses."""
        _, _ = torch.topk(hidden @ self.weight.t(), self.top_k)
        self.returned = self.make()
        return self.returned


class Experts(nn.Module):
    """Stacked experts that are called with nothing but the tokens."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(E, D, D))

    def forward(self, hidden):
        """All of them on everything."""
        return hidden @ self.weight.mean(0)


class Block(nn.Module):
    """Takes what its router returned, whatever it is."""

    def __init__(self, make):
        super().__init__()
        self.gate, self.experts = Router(make), Experts()

    def forward(self, hidden):
        """The block sees the same object that the router has returned."""
        assert self.gate(hidden.reshape(-1, D)) is self.gate.returned
        return self.experts(hidden)


def seen(make, readers=None):
    """One step of training: the record of the block, its health, and the diagnosis."""
    model = nn.Sequential(Block(make))
    with moetrace.attach(model, every=1, readers=readers) as tracer:
        tracer.on_step_begin()
        model(torch.randn(2, 3, D)).square().mean().backward()
        tracer.on_step_end()
        snapshot = tracer.flush()
        return snapshot["0"], snapshot.health, tracer.doctor()


class TestUnknownOutputs:
    @pytest.mark.parametrize("name", SKIPPED)
    def test_skipped_with_a_reason(self, name, caplog):
        """What is no routing counts as unread: in health, in the log and by the doctor, with why.

        No metric has a value, and each says why not.
        """
        make, reason = SKIPPED[name]
        with caplog.at_level(logging.WARNING, logger="moetrace"):
            stats, health, diagnosis = seen(make)
        assert (stats.calls, stats.tokens, health["unread"]) == (0, 0, 1)
        (finding,) = [item for item in diagnosis.findings if item.kind == "not-read"]
        assert (finding.severity, finding.sites) == ("error", ("0",))
        assert reason in finding.found
        assert not diagnosis.ok
        assert any(reason in message for message in caplog.messages)
        assert set(stats.metrics().values()) == {None}
        assert stats.withheld()["load_cv"] == "nothing was routed"

    @pytest.mark.parametrize("name", COUNTED)
    def test_counted_in_its_own_column(self, name):
        """What can be read is counted; bad values have columns, and the doctor names them."""
        make, counts, columns, kinds = COUNTED[name]
        stats, health, diagnosis = seen(make)
        found = {
            column: getattr(stats, column)
            for column in ("tokens", "top_k", "scoring", "dropped", "nonfinite", "out_of_range")
        }
        read = {"tokens": T, "top_k": K, "scoring": "softmax", "dropped": 0, "nonfinite": 0}
        assert found == read | {"out_of_range": 0} | columns
        assert (stats.calls, stats.tokens_per_expert.tolist()) == (1, counts)
        assert "unread" not in health
        of_the_process = {"compiled-before"}  # by the tests that ran before
        assert {item.kind for item in diagnosis.findings} - of_the_process == kinds
        shown = stats.metrics()["routing_entropy"] is not None
        assert shown == (stats.scored_tokens > 0)
        assert shown or stats.withheld()["routing_entropy"]

    @pytest.mark.parametrize("name", ON_NO_DEVICE)
    def test_on_no_device(self, name):
        """Tensors without values are counted nowhere, and the site is said to be silent."""
        stats, _, diagnosis = seen(ON_NO_DEVICE[name])
        assert stats.calls == 0
        assert "silent" in {item.kind for item in diagnosis.findings}

    def test_there_are_enough_of_them(self):
        """The table has at least forty shapes."""
        assert len(SKIPPED) + len(COUNTED) + len(ON_NO_DEVICE) >= 40


class Reader:
    """A reader of the user's that returns what it is told to."""

    def __init__(self, make):
        self.make = make

    def matches(self, module):
        """The router."""
        return isinstance(module, Router)

    def read(self, module, args, kwargs, output):
        """Anything."""
        return self.make()


def _raise():
    raise KeyError("ids")


NO_ROUTING = {
    "raises": (_raise, "its reader raised KeyError: 'ids'"),
    "a tuple": (lambda: (IDS, SCORES), "returned (int64[6, 2], float32[6, 4]) where a Routing"),
    "ids alone": (lambda: IDS, "returned int64[6, 2] where a Routing or None belongs"),
    "an empty one": (lambda: moetrace.Routing(), "with neither expert ids nor a map"),
    "scores alone": (lambda: moetrace.Routing(logits_TE=SCORES), "neither expert ids nor a map"),
    "a list of scores": (lambda: moetrace.Routing(IDS, [[0.0]]), "its reader raised Attribute"),
}
BAD_ROUTING = {
    "lists": (lambda: moetrace.Routing([[0, 1]] * T), "AttributeError: 'list' object"),
    "float ids": (lambda: moetrace.Routing(WEIGHTS), "expert ids of float32; they have to be int"),
    "bool ids": (lambda: moetrace.Routing(IDS.bool(), SCORES), "expert ids of bool"),
    "complex ids": (lambda: moetrace.Routing(IDS * 1j), "expert ids of complex64"),
    "flat ids": (lambda: moetrace.Routing(IDS[:, 0]), "ids of shape (6,); they need an axis"),
    "no axis": (lambda: moetrace.Routing(IDS[0, 0], SCORES), "ids of shape (); they need an axis"),
    "other weights": (lambda: moetrace.Routing(IDS, SCORES, SCORES), "weights of shape (6, 4) for"),
    "other scores": (lambda: moetrace.Routing(IDS, SCORES[:, :3]), "found scores of shape (6, 3)"),
    "other tokens": (lambda: moetrace.Routing(IDS, SCORES[:3]), "found scores of shape (3, 4)"),
    "a wide map": (lambda: moetrace.Routing(routing_map_TE=SCORES.repeat(1, 2)), "a map of shape"),
    "sparse": (lambda: moetrace.Routing(IDS.to_sparse(), SCORES), "NotImplementedError"),
}


class TestBadReaders:
    @pytest.mark.parametrize("name", NO_ROUTING)
    def test_no_routing(self, name):
        """A reader that raises, or returns something else, ends no training and is told."""
        make, reason = NO_ROUTING[name]
        stats, health, diagnosis = seen(lambda: None, [Reader(make)])
        assert (stats.calls, health["unread"]) == (0, 1)
        (finding,) = [item for item in diagnosis.findings if item.kind == "not-read"]
        assert reason in finding.found

    @pytest.mark.parametrize("name", BAD_ROUTING)
    def test_bad_routing(self, name, caplog):
        """A routing whose parts do not fit is not counted in part: the log says which and why."""
        make, reason = BAD_ROUTING[name]
        with caplog.at_level(logging.WARNING, logger="moetrace"):
            stats, health, diagnosis = seen(lambda: None, [Reader(make)])
        assert (stats.calls, stats.tokens_per_expert.sum(), health["errors"]) == (0, 0, 1)
        assert "counting-failed" in {item.kind for item in diagnosis.findings}
        (line,) = [line for line in caplog.messages if "could not be counted" in line]
        assert reason in line
        assert len(line) < 500
