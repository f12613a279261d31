import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.metrics import EverUsed


class TestEverUsed:
    @given(st.lists(st.lists(st.integers(0, 2), min_size=7, max_size=7), max_size=12))
    def test_against_a_set(self, windows: list[list[int]]) -> None:
        """Never used is what no window has used; each expert is new once."""
        used, seen = EverUsed(), set()
        for counts in windows:
            new = used.note("mlp", np.array(counts))
            found = {expert for start, stop in new for expert in range(start, stop)}
            now = {expert for expert, count in enumerate(counts) if count}
            assert found == now - seen
            seen |= now
            assert used.never("mlp") == 7 - len(seen)

    @given(st.lists(st.lists(st.integers(0, 1), min_size=9, max_size=9), min_size=1, max_size=6))
    def test_goes_on_where_it_ended(self, windows: list[list[int]]) -> None:
        """What was said of one process is all that the next one needs."""
        first, second = EverUsed(), EverUsed()
        for counts in windows:
            second.recall("mlp", first.note("mlp", np.array(counts)))
        second.note("mlp", np.zeros(9, np.int64))
        assert second.never("mlp") == first.never("mlp")

    def test_a_layer_of_another_size_starts_anew(self) -> None:
        """A model that was rebuilt with more experts has used none of them."""
        used = EverUsed()
        used.note("mlp", np.array([1, 1]))
        used.note("mlp", np.array([1, 0, 0]))
        assert used.never("mlp") == 2

    def test_a_layer_that_was_not_noted_has_none(self) -> None:
        """What is not known is not counted."""
        assert EverUsed().never("mlp") == 0

    @pytest.mark.parametrize("span", [(3, 3), (5, 2), (-1, 2), (0, 1 << 40)])
    def test_refuses_what_is_no_span(self, span: tuple[int, int]) -> None:
        """What stands in a run folder may be anything."""
        with pytest.raises(ValueError, match="found a span"):
            EverUsed().recall("mlp", [span])
