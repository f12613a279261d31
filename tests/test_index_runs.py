"""Models of tables from attach to the command line, where there may be no router at all."""

import json
import logging
import time

import pytest
import torch
from torch import nn

import moetrace
from moetrace import recording
from moetrace.cli import main
from moetrace.index_verdict import index_verdicts
from moetrace.probes import IndexProbe, IndexWindow
from tests.product_keys import Lookups, ProductKeyLayer, ProductKeyModel


def trained(tracer, model, *, steps=1, tokens=32):
    """Some steps of a model of tables."""
    for _ in range(steps):
        tracer.on_step_begin()
        model(torch.randn(8, tokens, 16)).sum().backward()
        tracer.on_step_end()


@pytest.fixture
def run(tmp_path):
    """A run of two large tables, one of which adds its sub-keys, and no router."""
    torch.manual_seed(0)
    model = ProductKeyModel([ProductKeyLayer(side=65), ProductKeyLayer(side=65, sums_keys=True)])
    with moetrace.attach(model, tmp_path / "run", every=2) as tracer:
        trained(tracer, model, steps=4)
    return tmp_path / "run"


class TestTracer:
    def test_tells_what_it_counts(self):
        """A tracer without routers names the tables that it counts."""
        torch.manual_seed(0)
        model = ProductKeyModel([ProductKeyLayer(side=65)])
        with moetrace.attach(model) as tracer:
            assert tracer.tables == ("layers.0",)
            assert repr(tracer) == "<Tracer of 0 routers and 1 tables, step 0, into memory>"

    def test_a_model_without_tables_is_said(self, caplog):
        """IndexProbe on a model of routers alone is a warning that says how to name a table."""
        from tests.tiny import seeded

        caplog.set_level(logging.WARNING, "moetrace")
        with moetrace.attach(seeded("Qwen3Moe"), probes=[IndexProbe()]) as tracer:
            assert tracer.tables == ()
        assert any("IndexProbe(tables=...)" in record.message for record in caplog.records)

    def test_a_table_that_is_never_asked_is_said(self, caplog):
        """Tables without a look-up in the first window are a warning, once."""
        model = nn.ModuleDict({"table": nn.Embedding(10, 4), "other": nn.Linear(2, 2)})
        probe = IndexProbe(tables="table")
        caplog.set_level(logging.WARNING, "moetrace")
        with moetrace.attach(model, every=1, probes=[probe]) as tracer:
            for _ in range(3):
                tracer.on_step_begin()
                tracer.on_step_end()
        said = [r.message for r in caplog.records if "no table of experts" in r.message]
        assert len(said) == 1
        assert "(table)" in said[0]

    def test_a_table_that_is_only_evaluated_is_said(self, caplog):
        """Where the look-ups of the first window were not in training, the warning says that."""
        torch.manual_seed(0)
        model = ProductKeyModel([ProductKeyLayer(side=65)]).eval()
        caplog.set_level(logging.WARNING, "moetrace")
        with moetrace.attach(model, every=1) as tracer:
            trained(tracer, model, steps=2)
        (said,) = [r.message for r in caplog.records if "no table of experts" in r.message]
        assert said.endswith(
            "(layers.0): evaluation, phases of your own and forwards without "
            "gradients are not counted"
        )

    def test_the_log_names_the_broken_layer(self, caplog, tmp_path):
        """S2-18: without any sink the whole finding is a warning after the first window."""
        torch.manual_seed(0)
        model = ProductKeyModel([ProductKeyLayer(side=65, sums_keys=True)])
        caplog.set_level(logging.WARNING, "moetrace")
        with moetrace.attach(model, every=1) as tracer:
            trained(tracer, model)
            tracer.flush()
        (said,) = [r.message for r in caplog.records if "structural" in r.message]
        assert "MoE Alert at step 1: layers.0:" in said
        assert "no index above" in said

    def test_what_stays_is_said_of_the_rank(self, run):
        """The header of a rank names its tables, so that a missing rank is missed."""
        manifest = moetrace.open_run(run).manifest
        assert manifest["tables"] == [
            {"layer": "layers.0", "num_experts": 4225, "columns": 65},
            {"layer": "layers.1", "num_experts": 4225, "columns": 65},
        ]


class TestClose:
    def test_waits_for_the_reductions_of_its_tables(self, tmp_path, monkeypatch):
        """Closing has longer where tables have many experts: their last window is not lost."""
        reduced = IndexWindow.stats

        def slow(window, bits):
            time.sleep(0.5)
            return reduced(window, bits)

        monkeypatch.setattr(IndexWindow, "stats", slow)
        monkeypatch.setattr(recording, "CLOSE_TIMEOUT", 0.01)
        monkeypatch.setattr(recording, "EXPERTS_PER_SECOND", 4225 / 60)
        torch.manual_seed(0)
        model = ProductKeyModel([ProductKeyLayer(side=65)])
        with moetrace.attach(model, tmp_path / "run", every=1) as tracer:
            trained(tracer, model, steps=2)
        found = moetrace.open_run(tmp_path / "run")
        assert (found.finished, found.steps()[-1].tolist()[1]) == (True, 2)


class TestSelectiveCheckpoint:
    def test_counts_once_and_changes_no_gradient(self):
        """Under a selective checkpoint, whose policy meets the operator, each draw counts once."""
        from torch.utils.checkpoint import (
            CheckpointPolicy,
            checkpoint,
            create_selective_checkpoint_contexts,
        )

        met = set()

        def policy(ctx, op, *args, **kwargs):
            met.add(str(op))
            keep = op == torch.ops.aten.mm.default
            return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

        def gradient(*, traced):
            torch.manual_seed(0)
            layer = ProductKeyLayer(side=65)
            model, x = ProductKeyModel([layer]), torch.randn(4, 8, 16, requires_grad=True)
            tracer = moetrace.attach(model, every=1) if traced else None
            seen = Lookups(layer.expert_up, 4225) if traced else None
            if tracer:
                tracer.on_step_begin()
            context = lambda: create_selective_checkpoint_contexts(policy)  # noqa: E731
            checkpoint(model, x, use_reentrant=False, context_fn=context).sum().backward()
            if tracer and seen:
                tracer.on_step_end()
                (table,) = tracer.flush().indices
                tracer.close()
                assert table.draws == seen.calls[0].numel()
            return x.grad

        assert torch.equal(gradient(traced=True), gradient(traced=False))
        assert any("look_up" in name for name in met)


class TestDogeModel:
    def test_counts_a_whole_model_with_padding(self):
        """S2-05: transformers' Doge as it is loaded: draws and scores of every real token."""
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        config = transformers.DogeConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            is_moe=True,
            num_experts=4900,
            num_experts_per_tok=4,
            pad_token_id=0,
        )
        model = transformers.DogeForCausalLM(config).train()
        seen = Lookups(model.model.layers[1].mlp.up_embed, 4900)
        ids = torch.randint(1, 64, (2, 9))
        mask = torch.ones_like(ids)
        mask[1, 4:] = 0
        with moetrace.attach(model, every=1) as tracer:
            tracer.on_step_begin()
            model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
            tracer.on_step_end()
            first, second = tracer.flush().indices
        assert (first.layer, second.layer) == ("model.layers.0.mlp", "model.layers.1.mlp")
        assert (second.tokens, second.masked, second.draws) == (13, 5, 13 * 4)
        real = seen.of([seen.calls[0][mask.bool().flatten()]])
        assert {e: n for e, n in enumerate(real) if n} == dict(
            zip(second.top_experts, second.top_draws, strict=True)
        )
        assert second.score_total / 2**30 == pytest.approx(13, rel=1e-6)


class TestCommands:
    def test_show(self, run, capsys):
        """moetrace show prints a row per table and what is wrong with one, as JSON too."""
        assert main(["show", str(run)]) == 0
        shown = capsys.readouterr().out
        assert "layers.0" in shown
        assert "layers.1: " in shown
        assert "structural, not load imbalance" in shown
        assert "MaxVio" not in shown
        assert main(["show", str(run), "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert [table["layer"] for table in record["tables"]] == ["layers.0", "layers.1"]
        assert list(record["tables"][1]["verdicts"]) == ["unreachable_experts"]

    def test_doctor_finds_it(self, run, capsys):
        """S2-18: moetrace doctor names the layer from the run folder alone."""
        main(["doctor", str(run)])
        assert "unreachable-experts: layers.1:" in capsys.readouterr().out

    def test_report_is_written(self, run, tmp_path):
        """moetrace report of a run without routers is a page that names the layer."""
        assert main(["report", str(run), "-o", str(tmp_path / "page.html")]) == 0
        page = (tmp_path / "page.html").read_text()
        assert "structural, not load imbalance" in page

    @pytest.mark.parametrize("form", ["csv", "json", "seed002"])
    def test_export(self, run, tmp_path, form):
        """A run without routers can be exported."""
        assert main(["export", str(run), "--format", form, "-o", str(tmp_path / form)]) == 0

    def test_a_run_of_tables_is_a_run(self, run):
        """open_run holds windows, steps and tables where there is no router."""
        found = moetrace.open_run(run)
        assert (found.layers, found.tables()) == ((), ("layers.0", "layers.1"))
        assert found.steps().tolist() == [[1, 2], [3, 4]]
        kinds = [v.kind for v in index_verdicts(found.snapshots()[0].indices[1])]
        assert kinds == ["unreachable_experts"]
