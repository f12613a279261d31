import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moetrace.watch.cells import DEAD, letter, shade, squeezed
from moetrace.watch.spark import sparkline


class TestSqueezed:
    def test_of_several_experts_the_one_furthest_from_fair_is_the_cell(self) -> None:
        """8 experts in 4 columns: a hot one and a dead one stay visible."""
        counts = np.array([10, 80, 10, 10, 10, 0, 10, 30])
        grid = squeezed([counts], columns=4, rows=1, urgency=[0.0])
        assert grid.per_cell == 2
        assert grid.values[0].round(2).tolist() == [2.0, -1.0, DEAD, -1.0]

    def test_where_layers_do_not_fit_the_most_urgent_are_kept_in_order(self) -> None:
        """Layers 1 and 3 of four, in the model's order; without a figure a layer is last."""
        counts = [np.array([1, 1])] * 4
        grid = squeezed(counts, columns=8, rows=2, urgency=[math.nan, 2.0, 1.0, 3.0])
        assert grid.layers == (1, 3)

    def test_a_layer_without_a_record_or_a_token_is_empty(self) -> None:
        """Neither fair nor dead: there is nothing to say of its experts."""
        counts = [np.array([-1, -1]), np.array([0, 0]), np.array([1, 1])]
        grid = squeezed(counts, columns=2, rows=3, urgency=[0.0] * 3)
        assert np.isnan(grid.values[:2]).all()
        assert grid.values[2].tolist() == [0.0, 0.0]

    @given(
        st.lists(st.integers(0, 50), min_size=1, max_size=70),
        st.integers(1, 40),
    )
    def test_fits_and_loses_no_dead_expert(self, counts: list[int], columns: int) -> None:
        """Whatever the width: no more cells than columns, and a dead expert makes its cell dead."""
        load = np.array(counts)
        grid = squeezed([load], columns=columns, rows=1, urgency=[0.0])
        assert grid.values.shape[1] <= columns
        if load.any():
            for cell, value in enumerate(grid.values[0]):
                part = load[cell * grid.per_cell : (cell + 1) * grid.per_cell]
                assert (value == DEAD) == (0 in part)


class TestShades:
    def test_dead_is_a_colour_of_its_own(self) -> None:
        """No load has the colour of no load at all, however small."""
        assert all(shade(value / 8) != shade(DEAD) for value in range(-40, 41))
        assert shade(math.nan) is None

    def test_letters_tell_the_same_apart(self) -> None:
        """A quarter, half, fair, double, four and eight times, none, and no expert."""
        loads = [DEAD, math.log2(0.2), math.log2(0.4), 0.0, 1.0, 2.0, 3.0, math.nan]
        assert "".join(map(letter, loads)) == "x_-.+*# "


class TestSparkline:
    def test_never_is_wider_than_told(self) -> None:
        """A thousand values in ten characters; the peak is kept."""
        values = [1.0] * 999 + [8.0]
        assert sparkline(values, 10) == "\u2582" * 9 + "\u2588"

    def test_a_small_wobble_is_drawn_from_its_smallest_value(self) -> None:
        """As in the report: from 0 only where 0 is near."""
        assert sparkline([9.0, 10.0], 2, ascii_only=True) == "_#"

    def test_nothing_is_drawn_as_nothing(self) -> None:
        """No value, and values that are all missing."""
        assert sparkline([], 5) == ""
        assert sparkline([math.nan] * 3, 5) == "   "
