"""One int64 per expert and statistic, against an oracle with a dict for each step and window."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.index_layout import SCORE_BITS, STEP_BITS, WINDOW_BITS, IndexLayout
from moetrace.ops import TracerState, index_sums, indices, table_sums
from moetrace.ops.index_sums import add_draws, add_scored
from moetrace.ops.table_sums import MOST_IN_STEP, MOST_IN_WINDOW, TableSums

EXPERTS = 5
LAYOUT = IndexLayout(EXPERTS, scored=True)
CPU = torch.device("cpu")
HALF = 1 << (SCORE_BITS - 1)

look_ups = st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=6)
acts = st.one_of(look_ups, st.sampled_from(["commit", "drop", "close"]))


class Oracle:
    """A counter for the open step and one for the open window, and the same for scores."""

    def __init__(self):
        self.step, self.window = Counter(), Counter()
        self.scores, self.scored = Counter(), 0
        self.stepping = False

    def look_up(self, ids):
        """Each id is drawn once, with a score of one half."""
        self.step.update(ids)
        self.scores.update(ids)
        self.scored += 1
        self.stepping = True

    def commit(self):
        """The step is of the window."""
        self.window += self.step
        self.step, self.stepping = Counter(), False

    def drop(self):
        """The step is of nothing, and takes the scores of its window along."""
        if self.stepping:
            self.scores, self.scored = Counter(), 0
        self.step, self.stepping = Counter(), False

    def close(self):
        """The window's draws; its scores unless a step is open."""
        draws, self.window = self.window, Counter()
        if self.stepping:
            return draws, Counter(), 0
        scores, scored = self.scores, self.scored
        self.scores, self.scored = Counter(), 0
        return draws, scores, scored


class Sums:
    """The same acts on a table's sums, as the operators and the meter do them."""

    def __init__(self):
        self.state = indices.IndexState(TracerState())
        self.table = TableSums(LAYOUT, CPU)

    def look_up(self, ids):
        """Draw and score."""
        ids = torch.tensor([ids])
        room = indices._room(self.state, 0, self.table.sums, LAYOUT, index_sums.most_added(ids))
        drawn = add_draws(self.state.tracer, room, LAYOUT, ids, None)
        add_scored(self.state.tracer, self.table.sums, LAYOUT, drawn, torch.full(ids.shape, 0.5))

    def commit(self):
        """End the step."""
        self.table.commit(self.state.most.get(0, 0), self.state.surplus.get(0))
        self.state.forget_step()

    def drop(self):
        """Forget the step."""
        self.table.drop(surplus=0 in self.state.surplus)
        self.state.forget_step()

    def close(self):
        """What the window holds."""
        into = torch.zeros(LAYOUT.width, dtype=torch.int64)
        self.table.close(into, surplus=0 in self.state.surplus)
        draws, scores = into[:EXPERTS], into[LAYOUT.score_sum : LAYOUT.score_sum + EXPERTS]
        return counted(draws), counted(scores // HALF), int(into[LAYOUT.scalar("scored_calls")])


def counted(numbers):
    """Numbers that are not 0, by their expert."""
    return Counter({at: int(number) for at, number in enumerate(numbers.tolist()) if number})


def same(acts):
    """Do the acts, and hold every closed window against the oracle."""
    ours, oracle = Sums(), Oracle()
    for act in [*acts, "close", "commit", "close"]:
        if isinstance(act, list):
            ours.look_up(act)
            oracle.look_up(act)
        else:
            assert getattr(ours, act)() == getattr(oracle, act)()


class TestTableSums:
    @given(st.lists(acts, max_size=30))
    def test_equals_two_counters(self, acts):
        """Draws of every window are those of its finished steps, in whatever order things happen;
        scores are those since the last step that was dropped, and a step that is open keeps them.
        """
        same(acts)

    @settings(max_examples=50)
    @given(st.lists(acts, max_size=30), st.booleans())
    def test_equals_them_on_a_device(self, acts, small):
        """The form for devices does the same, also where there is no room in a step."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(index_sums, "_on_host", lambda sums: False)
            if small:
                patch.setattr(indices, "MOST_IN_STEP", 4)
            same(acts)

    @given(st.lists(acts, max_size=30), st.integers(0, 12), st.integers(12, 30))
    def test_nothing_is_lost_where_there_is_no_room(self, acts, step, window):
        """Draws of a step or a window that could outgrow their bits are kept beside them, exact."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(indices, "MOST_IN_STEP", step)
            patch.setattr(table_sums, "MOST_IN_WINDOW", window)
            same(acts)

    def test_the_limits_are_those_of_the_bits(self):
        """28 bits for a step and 35 for a window fill an int64 up to its sign."""
        assert (MOST_IN_STEP, MOST_IN_WINDOW) == (2**28 - 1, 2**35 - 1)
        assert STEP_BITS + WINDOW_BITS == 63

    def test_the_room_of_a_step_is_used_to_the_last_draw(self, monkeypatch):
        """As many draws as the bits hold stand in the table's own sums, one more beside them."""
        monkeypatch.setattr(indices, "MOST_IN_STEP", 4)
        ours = Sums()
        ours.look_up([0, 0, 0])
        ours.look_up([0])
        assert ours.state.surplus == {}
        ours.look_up([0])
        assert ours.state.surplus[0][:EXPERTS].tolist() == [1, 0, 0, 0, 0]

    def test_the_largest_counts_fit(self):
        """A step of 2**28 - 1 draws of one expert, into a window of nearly 2**35 that is full."""
        table = TableSums(LAYOUT, CPU)
        table.sums[2] = ((2**35 - 2**28) << STEP_BITS) | (2**28 - 1)
        table.commit(0)
        into = torch.zeros(LAYOUT.width, dtype=torch.int64)
        table.close(into)
        assert into[:EXPERTS].tolist() == [0, 0, 2**35 - 1, 0, 0]
        assert table.sums.tolist() == [0] * LAYOUT.width

    def test_a_window_that_outgrows_an_expert_is_exact(self):
        """A window of 2**36 draws of one expert, in steps of 2**28 - 1, is counted to the last."""
        table = TableSums(LAYOUT, CPU)
        for _ in range(257):
            table.sums[0] += 2**28 - 1
            table.commit(2**28 - 1)
        into = torch.zeros(LAYOUT.width, dtype=torch.int64)
        table.close(into)
        assert into[0] == 257 * (2**28 - 1) > 2**36
        assert table.kept is None

    def test_a_step_ends_at_the_same_address(self):
        """Nothing that a captured graph writes to moves, at the end of a step or of a window."""
        table = TableSums(LAYOUT, CPU)
        address = table.sums.data_ptr()
        table.commit(1)
        table.drop()
        table.close(torch.zeros(LAYOUT.width, dtype=torch.int64))
        assert table.sums.data_ptr() == address
