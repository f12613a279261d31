"""The record of a table of experts: what it reduces to, and how windows and ranks add."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.index_stats import (
    INDEX_METRICS,
    MOST_LISTED,
    MOST_SHARED,
    IndexStats,
    index_stats_of,
    with_shared,
)
from moetrace.metrics import (
    coverage,
    hot_indices,
    least_sure_count,
    mutual_information,
    rank_curve,
    top_indices,
    unevenness,
)
from moetrace.snapshot import Snapshot, merge
from moetrace.store.lines import DamagedRecord
from moetrace.store.tables import from_columns, to_columns

draws = st.lists(st.integers(0, 9), min_size=24, max_size=24).map(lambda c: np.array(c, np.int64))


def table(counts, *, scored=False, **settings):
    """A record of 24 experts in a grid of 4 by 6, with scores of half a draw each where asked."""
    counts = np.asarray(counts, np.int64)
    return index_stats_of(
        "ffn",
        counts,
        columns=6,
        score_sum=counts << 29 if scored else None,
        scalars={"tokens": int(counts.sum()), "calls": 1, "score_sq_sum": int(counts.sum()) << 22},
        **settings,
    )


def fields_of(stats, *, leave=()):
    """Everything a line stores of a record."""
    return {
        item.name: getattr(stats, item.name)
        for item in dataclasses.fields(stats)
        if item.metadata.get("stored", True) and item.name not in leave
    }


class TestReductions:
    def test_of_a_window_by_hand(self):
        """S2-07: eight draws of three experts, in two rows and three columns."""
        counts = np.zeros(24, np.int64)
        counts[[0, 1, 8]] = [6, 1, 1]
        stats = table(counts, scored=True)
        found = stats.metrics()
        assert (stats.draws, stats.used, stats.highest, stats.busiest) == (8, 3, 8, 6)
        assert stats.row_draws == (7, 1, 0, 0)
        assert stats.column_draws == (6, 1, 1, 0, 0, 0)
        assert (stats.hot_experts, stats.hot_draws) == ((0,), (6,))
        assert (found["dead_rows"], found["dead_columns"]) == (2.0, 3.0)
        assert (found["coverage"], found["avg_usage"]) == (0.125, 8 / 24)
        assert found["max_over_avg"] == 18.0
        assert found["unevenness_score"] == pytest.approx(found["unevenness"], abs=1e-12)

    def test_parts_add_up_to_the_whole(self):
        """Unevenness is that of rows plus that of columns plus the mutual information."""
        counts = np.arange(24)
        found = table(counts).metrics()
        parts = found["row_unevenness"] + found["column_unevenness"] + found["mutual_information"]
        assert parts == pytest.approx(found["unevenness"], abs=1e-12)
        assert found["mutual_information"] == pytest.approx(mutual_information(counts, columns=6))

    @given(draws)
    def test_a_record_is_what_the_functions_of_metrics_say(self, counts):
        """The short way over the counts of counts gives what each function gives by itself."""
        stats = table(counts, threshold=2.0)
        hot = hot_indices(counts, threshold=2.0)
        sure = least_sure_count(int(counts.sum()), num_experts=24, threshold=2.0)
        ranks, found = rank_curve(counts)
        assert stats.hot_experts == tuple(hot.tolist())
        assert (stats.hot, stats.sure_hot) == (hot.size, int((counts[hot] >= sure).sum()))
        assert stats.top_experts == tuple(top_indices(counts, most=MOST_LISTED).tolist())
        assert (stats.ranks, stats.rank_draws) == (tuple(ranks.tolist()), tuple(found.tolist()))
        assert (stats.draws, stats.busiest) == (counts.sum(), counts.max())
        assert stats.square_sum == float((counts * counts).sum())
        if stats.draws:
            assert stats.unevenness == pytest.approx(unevenness(counts), abs=1e-12)
            assert stats.coverage == coverage(counts)

    def test_lists_are_capped(self):
        """S2-08, S2-11: of a million experts a record lists 100 hot ones and the 100 busiest."""
        counts = np.zeros(1 << 20, np.int64)
        counts[:5000] = 7
        stats = index_stats_of("ffn", counts)
        assert stats.hot == 5000
        assert stats.hot_experts == stats.top_experts == tuple(range(MOST_LISTED))

    def test_a_record_of_a_million_is_small(self):
        """The line of a table of 1024 by 1024 experts is below 64 KiB."""
        import orjson

        rng = np.random.default_rng(0)
        counts = rng.poisson(16_000, 1 << 20).astype(np.int64)
        stats = index_stats_of("ffn", counts, columns=1024, score_sum=counts << 20)
        assert len(orjson.dumps(to_columns(with_shared([stats])))) < 65_536

    def test_nothing_drawn(self):
        """A table that was not looked up in has no balance, and says 0 draws."""
        found = table(np.zeros(24)).metrics()
        assert found["draws"] == 0.0
        assert [name for name, value in found.items() if value is not None] == [
            "draws",
            "avg_usage",
        ]

    def test_every_metric_has_its_name(self):
        """Metrics come under the names of INDEX_METRICS, whatever can be known."""
        assert tuple(table(np.arange(24)).metrics()) == INDEX_METRICS
        assert tuple(table(np.zeros(24)).metrics()) == INDEX_METRICS

    def test_a_table_without_product_keys(self):
        """Without columns nothing is said of rows and columns."""
        stats = index_stats_of("ffn", np.arange(7))
        assert (stats.rows, stats.row_draws, stats.metrics()["dead_rows"]) == (0, (), None)


class TestShared:
    def test_layers_by_the_union_of_their_busiest(self):
        """S2-12: every table's counts of the busiest experts of all tables."""
        one, two = np.zeros(50, np.int64), np.zeros(50, np.int64)
        one[[3, 4]], two[[4, 9]] = [5, 6], [7, 8]
        records = [index_stats_of("a", one), index_stats_of("b", two)]
        a, b = with_shared(records)
        assert a.shared_experts == b.shared_experts == (3, 4, 9)
        assert (a.shared_draws, b.shared_draws) == ((5, 6, 0), (0, 7, 8))

    def test_many_layers_share_a_bounded_list(self):
        """S2-12: with 48 layers the union holds at most 200 experts."""
        rng = np.random.default_rng(0)
        records = [index_stats_of(str(n), rng.poisson(1, 5000).astype(np.int64)) for n in range(48)]
        assert max(len(r.shared_experts) for r in with_shared(records)) <= MOST_SHARED


class TestAdding:
    def test_sums_stop_short_of_an_overflow(self):
        """I13: what two ranks add up to stops at 2**62 - 1 per expert, as of routers."""
        one = index_stats_of("ffn", np.full(4, 2**62, np.int64), score_sum=np.full(4, 2**62))
        both = one.beside(one)
        assert both.tokens_per_expert.tolist() == [2**62 - 1] * 4
        assert both.unevenness == both.unevenness_score == 0.0

    @given(draws, draws)
    def test_counts_add_to_what_one_process_would_have(self, one, two):
        """S2-14: two ranks whose counts are there are the record of their sum, in every field."""
        both = table(one, scored=True).beside(table(two, scored=True))
        whole = table(one + two, scored=True)
        assert fields_of(both, leave=("calls",)) == fields_of(whole, leave=("calls",))
        assert both.calls == 2

    @given(draws, draws)
    def test_reductions_add_where_they_can(self, one, two):
        """S2-14: draws, tokens, sub-keys and scores add; what does not is None and not wrong."""
        a, b = table(one, scored=True).reduced(), table(two, scored=True).reduced()
        both, whole = a.beside(b), table(one + two, scored=True)
        for name in ("draws", "tokens", "highest", "score_total", "row_draws", "column_draws"):
            assert getattr(both, name) == getattr(whole, name), name
        assert (both.used, both.unevenness, both.hot, both.ranks) == (None, None, None, ())
        for name in ("dead_rows", "row_unevenness", "column_unevenness", "avg_usage"):
            assert both.metrics()[name] == whole.metrics()[name], name
        assert both.metrics()["coverage"] is None

    def test_windows_add_like_ranks(self):
        """A window that follows adds as another rank does."""
        one, two = table(np.arange(24)), table(np.arange(24)[::-1])
        assert fields_of(one.followed_by(two)) == fields_of(one.beside(two))

    def test_another_table_in_its_place(self):
        """Tables of different sizes do not add: the newer one stands."""
        other = index_stats_of("ffn", np.array([1, 2]))
        assert table(np.arange(24)).followed_by(other) is other

    def test_snapshots_of_two_ranks(self):
        """S2-14: merged snapshots hold the tables of both ranks, added by layer."""
        parts = [
            Snapshot("r", rank, 0, 0, "train", 1, 1, 0.0, (), indices=(table(np.arange(24)),))
            for rank in (0, 1)
        ]
        (found,) = merge(parts).indices
        assert found.draws == 2 * 276


class TestStored:
    def test_a_line_holds_all_but_the_counts(self):
        """What is written and read again is the record without its numbers per expert."""
        stats = table(np.arange(24), scored=True)
        (found,) = from_columns(IndexStats, to_columns([stats]))
        assert fields_of(found) == fields_of(stats)
        assert found.nbytes == 0

    def test_a_line_of_an_older_version(self):
        """What an older version did not know of is None; what every line has to have is not."""
        columns = to_columns([table(np.arange(24), scored=True)])
        del columns["scored_calls"]
        (found,) = from_columns(IndexStats, columns)
        assert (found.scored_calls, found.draws) == (None, 276)
        del columns["draws"]
        with pytest.raises(DamagedRecord, match="draws"):
            from_columns(IndexStats, columns)

    def test_a_snapshot_as_a_dict_has_no_number_per_expert(self):
        """to_dict stays small; from_dict reads it back."""
        stats = table(np.arange(24)).reduced()
        snapshot = Snapshot("r", 0, 0, 0, "train", 1, 1, 0.0, (), indices=(stats,))
        record = snapshot.to_dict()
        assert "tokens_per_expert" not in record["indices"][0]
        (found,) = Snapshot.from_dict(record).indices
        assert fields_of(found) == fields_of(stats)

    @pytest.mark.parametrize(
        "change",
        [
            {"num_experts": 0},
            {"columns": 5},
            {"columns": -6},
            {"row_draws": (1,)},
            {"hot_draws": (1, 2, 3)},
            {"draws": -1},
            {"highest": 24},
            {"threshold": float("nan")},
            {"column_draws": (-1, 0, 0, 0, 0, 1)},
        ],
    )
    def test_parts_that_do_not_fit_each_other(self, change):
        """A line whose parts are of different tables is damaged, not a number that looks right."""
        columns = to_columns([table(np.arange(24))])
        for name, value in change.items():
            columns[name] = [list(value) if isinstance(value, tuple) else value]
        with pytest.raises(DamagedRecord):
            from_columns(IndexStats, columns)
