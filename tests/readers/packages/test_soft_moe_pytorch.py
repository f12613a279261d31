"""soft_moe_pytorch: every token goes to every expert with a weight, so that there are no counts."""

import pytest
from torch import nn

import moetrace
from tests.readers.packages.watched import D, Model

SoftMoE = pytest.importorskip("soft_moe_pytorch").SoftMoE


class TestSoftMoe:
    def test_is_named_as_not_readable(self):
        """The block is listed with the reason, and attach says it where there is nothing else."""
        model = Model(SoftMoE(D, seq_len=12, num_experts=4))
        (site,) = moetrace.discover(model)
        assert (site.name, site.taken, site.num_experts) == ("layers.0.moe", False, 4)
        assert "every token goes to all 4 experts with a weight" in site.reason
        with pytest.raises(moetrace.NoRouterFound, match="all 4 experts with a weight"):
            moetrace.attach(model)

    def test_is_said_beside_what_is_traced(self, caplog):
        """In a model with a router too, attach says what it leaves out, and traces the other."""
        from tests.tiny import ScriptedBlock

        model = nn.ModuleDict(
            {"soft": SoftMoE(D, seq_len=12, num_experts=4), "hard": ScriptedBlock([[0]], 4)}
        )
        with moetrace.attach(model) as tracer:
            assert [site.name for site in tracer.sites] == ["hard"]
        assert "soft: holds 4 experts" in caplog.text
