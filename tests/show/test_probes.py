"""Runs without a router on the terminal: what probes and tables recorded is told instead."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from inline_snapshot import snapshot

from moetrace.cli import main
from moetrace.gradient_stats import GradientStats
from moetrace.index_stats import index_stats_of
from moetrace.weight_stats import WeightStats
from tests.report.made import recorded, stats, window


def gradient(layer: str, group: str, square: float, *, nonfinite: int = 0) -> GradientStats:
    """A hundred numbers over two steps whose squares add up to twice this one."""
    return GradientStats(
        layer, group, "weight", "pre_clip", 100, False, 1.0, 2, nonfinite,
        (2 - nonfinite) * square, square,
    )  # fmt: skip


def weight(layer: str, **fields: float) -> WeightStats:
    """A router of four experts and four inputs, of norm 5, that moved by 0.01 in ten steps."""
    return WeightStats(
        layer, "weight", (4, 4), "float32", True, False, 16, 10,
        sum=0.0, m2=25.0, diff_sum=0.0, diff_m2=0.0001, prev_sq=25.0, unchanged=4,
        drift_sq=1.0, init_sq=25.0, **fields,
    )  # fmt: skip


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """Gradients of a model that has no router."""
    gradients = (
        gradient("", "embed", 16.0),
        gradient("model.layers.0", "mlp", 9.0),
        gradient("model.layers.1", "mlp", 0.0, nonfinite=1),
    )
    made = replace(window(1, 2), gradients=gradients)
    return recorded(tmp_path / "dense", made, header={"model": "Dense", "every": 2}).path


class TestShow:
    def test_prints_gradients_where_there_is_no_router(
        self, dense: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """No empty table of routers; a row a group: norms 4 and 3, and 5 together."""
        assert main(["show", str(dense)]) == 0
        assert capsys.readouterr().out == snapshot("""\
Dense, train, steps 1-2
no router was recorded in this window.

gradient      numbers  norm           largest  non-finite
embed             100     4                 -         0/2
mlp               200     3  model.layers.0 3         1/2
all together      300     5  model.layers.0 3         1/2
norm: root mean square of the window's steps, before clipping;
largest: the block with the largest; non-finite: steps with NaN or infinity.
""")

    def test_prints_router_weights_beside_the_layers(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """0.01 of 5 in ten steps are 2e-4 a step; 1 of 5 since attach; 4 of 16 numbers stayed."""
        made = replace(window(1, 10, stats("a", [5, 5])), weights=(weight("a", nonfinite=2),))
        path = recorded(tmp_path / "run", made).path
        assert main(["show", str(path)]) == 0
        printed = capsys.readouterr().out
        assert printed[printed.index("\n\n") + 2 :] == snapshot("""\
router weight  norm  update/step  drift  unchanged
a.weight          5       0.0002    0.2      25.0%
update/step: change over norm, a step; drift: change over norm since attach;
unchanged: share of the numbers that stayed what they were.
a.weight: 2 numbers are NaN or infinite
""")

    def test_json_has_the_records_and_what_is_formed_from_them(
        self, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Squares as they are kept, and norms."""
        assert main(["show", str(dense), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["weights"] == []
        assert [(item["group"], item["sum_sq"], item["norm"]) for item in told["gradients"]] == [
            ("embed", 32.0, 4.0),
            ("mlp", 18.0, 3.0),
            ("mlp", 0.0, 0.0),
        ]
        made = replace(window(1, 10), weights=(weight("a"),))
        main(["show", str(recorded(tmp_path / "run", made).path), "--json"])
        (only,) = json.loads(capsys.readouterr().out)["weights"]
        figures = {key: only[key] for key in ("layer", "norm", "update_ratio", "drift")}
        assert figures == pytest.approx(
            {"layer": "a", "norm": 5.0, "update_ratio": 2e-4, "drift": 0.2}
        )


class TestInspect:
    def test_tells_what_was_measured(self, dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Groups of gradients with their blocks, and that no router was traced."""
        assert main(["inspect", str(dense)]) == 0
        printed = capsys.readouterr().out
        assert printed[printed.index("phase ") :] == snapshot("""\
phase  windows  steps  tokens
train        1    1-2       -

no router and no table of experts was traced

gradients measured, by group: embed, mlp (2 blocks)

health (train): not told
fault: none
""")

    def test_lists_tables_and_whether_they_counted(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One table of the header has a window, the other none."""
        tables = [{"layer": f"l.{at}", "num_experts": 1024, "columns": 32} for at in (0, 1)]
        header = {"model": "Peer", "every": 10, "tables": tables}
        counted = index_stats_of(
            "l.0", np.full(1024, 3), columns=32, scalars={"tokens": 3072}
        ).reduced()
        made = replace(window(1, 10), indices=(counted,))
        path = recorded(tmp_path / "run", made, header=header).path
        assert main(["inspect", str(path)]) == 0
        assert (
            "\n2 x table, 1024 experts by product keys, 32 columns\n"
            "  counted in train: l.0\n  counted nothing: l.1\n"
        ) in capsys.readouterr().out
        main(["inspect", str(path), "--json"])
        told = json.loads(capsys.readouterr().out)["tables"]
        assert [(item["layer"], item["counted"]) for item in told] == [
            ("l.0", True),
            ("l.1", False),
        ]

    def test_names_of_followed_weights_are_text(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """J4: an escape sequence in a layer's name is spelled out, in both commands."""
        made = replace(window(1, 10), weights=(weight("\x1b[2J"),))
        path = recorded(tmp_path / "run", made).path
        for command in ("inspect", "show"):
            main([command, str(path)])
            printed = capsys.readouterr().out
            assert "\\x1b[2J.weight" in printed
            assert "\x1b" not in printed


class TestDoctor:
    def test_does_not_count_sites_that_nobody_asked_for(
        self, dense: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Without a router and a table there is nothing to count, which is said."""
        assert main(["doctor", str(dense)]) == 0
        assert ": nothing is counted here; healthy\n" in capsys.readouterr().out
