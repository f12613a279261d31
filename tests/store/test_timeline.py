"""Which windows count after a resume, and which of several ranks belong together."""

from moetrace.store.names import SegmentName
from moetrace.store.segment import Entry
from moetrace.store.timeline import aligned, lives, without_superseded


def entry(
    first: int, last: int, *, rank: int = 0, attempt: int = 0, phase: str = "train", seq: int = 0
) -> Entry:
    """A window of these steps."""
    return Entry(
        segment=SegmentName(attempt, rank, "00000000"),
        run_id="run-1",
        line=0,
        offset=0,
        length=0,
        phase=phase,
        seq=seq,
        first_step=first,
        last_step=last,
        wall_time=0.0,
        digest=0,
        layers=(),
        experts=(),
        tokens=(),
    )


def left(entries: list[Entry], **world_sizes: int) -> list[tuple[int, int, int, int]]:
    """Rank, attempt and steps of what is not superseded; ``a1r0=2`` is a world of two ranks."""
    owners = {(entry.segment.attempt, entry.segment.rank): (0, "") for entry in entries}
    worlds = {(int(name[1]), int(name[3])): (size, "") for name, size in world_sizes.items()}
    kept = without_superseded(entries, lives=lives(owners | worlds))
    return [(e.segment.rank, e.segment.attempt, e.first_step, e.last_step) for e in kept]


def spans(entries: list[Entry]) -> list[list[tuple[int, int, int]]]:
    """Rank and steps of the entries of each group."""
    return [[(e.segment.rank, e.first_step, e.last_step) for e in g] for g in aligned(entries)]


class TestSuperseding:
    def test_a_resumed_run_writes_again_what_it_reaches(self) -> None:
        """Windows of attempt 0 that reach past the first step of attempt 1 no longer count."""
        entries = [entry(1, 10), entry(11, 20), entry(21, 30), entry(16, 25, attempt=1)]
        assert left(entries) == [(0, 0, 1, 10), (0, 1, 16, 25)]

    def test_a_run_that_goes_on_where_it_stopped_loses_nothing(self) -> None:
        """Attempt 1 that begins at the next step supersedes nothing."""
        entries = [entry(1, 10), entry(11, 20, attempt=1)]
        assert left(entries) == [(0, 0, 1, 10), (0, 1, 11, 20)]

    def test_evaluations_of_steps_that_are_trained_again_go_too(self) -> None:
        """The first train step of an attempt decides for all phases."""
        entries = [
            entry(10, 10, phase="eval"),
            entry(20, 20, phase="eval"),
            entry(11, 20, attempt=1),
        ]
        assert left(entries) == [(0, 0, 10, 10), (0, 1, 11, 20)]

    def test_an_evaluation_before_the_first_resumed_step_supersedes_no_training(self) -> None:
        """Evaluating at step 10 after a resume leaves the window of steps 1 to 10 alone."""
        entries = [
            entry(1, 10),
            entry(10, 10, attempt=1, phase="eval"),
            entry(11, 20, attempt=1),
        ]
        assert len(left(entries)) == 3

    def test_an_attempt_that_only_evaluates_supersedes_only_evaluations(self) -> None:
        """Evaluating a finished run again replaces the old evaluation, not the training."""
        entries = [
            entry(1, 10),
            entry(10, 10, phase="eval"),
            entry(10, 10, attempt=1, phase="eval"),
        ]
        assert left(entries) == [(0, 0, 1, 10), (0, 1, 10, 10)]

    def test_ranks_supersede_only_themselves(self) -> None:
        """A rank whose first life left no segment has other attempt numbers, and loses nothing."""
        entries = [
            entry(1, 10, rank=1),
            entry(1, 10, rank=0),
            entry(1, 10, rank=1, attempt=1),
        ]
        assert left(entries, a0r0=2, a0r1=2, a1r1=2) == [(0, 0, 1, 10), (1, 1, 1, 10)]

    def test_ranks_that_a_smaller_world_has_no_place_for_are_superseded(self) -> None:
        """Resumed on one rank instead of two, the old windows of rank 1 no longer count."""
        entries = [
            entry(1, 10),
            entry(1, 10, rank=1),
            entry(11, 20, rank=1),
            entry(11, 20, attempt=1),
        ]
        assert left(entries, a1r0=1) == [(0, 0, 1, 10), (1, 0, 1, 10), (0, 1, 11, 20)]


class TestAlignment:
    def test_equal_windows_of_all_ranks_belong_together(self) -> None:
        """One group per window, with an entry of each rank."""
        entries = [entry(1, 10), entry(11, 20), entry(11, 20, rank=1), entry(1, 10, rank=1)]
        assert spans(entries) == [[(0, 1, 10), (1, 1, 10)], [(0, 11, 20), (1, 11, 20)]]

    def test_a_coalesced_window_takes_what_it_spans(self) -> None:
        """Where rank 1 wrote 20 steps at once, the two windows of rank 0 are added to it."""
        entries = [
            entry(1, 10),
            entry(11, 20),
            entry(21, 30),
            entry(1, 20, rank=1),
            entry(21, 30, rank=1),
        ]
        assert spans(entries) == [
            [(0, 1, 10), (1, 1, 20), (0, 11, 20)],
            [(0, 21, 30), (1, 21, 30)],
        ]

    def test_a_rank_that_is_behind_leaves_windows_of_the_others(self) -> None:
        """In a live run the newest windows may lack a rank."""
        assert spans([entry(1, 10), entry(11, 20), entry(1, 10, rank=1)]) == [
            [(0, 1, 10), (1, 1, 10)],
            [(0, 11, 20)],
        ]

    def test_repeated_windows_of_the_same_step_are_paired(self) -> None:
        """Two evaluations at step 5 on each of two ranks are two groups, in their order."""
        entries = [entry(5, 5, rank=rank, seq=seq) for rank in (0, 1) for seq in (0, 1)]
        groups = aligned(entries)
        assert [[(e.segment.rank, e.seq) for e in group] for group in groups] == [
            [(0, 0), (1, 0)],
            [(0, 1), (1, 1)],
        ]

    def test_a_single_rank_stays_as_it_is(self) -> None:
        """Overlapping windows of one rank are not merged: they are what it wrote."""
        assert spans([entry(5, 9, seq=1), entry(5, 5)]) == [[(0, 5, 5)], [(0, 5, 9)]]
