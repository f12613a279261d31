import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moetrace.layout import FRACTION_BITS
from moetrace.metrics import SHOWN
from moetrace.routing_stats import RoutingStats, shown_columns

COUNTS = st.lists(st.integers(-1, 9) | st.just(0), min_size=1, max_size=6)


@st.composite
def layers(draw: st.DrawFn) -> RoutingStats:
    """Any layer: whole, broken, dropping, without logits, with bad ones, empty."""
    counts = np.array(draw(COUNTS), dtype=np.int64)
    top_k = draw(st.integers(0, 3))
    whole = int(counts.sum()) // max(1, top_k)
    tokens = draw(st.just(max(0, whole)) | st.integers(0, 12))
    mass = draw(st.sampled_from([1.0, 0.995, 0.97, 1.02])) * tokens
    shares = np.full(counts.size, mass / counts.size)
    return RoutingStats(
        layer="mlp",
        num_experts=counts.size,
        top_k=top_k,
        scoring=draw(st.sampled_from(["softmax", "sigmoid", "none"])),
        tokens_per_expert=counts,
        prob_sum=np.rint(shares * (1 << FRACTION_BITS["prob_sum"])).astype(np.int64),
        gate_weight_sum=counts * 0,
        tokens=tokens,
        dropped=draw(st.sampled_from([0, 0, 3])),
        nonfinite=draw(st.sampled_from([0, 0, 2, 13])),
        out_of_range=draw(st.sampled_from([0, 0, 1])),
        entropy_sum=draw(st.integers(0, 1 << 30)),
    )


class TestShownColumns:
    @given(st.lists(layers(), max_size=6))
    def test_are_the_metrics_of_each_layer_to_the_bit(self, stats: list[RoutingStats]) -> None:
        """Withheld where the layer's own metrics are withheld, and else the very same number."""
        columns = shown_columns(stats)
        rows = [item.metrics() for item in stats]
        assert columns == {name: [row[name] for row in rows] for name in SHOWN}

    def test_wide_layers_give_the_same_number(self) -> None:
        """Summing 1000 experts row by row rounds as summing one row does."""
        rng = np.random.default_rng(0)
        stats = []
        for _ in range(20):
            counts = rng.integers(0, 5000, 1000)
            zeros = np.zeros(1000, np.int64)
            total = int(counts.sum())
            stats.append(RoutingStats("m", 1000, 1, "none", counts, zeros, zeros, tokens=total))
        rows = [item.metrics() for item in stats]
        assert shown_columns(stats)["load_cv"] == [row["load_cv"] for row in rows]
        assert shown_columns(stats)["max_vio"] == [row["max_vio"] for row in rows]
