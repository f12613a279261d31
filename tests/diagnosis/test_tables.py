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

    def test_an_evaluation_is_said_not_to_be_counted(self, tmp_path):
        """A table that was looked up in evaluation alone is a warning that says what is counted."""
        torch.manual_seed(0)
        model = ProductKeyModel([ProductKeyLayer(side=65)]).eval()
        with moetrace.attach(model, tmp_path / "run", every=1) as tracer, torch.no_grad():
            for _ in range(3):
                model(torch.randn(2, 5, 16))
            with tracer.phase("mine"):
                model.train()(torch.randn(2, 5, 16))
            model(torch.randn(2, 5, 16))
            diagnosis = tracer.doctor()
        (found,) = diagnosis.findings
        assert (found.kind, found.severity, found.sites) == (
            "uncounted-look-ups",
            "warning",
            ("layers.0",),
        )
        assert found.found.startswith(
            "looked up 4 times in evaluation or a phase of your own and 1 times without gradients"
        )
        assert "train mode, with gradients" in found.advice
        assert diagnosis.sites[0].state == "silent"

    @pytest.mark.parametrize("checkpointed", [None, "reentrant"])
    def test_look_ups_beside_the_training_are_a_note(self, checkpointed):
        """Beside a training they are told of, and the table is sound; what a reentrant checkpoint
        runs without gradients is none of them.
        """
        torch.manual_seed(0)
        model = ProductKeyModel([ProductKeyLayer(side=65, heads=4)], checkpointed=checkpointed)
        with moetrace.attach(model, every=9) as tracer:
            tracer.on_step_begin()
            model(torch.randn(16, 32, 16).requires_grad_()).sum().backward()
            tracer.on_step_end()
            before = tracer.doctor()
            with torch.no_grad():
                model.eval()(torch.randn(2, 5, 16))
            after = tracer.doctor()
        assert before.findings == ()
        (found,) = after.findings
        assert (found.kind, found.severity) == ("uncounted-look-ups", "note")
        assert found.found.startswith("1 look-ups in evaluation")
        assert after.ok
        # The window is still open: that it counts is known all the same.
        state = before.sites[0]
        assert (state.state, state.num_experts, state.calls) == ("counted", 4225, 1)

    def test_a_table_that_nobody_asked(self):
        """After a step, a table that was not looked up at all is silent, and the doctor says so."""
        model = torch.nn.ModuleDict({"table": torch.nn.Embedding(10, 4)})
        probe = IndexProbe(tables="table")
        with moetrace.attach(model, every=9, probes=[probe]) as tracer:
            assert tracer.doctor().findings == ()
            tracer.on_step_begin()
            tracer.on_step_end()
            (found,) = tracer.doctor().findings
        assert (found.kind, found.severity) == ("silent", "warning")
        assert "IndexProbe(indices_from=...)" in found.advice

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
