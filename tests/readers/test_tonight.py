"""Who writes a gate tonight finds it traced, exactly, or is told in one line what to do."""

import pytest
import torch
from torch import nn

import moetrace
from tests.readers import tonight
from tests.readers.hand_written import D, K
from tests.readers.tracing import counts, traced

TRACED = {
    "Hashed": "RouterReader",
    "TopP": "RouterReader",
    "Cosine": "BareGateReader",
    "Nested": "RouterReader",
    "Numbered": "BareGateReader",
    "ByFunction": "BareGateReader",
    "ByStaticMethod": "BareGateReader",
}
TOLD = {
    "GroupLimited": "scores them with a matrix of its own and chooses, in no module; ",
    "GroupLimitedLayer": "they went through a top-k before, of groups or of a limit; ",
    "Sampled": "F.gumbel_softmax(self.gate(flat), hard=True) is no step that is known; ",
}


class TestTraced:
    @pytest.mark.parametrize("name", TRACED)
    def test_counts_what_was_chosen(self, name):
        """With no word said, counts are those that the block noted, and the doctor is content."""
        model = nn.Sequential(getattr(tonight, name)())
        (site,) = moetrace.discover(model)
        assert (site.reader, site.num_experts) == (TRACED[name], 6)
        snapshots = traced(model)
        assert counts(snapshots, "0") == model[0].counts
        assert "withheld" not in snapshots[-1].health
        with moetrace.attach(model) as tracer:
            model(torch.randn(2, 5, D))
            diagnosis = tracer.doctor(torch.randn(2, 5, D))
        assert diagnosis.ok, str(diagnosis)

    def test_a_varying_number_is_no_contradiction(self):
        """With two to six experts a token, K is 0, and neither counts nor drops are at fault."""
        model = nn.Sequential(tonight.TopP())
        with moetrace.attach(model) as tracer:
            model(torch.randn(2, 5, D))
            stats = tracer.flush()["0"]
            diagnosis = tracer.doctor(torch.randn(2, 5, D))
        assert (stats.top_k, stats.dropped) == (0, 0)
        assert stats.tokens_per_expert.sum() > 10 * 2
        assert diagnosis.findings == ()


class TestTold:
    @pytest.mark.parametrize("name", TOLD)
    def test_says_what_to_do(self, name):
        """A choice that nothing shows is a near miss: why, and one line of what to do."""
        model = nn.Sequential(getattr(tonight, name)())
        with pytest.raises(moetrace.NoRouterFound) as raised:
            moetrace.attach(model)
        (line,) = [line for line in str(raised.value).splitlines() if TOLD[name] in line]
        assert "pass the chosen ids through a module" in line
        assert "class ChoiceReader" in str(raised.value)

    def test_what_it_says_does(self):
        """With the ids passed through a module, and the reader as it was given, it is counted."""
        (missed,) = moetrace.discover(nn.Sequential(tonight.GroupLimited()))
        names = {"moetrace": moetrace}
        exec(missed.remedy, names)
        model = nn.Sequential(tonight.Advised())
        snapshots = traced(model, readers=[names["ChoiceReader"]()])
        assert counts(snapshots, "0") == model[0].counts
        assert (snapshots[0]["0"].num_experts, snapshots[0]["0"].top_k) == (6, K)

    def test_the_reader_of_a_rule_that_cannot_be_held_against_anything(self):
        """Where only the gate is called, its reader is given, with the block's own K in it."""
        model = nn.Sequential(tonight.StackedInline())
        (missed,) = moetrace.discover(model)
        assert "nothing that it calls shows whether it does" in missed.reason
        names = {"moetrace": moetrace}
        exec(missed.remedy, names)
        snapshots = traced(model, readers=[names["GateReader"]()])
        assert counts(snapshots, "0") == model[0].counts
