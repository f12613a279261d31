import itertools
import math
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.metrics import chance_of_dead, chance_of_maximum


class TestChanceOfMaximum:
    @given(st.integers(1, 40), st.integers(2, 6), st.data())
    def test_is_never_below_the_true_chance_times_the_experts(
        self, tokens: int, experts: int, data: st.DataObject
    ) -> None:
        """The bound holds against the binomial tail summed term by term."""
        top_k = data.draw(st.integers(1, experts))
        largest = data.draw(st.integers(0, tokens))
        p = top_k / experts
        tail = math.fsum(
            comb(tokens, m) * p**m * (1 - p) ** (tokens - m) for m in range(largest, tokens + 1)
        )
        bound = chance_of_maximum(largest, tokens, num_experts=experts, top_k=top_k)
        assert bound >= min(1.0, experts * tail) * (1 - 1e-9)

    def test_a_router_that_has_no_choice_is_never_beyond_chance(self) -> None:
        """With K = E every expert takes every token."""
        assert chance_of_maximum(100, 100, num_experts=4, top_k=4) == 1.0


class TestChanceOfDead:
    def test_is_the_chance_that_all_tokens_pass_by_any_expert(self) -> None:
        """Two of four chosen: an expert misses ten tokens with 1 in 1024, and there are four."""
        assert chance_of_dead(10, num_experts=4, top_k=2) == 4 / 1024

    @pytest.mark.parametrize("dead", [1, 2, 3])
    def test_bounds_several_dead_experts(self, dead: int) -> None:
        """Three tokens, two of five experts each, all 1000 ways: the bound is never below."""
        pairs = list(itertools.combinations(range(5), 2))
        ways = [len(set().union(*picks)) for picks in itertools.product(pairs, repeat=3)]
        true = sum(5 - used >= dead for used in ways) / len(ways)
        assert chance_of_dead(3, num_experts=5, top_k=2, dead=dead) >= true
