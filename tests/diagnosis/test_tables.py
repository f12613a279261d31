"""The doctor on tables of experts: of a model while it trains, and of a run on disk."""

import pytest
import torch

import moetrace
from moetrace.probes import IndexProbe
from moetrace.show.doctor import diagnose_run
from tests.product_keys import ProductKeyLayer, ProductKeyModel


def trained(tracer, model, *, steps=1):
    """Some steps of a model of tables."""
    for _ in range(steps):
        tracer.on_step_begin()
        model(torch.randn(16, 32, 16)).sum().backward()
        tracer.on_step_end()


@pytest.fixture
def model():
    """A sound layer, and one that adds its sub-keys."""
    torch.manual_seed(0)
    return ProductKeyModel([ProductKeyLayer(), ProductKeyLayer(sums_keys=True)])


class TestDoctor:
    def test_names_the_layer_that_adds_its_sub_keys(self, model, tmp_path):
        """S2-18: both doctors name the layer, its fault and the levers."""
        with moetrace.attach(model, tmp_path / "run", every=1, probes=[IndexProbe()]) as tracer:
            trained(tracer, model)
            live = tracer.doctor()
        of_the_run = diagnose_run(moetrace.open_run(tmp_path / "run"))
        for diagnosis in (live, of_the_run):
            (found,) = [f for f in diagnosis.findings if f.kind == "unreachable-experts"]
            assert found.sites == ("layers.1",)
            assert "structural, not load imbalance" in found.found
            for lever in ("i * columns + j", "num_heads", "training data", "learning rate"):
                assert lever in found.advice
            assert not diagnosis.ok

    def test_a_model_of_tables_alone(self):
        """A model whose only experts are large tables is diagnosed without a fault."""
        torch.manual_seed(0)
        model = ProductKeyModel([ProductKeyLayer(side=65, heads=4)])
        with moetrace.attach(model, every=1) as tracer:
            trained(tracer, model)
            diagnosis = tracer.doctor()
        assert [f.kind for f in diagnosis.findings if f.severity != "note"] == []
        (state,) = diagnosis.sites
        assert (state.name, state.state, state.num_experts, state.top_k, state.tokens) == (
            "layers.0",
            "counted",
            4225,
            16,
            512,
        )
        assert str(diagnosis).startswith("ProductKeyModel: 1 of 1 sites counted")
