import argparse
import json
import logging
import sys
from itertools import product

import evaluate_router_vs_quantized
import pytest
import sweep_router
import torch
from layerwise.allocation import greedy_allocation
from layerwise.evaluation import Score, score_fixed, score_router
from layerwise.frontier import Point, draw_frontier
from layerwise.objective import next_token_loss
from layerwise.readout import Readout, Row, read_out
from layerwise.routing_trace import ALERTS, AlertLog, LayerChoice, collapse_of
from layerwise.training import train_router

from moetrace.alerts import AlertJudge
from tests.recipes.precision_router import made
from tests.report.made import stats, window


@pytest.fixture(scope="module")
def trained(model_folder, text, tmp_path_factory):
    """The best checkpoint of a training for 5 bits."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["--objective", "target", "--target_precision", "5", "--learning_rate", "0.02"]
    return train_router(made.options(model_folder, folder, text, *words))


def score(cross_entropy, bits):
    """Of one layer of 1 MiB at 8 bits."""
    return Score(cross_entropy, (bits,), (2**20,), (0,))


class TestScore:
    def test_it_is_the_loss_of_the_choices(self, model_folder):
        """S4-20: cross-entropy of all scored tokens together, whatever the batches."""
        model, ids = made.opinionated(made.loaded(model_folder)), made.tokens(5)
        found = score_router(model, ids, batch_size=2)
        logits = model.eval().infer_forward(ids).logits
        scored = model.pool.scored(torch.ones_like(ids))
        assert found.cross_entropy == pytest.approx(next_token_loss(logits, ids, scored).item())
        assert found.avg_precision == pytest.approx(model.infer_forward(ids).bits_BL.mean().item())

    def test_bits_are_averaged_both_ways(self):
        """S4-20: 3 and 8 bits are 5.5 over layers, and 4 where the first has four times as many."""
        found = Score(1.0, (3.0, 8.0), (4, 1), (0, 0))
        assert (found.avg_precision, found.avg_precision_by_weights) == (5.5, 4.0)

    def test_what_is_read_is_bits_and_scales(self):
        """S4-20: 8 bits of 2**20 weights are 1 MiB, and 2**18 groups of 4 bytes are another."""
        assert Score(1.0, (8.0,), (2**20,), (2**18,)).mebibytes == 2.0


class TestGreedyAllocation:
    @pytest.mark.parametrize("budget", [2.0, 2.5, 3.0, 3.5, 4.0])
    def test_it_finds_the_best_where_layers_do_not_interact(self, budget):
        """S4-20: for a sum of convex losses it equals the enumerated optimum."""

        def cost(bits):
            return sum(weight / 4**b for weight, b in zip((9, 1, 4, 2), bits, strict=True))

        every = product((2, 3, 4), repeat=4)
        allowed = [bits for bits in every if sum(bits) <= 4 * budget]
        assert cost(greedy_allocation(4, [2, 3, 4], budget, cost)) == min(map(cost, allowed))

    def test_swaps_mend_what_single_layers_do_not_show(self):
        """S4-20: two layers that only pay together are found by measuring them together."""

        def cost(bits):
            alone = {(2, 2, 2): 1.0, (3, 2, 2): 0.8, (2, 3, 2): 0.9, (2, 2, 3): 0.95}
            return alone.get(bits, 0.1 if bits == (2, 3, 3) else 0.7)

        assert greedy_allocation(3, [2, 3], 8 / 3, cost) == (2, 3, 3)
        assert greedy_allocation(3, [2, 3], 8 / 3, cost, swaps=0) == (3, 3, 2)

    def test_it_stays_within_its_budget(self):
        """S4-20: no more bits on average than the routers used."""
        chosen = greedy_allocation(3, [3, 8], 4.9, lambda bits: -sum(bits))
        assert sorted(chosen) == [3, 3, 8]


class TestReadout:
    def test_there_is_a_row_for_everything(self, model_folder):
        """S4-20: every fixed precision, the routers and the static bits, on the same pieces."""
        model = made.chooses(made.loaded(model_folder), 3, 8)
        test, calibration = made.tokens(4), made.tokens(4, seed=1)
        readout = read_out(model, test, calibration, batch_size=4)
        names = [row.name for row in readout.rows]
        fixed = [f"{bits} bit" for bits in range(3, 9)]
        assert names == [*fixed, "routers", "static bits per layer"]
        routers, static = readout.rows[-2].score, readout.rows[-1].score
        assert routers.avg_precision == 5.5
        assert static.avg_precision <= 5.5
        alone = score_fixed(model, test, [3, 8], batch_size=4)
        assert routers.cross_entropy == alone.cross_entropy
        assert readout.table().count("\n") == 8

    def test_the_verdict_names_both_baselines(self):
        """S4-20: better than the line between fixed precisions, and worse than static bits."""
        rows = [Row("fixed", "2 bit", score(2.0, 2.0)), Row("fixed", "4 bit", score(1.0, 4.0))]
        rows += [Row("router", "routers", score(1.4, 3.0)), Row("static", "s", score(1.25, 3.0))]
        assert Readout(tuple(rows), (3,)).verdict() == (
            "at 3.00 bits the routers are 0.1000 nats better than one precision in all layers "
            "and 0.1500 nats worse than static bits per layer"
        )

    def test_static_bits_are_compared_at_the_bits_of_the_routers(self):
        """S4-20: between 2 and 4 static bits lie the routers' 3: fewer bits are no worse choice."""
        rows = [Row("fixed", "2 bit", score(2.0, 2.0)), Row("fixed", "4 bit", score(1.0, 4.0))]
        rows += [Row("router", "routers", score(1.4, 3.0))]
        rows += [Row("static", "s", score(1.8, 2.0)), Row("static", "m", score(1.0, 4.0))]
        assert Readout(tuple(rows), (2,)).beside("static") == pytest.approx(1.4)

    def test_a_step_more_is_measured_where_static_bits_fall_short(self, model_folder, monkeypatch):
        """S4-20: routers at 5.2 bits lie between static averages of 5 and 5.5 in two layers."""
        model = made.loaded(model_folder)
        monkeypatch.setattr(
            "layerwise.readout.score_router",
            lambda *args, **options: Score(5.5, (5.2, 5.2), (1, 1), (0, 0)),
        )
        monkeypatch.setattr(
            "layerwise.readout.score_fixed",
            lambda model, ids, bits, batch_size: Score(
                6.0 - sum([bits] * 2 if isinstance(bits, int) else bits) / 100,
                (float(bits),) * 2 if isinstance(bits, int) else tuple(map(float, bits)),
                (1, 1),
                (0, 0),
            ),
        )
        readout = read_out(model, made.tokens(1), made.tokens(1), batch_size=1)
        averages = [row.score.avg_precision for row in readout.rows if row.kind == "static"]
        assert averages == [5.0, 5.5]

    def test_the_program_writes_table_and_picture(
        self, model_folder, text, trained, tmp_path, capsys
    ):
        """S4-20: a table on the screen, finite JSON and a PNG; per layer what was chosen."""
        words = [str(model_folder), "--router", str(trained), "--dataset", str(text)]
        words += ["--seq_len", "16", "--num_examples", "4", "--save_dir", str(tmp_path)]
        assert evaluate_router_vs_quantized.main(words) == 0
        shown = capsys.readouterr().out
        assert "static bits per layer" in shown
        assert "base.model.layers.1: 5 bit 100 %; average 5.00" in shown
        told = json.loads((tmp_path / "readout.json").read_text(), parse_constant=pytest.fail)
        assert [row["kind"] for row in told["rows"]] == ["fixed"] * 6 + ["router", "static"]
        assert [layer["counts"] for layer in told["layers"]] == [[0, 0, 4, 0, 0, 0]] * 2
        assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")

    def test_text_that_was_trained_on_is_not_tested_on(self, model_folder, trained, tmp_path):
        """S4-20: of the training's own text only what comes after is drawn."""
        from layerwise.checkpoint import load_checkpoint
        from layerwise.options import evaluation_parser
        from layerwise.preparation import load_pieces
        from layerwise.trained import unseen_pieces

        config = load_checkpoint(trained)["config"]
        model = made.loaded(model_folder)
        words = [str(model_folder), "--dataset", config["dataset"], "--seq_len", "16"]
        options = evaluation_parser().parse_args([*words, "--num_examples", "6"])
        pieces = load_pieces(argparse.Namespace(**config), model)
        seen = {tuple(row) for row in torch.cat([pieces.train, pieces.validation]).tolist()}
        unseen = {tuple(row) for row in torch.cat(unseen_pieces(options, config, model)).tolist()}
        assert (len(seen), len(unseen)) == (12, 12)
        assert not seen & unseen


class TestSweep:
    def test_it_writes_the_frontier(self, model_folder, text, tmp_path):
        """S4-19: a training per target, each a point beside the fixed precisions, and a picture."""
        words = [str(model_folder), "--dataset", str(text), "--targets", "4", "6"]
        words += [
            "--seq_len",
            "16",
            "--num_examples",
            "8",
            "--pool",
            "prefix:4",
            "--num_epochs",
            "4",
        ]
        words += ["--learning_rate", "0.02", "--save_dir", str(tmp_path)]
        assert sweep_router.main(words) == 0
        points = json.loads((tmp_path / "frontier.json").read_text())
        assert [point["kind"] for point in points] == ["fixed"] * 6 + ["router"] * 2
        four, six = points[-2:]
        assert (four["label"], six["label"]) == ("target 4", "target 6")
        assert four["avg_precision"] < six["avg_precision"]
        assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "target_4" / "best_router_checkpoint.pt").exists()


class TestFrontier:
    def test_it_draws_without_a_display(self, tmp_path):
        """S4-20: a figure of its own canvas; pyplot is never imported."""
        before = "matplotlib.pyplot" in sys.modules
        points = [Point("fixed", 3.0, 2.0, "3 bit"), Point("router", 3.5, 1.9, "routers")]
        path = draw_frontier(points, tmp_path / "new" / "frontier.png", title="a title")
        width, height = (int.from_bytes(path.read_bytes()[at : at + 4]) for at in (16, 20))
        assert (width, height) == (900, 560)
        assert ("matplotlib.pyplot" in sys.modules) == before


class TestCollapse:
    def test_layers_that_differ_have_not_collapsed(self):
        """S4-22: one layer at 3 and one at 4 bits is a choice."""
        low = LayerChoice("a", (3, 4), (50, 0), 3.0, 0.0)
        high = LayerChoice("b", (3, 4), (0, 50), 4.0, 0.0)
        assert collapse_of([low, high]) is None
        assert (
            collapse_of([low, low]) == "all 2 layers at 3 bit: the routers do not look at the text"
        )

    def test_texts_that_differ_have_not_collapsed(self):
        """S4-22: two of a hundred sequences elsewhere are enough to look at the text."""
        assert collapse_of([LayerChoice("a", (3, 4), (98, 2), 3.0, 0.1)]) is None


class TestAlertLog:
    def test_says_in_precisions_that_a_layer_has_settled(self, caplog):
        """What moetrace calls experts are precisions here; to settle on one is no warning."""
        caplog.set_level("INFO", logger="layerwise")
        log, judge = AlertLog([3, 4, 8]), AlertJudge(ALERTS)
        for step in range(1, 3):
            for alert in judge.judge(window(step, step, stats("layers.0", [0, 1000, 0]))):
                log.alert(alert)
        ((name, level, text),) = caplog.record_tuples
        assert (name, level) == ("layerwise", logging.INFO)
        assert text == (
            "layers.0 has settled at step 2: 100.0 % of the sequences get the same one of "
            "3 precisions"
        )
        assert [alert.kind for alert in log.alerts] == ["routing_collapse"]
