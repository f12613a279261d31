import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.metrics import bias_drift, load_change, load_change_floor

COUNTS = st.lists(st.integers(0, 50), min_size=5, max_size=5)


class TestLoadChange:
    @given(COUNTS, COUNTS)
    def test_against_the_assignments_that_moved(self, before: list[int], after: list[int]) -> None:
        """Scaled to a common total, it is the share of assignments that left their expert."""
        if not sum(before) or not sum(after):
            assert math.isnan(load_change(np.array(before), np.array(after)))
            return
        old = [count * sum(after) for count in before]
        new = [count * sum(before) for count in after]
        left = sum(max(0, was - now) for was, now in zip(old, new, strict=True))
        found = load_change(np.array(before), np.array(after))
        assert found == pytest.approx(left / sum(old))
        assert 0 <= found <= 1 + 1e-12

    def test_a_frozen_router_has_none(self) -> None:
        """The same shares, of more tokens: nothing moved."""
        assert load_change(np.array([1, 2, 0]), np.array([10, 20, 0])) == 0.0

    def test_other_experts_cannot_be_compared(self) -> None:
        """A layer that was rebuilt with more experts is named as such."""
        with pytest.raises(ValueError, match="of the same experts"):
            load_change(np.array([1, 2]), np.array([1, 2, 3]))


class TestLoadChangeFloor:
    @pytest.mark.parametrize(
        ("tokens", "experts", "top_k"), [(64, 16, 2), (256, 8, 2), (128, 32, 1)]
    )
    def test_against_simulation(self, tokens: int, experts: int, top_k: int) -> None:
        """Two windows of a uniform router differ so much on average."""
        rng = np.random.default_rng(0)

        def counts() -> np.ndarray:
            picks = rng.random((tokens, experts)).argpartition(top_k, axis=1)[:, :top_k]
            return np.bincount(picks.ravel(), minlength=experts)

        mean = np.mean([load_change(counts(), counts()) for _ in range(600)])
        floor = load_change_floor(tokens, num_experts=experts, top_k=top_k)
        assert floor == pytest.approx(mean, rel=0.03)

    def test_a_router_without_a_choice_cannot_move(self) -> None:
        """With K = E every expert takes every token; without tokens there is nothing."""
        assert load_change_floor(10, num_experts=4, top_k=4) == 0.0
        assert math.isnan(load_change_floor(0, num_experts=4, top_k=1))


class TestBiasDrift:
    @given(st.lists(st.floats(-9, 9), min_size=1, max_size=6), st.floats(-9, 9))
    def test_the_same_for_all_changes_no_choice(self, bias: list[float], offset: float) -> None:
        """A number added to every expert's bias is no drift."""
        moved = np.array(bias) + offset
        assert bias_drift(moved, np.array(bias)) == pytest.approx(0.0, abs=1e-9)

    def test_the_expert_that_moved_most(self) -> None:
        """One of four up by 0.4 is 0.3 over the mean of the moves."""
        before = np.array([1.0, 2.0, 3.0, 4.0])
        assert bias_drift(before + np.array([0.0, 0.4, 0.0, 0.0]), before) == pytest.approx(0.3)

    @pytest.mark.parametrize("shapes", [((2,), (3,)), ((0,), (0,))])
    def test_other_shapes_are_refused(self, shapes: tuple[tuple[int], tuple[int]]) -> None:
        """Both are one number per expert."""
        with pytest.raises(ValueError, match="found biases of shape"):
            bias_drift(np.zeros(shapes[0]), np.zeros(shapes[1]))
