from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moetrace.gradient_stats import GradientStats
from moetrace.report.facts import probe_findings
from moetrace.report.probes import group_norms, router_norms, untrained, weight_series
from moetrace.snapshot import Snapshot
from moetrace.weight_stats import WeightStats
from tests.report.made import stats, window


def weight(layer: str, **fields: Any) -> WeightStats:
    """A tensor of two numbers whose norm is 5: sum 7, squared deviations 0.5."""
    base = WeightStats(layer, "weight", (2,), "float32", True, False, 2, 10, sum=7.0, m2=0.5)
    return replace(base, **fields)


def gradient(layer: str, group: str, square: float, **fields: Any) -> GradientStats:
    """One measured step with this squared norm."""
    base = GradientStats(layer, group, "weight", "pre_clip", 4, False, 1.0, 1, 0, square, square)
    return replace(base, **fields)


def probed(
    *, weights: tuple[WeightStats, ...] = (), gradients: tuple[GradientStats, ...] = ()
) -> Snapshot:
    """A window that other probes saw too."""
    return replace(window(1, 10, stats("a", [3, 1])), weights=weights, gradients=gradients)


class TestWeightSeries:
    def test_is_a_column_per_tensor_and_a_row_per_window(self) -> None:
        """A tensor that a window does not have is NaN there."""
        series = weight_series([probed(weights=(weight("a"),)), probed(weights=(weight("b"),))])
        assert series.columns == (("a", "weight"), ("b", "weight"))
        np.testing.assert_array_equal(series.values["norm"], [[5.0, np.nan], [np.nan, 5.0]])

    def test_of_a_page_window_the_last_recorded_one_stands(self) -> None:
        """Weights are states: rows are picked, never added up."""
        series = weight_series([probed(weights=(weight("a"),)), probed()])
        assert series.rows([0]).values["norm"].tolist() == [[5.0]]


class TestGradientNorms:
    def test_groups_add_as_squares(self) -> None:
        """Two blocks of 9 and 16 are a norm of 5."""
        parts = (gradient("l.0", "mlp", 9.0), gradient("l.1", "mlp", 16.0))
        series = group_norms([probed(gradients=parts)])
        assert series.columns == (("", "mlp"),)
        assert series.values["norm"].tolist() == [[5.0]]

    def test_what_was_measured_before_clipping_is_not_added_to_what_was_after(self) -> None:
        """The same gradient measured twice is not twice the gradient."""
        parts = (gradient("", "mlp", 9.0), gradient("", "mlp", 1.0, measured="at_step"))
        assert group_norms([probed(gradients=parts)]).values["norm"].tolist() == [[3.0]]

    def test_routers_are_told_block_by_block(self) -> None:
        """Of the groups only the routers, each by its block."""
        parts = (gradient("l.0", "router", 9.0), gradient("l.1", "router", 4.0))
        series = router_norms([probed(gradients=(*parts, gradient("l.0", "mlp", 1.0)))])
        assert series.columns == (("l.0", "router"), ("l.1", "router"))
        assert series.values["norm"].tolist() == [[3.0, 2.0]]


class TestUntrained:
    @pytest.mark.parametrize(
        ("fields", "found"),
        [
            ({"unchanged": 2}, 1),
            ({"unchanged": 1}, 0),
            ({"unchanged": 2, "trainable": False}, 0),
            ({"unchanged": 2, "steps": 0}, 0),
        ],
    )
    def test_is_a_trainable_tensor_that_no_step_changed(
        self, fields: dict[str, Any], found: int
    ) -> None:
        """All numbers the same over at least one step."""
        assert len(untrained(probed(weights=(weight("a", **fields),)))) == found


class TestFindings:
    def test_name_a_router_that_is_not_trained_and_a_gradient_that_broke(self) -> None:
        """Both are said with their place; a healthy window says nothing."""
        still = weight("a", unchanged=2)
        broken = gradient("l.0", "router", 1.0, nonfinite=1)
        texts = [
            item.text for item in probe_findings([probed(weights=(still,), gradients=(broken,))])
        ]
        assert texts == [
            "1 trainable router tensor did not change in steps 1-10: a.",
            "Gradients were NaN or infinite in 1 window, first in steps 1-10 (router).",
        ]
        assert probe_findings([probed(weights=(weight("a", unchanged=0),))]) == []

    @pytest.mark.parametrize(
        ("last", "tone"), [({"nonfinite": 4}, "bad"), ({"nonfinite": 1}, "warn"), ({}, "note")]
    )
    def test_a_gradient_is_as_urgent_as_it_is_broken_now(
        self, last: dict[str, int], tone: str
    ) -> None:
        """Four steps a window: none of them finite, one not, all finite again."""
        before = gradient("l.0", "router", 1.0, steps=4, nonfinite=1)
        now = gradient("l.0", "router", 1.0, steps=4, **last)
        history = [probed(gradients=(before,)), probed(gradients=(now,))]
        (found,) = probe_findings(history)
        assert found.tone == tone
