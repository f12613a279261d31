"""Routers and blocks whose code is put in unusual ways, and routers that serve several layers."""

import pytest
import torch
from torch import nn

import moetrace
from moetrace.cli import main
from tests.readers import hand_written_routers as routers
from tests.readers.hand_written import D, E, K, NanoMoE, Noting, experts, mixed
from tests.readers.tracing import counts, entropy, traced


class Passes(routers.WeightsIdsLogits):
    """All of it is inherited."""

    def forward(self, x):
        """The code of the class above."""
        return super().forward(x * 1.0)


class Renormalises(routers.WeightsIdsLogits):
    """Takes what it inherits apart."""

    def forward(self, x):
        """Weights that add up to 1."""
        weights, ids, logits = super().forward(x)
        return weights / weights.sum(-1, keepdim=True), ids, logits


class PassesProbabilities(routers.ProbsIdsWeights):
    """Nothing here says that the scores are probabilities."""

    def forward(self, x):
        """By a name in between."""
        out = super().forward(x)
        return out


class PassesTwice(PassesProbabilities):
    """Two classes above it."""

    def forward(self, x):
        """And an old spelling."""
        return super(PassesTwice, self).forward(x)  # noqa: UP008 - as older code has it


class S(Noting):
    """The block calls itself ``s``."""

    def __init__(s):  # noqa: N805
        super().__init__()
        s.gate, s.experts = nn.Linear(D, E), experts()

    def forward(s, x):  # noqa: N805
        """Otherwise as everybody writes it."""
        flat = x.reshape(-1, D)
        probs = s.gate(flat).softmax(-1)
        weights, ids = probs.topk(K, -1)
        s.note(ids, probs)
        return mixed(s.experts, flat, ids, weights).reshape(x.shape)


class Residual(NanoMoE):
    """Adds its input to what the class above makes of it."""

    def forward(self, x):
        """The choice is made above."""
        return super().forward(x) + x


class RoutesAbove(Noting):
    """Chooses in a method."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(D, E), experts()

    def route(self, logits):
        """The highest two."""
        return logits.softmax(-1).topk(K, -1)

    def forward(self, x):
        """By its method."""
        flat = x.reshape(-1, D)
        logits = self.gate(flat)
        weights, ids = self.route(logits)
        self.note(ids)
        return mixed(self.experts, flat, ids, weights).reshape(x.shape)


class RoutesWithTemperature(RoutesAbove):
    """Changes the scores in front of the method above."""

    temperature = 0.5

    def route(self, logits):
        """Under a temperature."""
        return super().route(logits / self.temperature)


def block_of(name):
    """A block of that class, or one around a router of it."""
    made = globals()[name]()
    return made if isinstance(made, Noting) else routers.Block(made)


class TestUnusualCode:
    @pytest.mark.parametrize("name", ["Passes", "Renormalises", "PassesProbabilities"])
    def test_inherited_routers(self, name):
        """A router that goes on to the class above is read as that class's own code says."""
        model = nn.Sequential(block_of(name))
        snapshots = traced(model)
        assert counts(snapshots, "0") == model[0].counts
        mean = sum(model[0].entropies) / len(model[0].entropies)
        assert entropy(snapshots, "0") == pytest.approx(mean, abs=1e-5)

    def test_two_classes_above(self):
        """However often it is inherited."""
        (site,) = moetrace.discover(nn.Sequential(block_of("PassesTwice")))
        assert (site.reader, site.scoring) == ("RouterReader", "probabilities")

    @pytest.mark.parametrize(
        ("name", "rule"),
        [
            ("S", "the highest 2 of the gate's logits, softmax"),
            ("Residual", "the highest 2 of the gate's logits"),
            ("RoutesAbove", "the highest 2 of the gate's logits, softmax"),
            ("RoutesWithTemperature", "the highest 2 of the gate's logits, / temperature, softmax"),
        ],
    )
    def test_inherited_blocks(self, name, rule):
        """A block's rule is read wherever its code stands, and by whatever name it calls itself."""
        model = nn.Sequential(block_of(name))
        (site,) = moetrace.discover(model)
        assert site.rule == rule
        snapshots = traced(model)
        assert counts(snapshots, "0") == model[0].counts
        assert "withheld" not in snapshots[-1].health


class TestSharedRouters:
    def test_site_says_that_its_counts_are_of_all(self):
        """One site, named after the first layer; the reason says how many share it."""
        (site,) = moetrace.discover(routers.SharedRouter())
        assert (site.name, site.aliases, site.shared) == ("layers.0", ("layers.1",), True)
        assert site.reason.endswith("; 2 layers share it, and its counts are of all together")

    def test_doctor_and_inspect_say_it(self, tmp_path, capsys):
        """So do the doctor and the command line, each in one line, with the names."""
        model = routers.SharedRouter()
        with moetrace.attach(model, tmp_path / "run", every=1) as tracer:
            tracer.on_step_begin()
            model(torch.randn(2, 5, D)).sum().backward()
            tracer.on_step_end()
            (finding,) = tracer.doctor().findings
        assert (finding.kind, finding.severity, finding.sites) == (
            "shared-router",
            "note",
            ("layers.0",),
        )
        assert "its router is that of layers.1 too" in finding.found
        assert main(["inspect", str(tmp_path / "run")]) == 0
        assert "layers.0 + layers.1 (one router for all)" in capsys.readouterr().out

    def test_one_block_by_two_names_shares_nothing(self):
        """The same block under two names is one layer."""
        block = routers.Block(routers.IdsWeights())
        (site,) = moetrace.discover(nn.ModuleDict({"one": block, "two": block}))
        assert (site.aliases, site.shared) == (("two",), False)
        assert "share" not in site.reason
