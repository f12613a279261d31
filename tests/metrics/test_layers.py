import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.metrics import LayerSpread, spread


class TestSpread:
    def test_percentiles_and_the_worst_layer_by_name(self):
        """Over 101 layers of 0 to 100 each percentile is its own number."""
        found = spread({f"layers.{value}.mlp": float(value) for value in range(101)})
        assert found == LayerSpread(50.0, 75.0, 90.0, 95.0, 100.0, "layers.100.mlp", 101)

    def test_the_lowest_can_be_the_worst(self):
        """For an entropy the lowest layer is the bad one; percentiles ascend all the same."""
        found = spread({"a": 2.0, "b": 0.5, "c": 1.0}, worst="lowest")
        assert (found.worst, found.worst_layer) == (0.5, "b")
        assert found.p50 == 1.0
        assert found.p95 > found.p50

    def test_layers_without_the_metric_are_left_out(self):
        """None and NaN are not 0: they take no part."""
        found = spread({"a": None, "b": math.nan, "c": 3.0})
        assert found == LayerSpread(3.0, 3.0, 3.0, 3.0, 3.0, "c", 1)

    def test_no_layer_has_it(self):
        """Where no layer has the metric there is no spread."""
        assert spread({"a": None}) is None

    def test_the_first_of_a_tie(self):
        """Of layers that tie the first in the model is named."""
        assert spread({"a": 1.0, "b": 1.0}).worst_layer == "a"

    @given(st.dictionaries(st.text(max_size=3), st.floats(-1e6, 1e6), min_size=1, max_size=9))
    def test_median_against_sorting(self, values):
        """The median is the middle of the sorted layers."""
        ordered = sorted(values.values())
        half = len(ordered) // 2
        middle = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
        assert spread(values).p50 == pytest.approx(middle, abs=1e-9)
