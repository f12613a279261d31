"""Windows of several runs as spans of the same steps."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moetrace.compare.spans import Span, spans_of
from moetrace.snapshot import Snapshot
from tests.report.made import stats, window


def history(*ends: tuple[int, int]) -> list[Snapshot]:
    """Windows from and to these steps; each step is two assignments to expert 0."""
    return [window(first, last, stats("a", [2 * (last - first + 1), 0])) for first, last in ends]


def told(span: Span) -> tuple[int, int, bool]:
    """Where a span is, and whether the runs have the same of it."""
    return span.first_step, span.last_step, span.same


class TestSpansOf:
    def test_windows_that_agree_stay_apart(self) -> None:
        """Two windows each give two spans."""
        spans = list(spans_of([history((1, 10), (11, 20))] * 2))
        assert list(map(told, spans)) == [(1, 10, True), (11, 20, True)]

    def test_short_windows_are_added_up(self) -> None:
        """1-5 and 6-10 beside 1-10 are one span, and their counts add."""
        one, two = history((1, 5), (6, 10)), history((1, 10))
        (span,) = spans_of([one, two])
        assert (told(span), span.windows) == ((1, 10, True), (2, 1))
        assert [own["a"].tokens_per_expert.tolist() for own in span.layers] == [[20, 0]] * 2

    def test_windows_that_cross_are_one_span(self) -> None:
        """1-6, 7-12 beside 1-4, 5-8, 9-12: nothing may be cut."""
        one, two = history((1, 6), (7, 12)), history((1, 4), (5, 8), (9, 12))
        assert list(map(told, spans_of([one, two]))) == [(1, 12, True)]

    def test_other_steps_are_not_the_same(self) -> None:
        """A run that begins later, ends earlier or has a hole is not compared there."""
        whole = history((1, 10), (11, 20), (21, 30))
        for other in (history((6, 10)), history((1, 10)), history((1, 4), (8, 10))):
            spans = list(spans_of([whole, other]))
            assert [span.same for span in spans] == [other[0].first_step == 1 == len(other), 0, 0]
            assert not spans[1].layers[0]

    def test_a_layer_of_some_windows_only_is_left_out(self) -> None:
        """What is added up must be whole; another number of experts is another layer."""
        parts = [
            window(1, 5, stats("a", [1, 1]), stats("b", [1, 1]), stats("c", [1, 1])),
            window(6, 10, stats("a", [1, 1]), stats("c", [1, 1, 1])),
        ]
        (span,) = spans_of([parts, history((1, 10))])
        assert set(span.layers[0]) == {"a"}

    def test_windows_of_one_step_each_are_put_together(self) -> None:
        """Evaluations after the same step are one span."""
        (span,) = spans_of([history((10, 10), (10, 10)), history((10, 10))])
        assert (told(span), span.windows) == ((10, 10, True), (2, 1))

    @given(st.lists(st.lists(st.integers(1, 12), unique=True), min_size=2, max_size=3))
    def test_is_what_sets_of_steps_say(self, cuts: list[list[int]]) -> None:
        """The oracle looks at each step of each run: smallest spans, none crossed, same steps."""
        runs = [history(*((a + 1, b) for a, b in pairwise([0, *sorted(own)]))) for own in cuts]
        spans = list(spans_of(runs))
        for span, after in pairwise(spans):
            assert span.last_step < after.first_step
        for span in spans:
            inside = [
                [item for item in own if span.first_step <= item.first_step <= span.last_step]
                for own in runs
            ]
            assert tuple(map(len, inside)) == span.windows
            assert all(item.last_step <= span.last_step for own in inside for item in own)
            steps = [
                {s for item in own for s in range(item.first_step, item.last_step + 1)}
                for own in inside
            ]
            assert span.same == all(item == steps[0] for item in steps)
            crossed = {s for own in inside for i in own for s in range(i.first_step, i.last_step)}
            assert crossed == set(range(span.first_step, span.last_step))
            if span.same:
                counts = [int(np.sum(own["a"].tokens_per_expert)) for own in span.layers]
                assert counts == [2 * len(item) for item in steps]
        assert sum(sum(span.windows) for span in spans) == sum(map(len, runs))
