"""Sums over ranks: of those that are there, each token once, and never more than was written."""

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.run import Run, open_run
from moetrace.snapshot import merge
from moetrace.topology import Topology
from tests.store.windows import window, write, writer


def totals(run: Run, layer: str = "a") -> list[list[int]]:
    """Tokens per expert of a layer in each train window."""
    return [found[layer].tokens_per_expert.tolist() for found in run.snapshots()]


def place(replicated: str = "tp", **coordinates: int) -> dict[str, Any]:
    """A topology as it stands in a header."""
    return {"topology": Topology(coordinates, replicated=(replicated,)).to_record()}


class TestCoverage:
    def test_a_rank_whose_files_are_gone(self, tmp_path: Path) -> None:
        """F5: 7 of 8 ranks add up to what they counted, and every figure says 7 of 8."""
        for rank in range(8):
            write(
                tmp_path, [window(seq, {"a": (rank, 1)}, rank=rank) for seq in (0, 1)], world_size=8
            )
        assert open_run(tmp_path).faults == ()
        (lost,) = tmp_path.glob("segments/00000-00003-*")
        shutil.rmtree(lost)
        run = open_run(tmp_path)
        assert totals(run) == [[25, 7]] * 2
        assert [found.health["coverage"] for found in run.snapshots()] == ["7 of 8"] * 2
        assert run.coverage == {"ranks": 7, "world_size": 8, "missing": [3], "stopped": {}}
        assert run.faults == ("1 of 8 ranks have left no segment",)

    def test_a_rank_that_died(self, tmp_path: Path) -> None:
        """F4: three ranks are complete, one stops at step 20; later windows say 3 of 4."""
        for rank in (0, 1, 3):
            write(
                tmp_path,
                [window(seq, {"a": (rank, 1)}, rank=rank) for seq in range(4)],
                world_size=4,
            )
        killed = writer(tmp_path, rank=2, world_size=4)
        for seq in range(2):
            killed.append(window(seq, {"a": (2, 1)}, rank=2))
        run = open_run(tmp_path)
        killed.close()
        assert totals(run) == [[6, 4], [6, 4], [4, 3], [4, 3]]
        told = [found.health.get("coverage") for found in run.snapshots()]
        assert told == [None, None, "3 of 4", "3 of 4"]
        assert run.coverage["stopped"] == {2: 20}
        assert run.faults == ("rank 2 stops at step 20, the others went on to step 40",)
        assert not run.finished

    def test_a_rank_of_a_live_run_may_be_a_window_behind(self, tmp_path: Path) -> None:
        """Nobody has stopped while one writer is about to write what the other has written."""
        open_segments = [writer(tmp_path, rank=rank, world_size=2) for rank in (0, 1)]
        for rank, windows in ((0, 3), (1, 2)):
            for seq in range(windows):
                open_segments[rank].append(window(seq, {"a": (rank, 1)}, rank=rank))
        run = open_run(tmp_path)
        for segment in open_segments:
            segment.close()
        assert run.faults == ()
        assert [found.health.get("coverage") for found in run.snapshots()] == [None, None, "1 of 2"]

    def test_stages_without_routers(self, tmp_path: Path) -> None:
        """F3: of four pipeline stages with 0, 1, 3 and 2 routers all four are there."""
        layers = [[], ["l.0"], ["l.1", "l.2", "l.3"], ["l.4", "l.5"]]
        for rank, names in enumerate(layers):
            sites = [{"name": name} for name in names]
            segment = writer(tmp_path, rank=rank, world_size=4, sites=sites)
            if names:
                segment.append(window(0, dict.fromkeys(names, (rank, 1)), rank=rank))
            segment.close()
        run = open_run(tmp_path)
        assert run.layers == tuple(f"l.{n}" for n in range(6))
        assert totals(run, "l.3") == [[2, 1]]
        assert run.coverage["ranks"] == 4
        assert "coverage" not in run.snapshots()[0].health
        assert run.faults == ()

    def test_one_rank_alone_is_whole(self, tmp_path: Path) -> None:
        """Asked for one rank, its windows are its own, with no word about the others."""
        write(tmp_path, [window(0, rank=1)], world_size=4)
        assert open_run(tmp_path).snapshots(rank=1)[0].health == {}


class TestCopies:
    def test_are_counted_once(self, tmp_path: Path) -> None:
        """F10: of two tensor-parallel ranks that saw the same tokens one counts."""
        for rank in range(4):
            dp, tp = divmod(rank, 2)
            write(
                tmp_path,
                [window(0, {"a": (dp, 5)}, rank=rank)],
                world_size=4,
                **place(dp=dp, tp=tp),
            )
        run = open_run(tmp_path)
        assert totals(run) == [[1, 10]]
        assert run.snapshots()[0].health["ranks"] == [0, 2]
        assert totals(run) == totals(open_run(tmp_path))
        assert run.faults == ()

    def test_one_stands_in_for_another(self, tmp_path: Path) -> None:
        """Where a copy died its twin still speaks for both, and nothing is missing."""
        for rank, windows in ((0, 1), (1, 3)):
            found = [window(seq, {"a": (seq, 5)}, rank=rank) for seq in range(windows)]
            write(tmp_path, found, world_size=2, **place(dp=0, tp=rank))
        run = open_run(tmp_path)
        assert totals(run) == [[0, 5], [1, 5], [2, 5]]
        assert [found.health.get("coverage") for found in run.snapshots()] == [None] * 3

    def test_that_did_not_count_the_same_are_told(self, tmp_path: Path) -> None:
        """A topology that is wrong about the tokens does not go by in silence."""
        for rank in (0, 1):
            write(
                tmp_path, [window(0, {"a": (rank, 5)}, rank=rank)], world_size=2, **place(tp=rank)
            )
        run = open_run(tmp_path)
        assert totals(run) == [[0, 5]]
        assert "ranks 0 and 1 are declared to route the same tokens" in run.faults[0]

    def test_without_a_topology_ranks_are_added_and_twins_are_told(self, tmp_path: Path) -> None:
        """F10: nothing is guessed; ranks that counted exactly the same are named."""
        for rank in (0, 1):
            write(
                tmp_path,
                [window(seq, {"a": (7 + seq, 5)}, rank=rank) for seq in (0, 1)],
                world_size=2,
            )
        run = open_run(tmp_path)
        assert totals(run) == [[14, 10], [16, 10]]
        assert "ranks 0, 1 counted exactly the same in all 2 windows" in run.faults[0]

    @settings(max_examples=20, deadline=None)
    @given(
        world=st.tuples(st.integers(1, 2), st.integers(1, 3)),
        cuts=st.lists(st.sets(st.integers(1, 5)), min_size=6, max_size=6),
        loads=st.lists(st.integers(0, 2**26), min_size=12, max_size=12),
    )
    def test_any_cadence_of_copies_keeps_the_sum(
        self, world: tuple[int, int], cuts: list[set[int]], loads: list[int], tmp_path_factory: Any
    ) -> None:
        """F2, F10: however dp x tp ranks cut the same six steps, each token counts once."""
        root = tmp_path_factory.mktemp("run")
        for rank in range(world[0] * world[1]):
            dp, tp = divmod(rank, world[1])
            steps = [
                window(0, {"a": (loads[dp * 6 + n], 1)}, rank=rank, steps=(n + 1, n + 1))
                for n in range(6)
            ]
            edges = [0, *sorted(cuts[rank]), 6]
            windows = [merge(steps[first:last]) for first, last in pairwise(edges)]
            write(root, windows, world_size=world[0] * world[1], **place(dp=dp, tp=tp))
        assert np.sum(totals(open_run(root)), axis=0).tolist() == [
            sum(loads[: 6 * world[0]]),
            6 * world[0],
        ]


class TestLives:
    def test_elastic_restarts(self, tmp_path: Path) -> None:
        """F7: 4, then 2, then 8 ranks: a step is the sum over the ranks that trained it last."""
        lives = ((4, range(4)), (2, range(1, 4)), (8, range(2, 6)))
        truth = {}
        for life, (size, windows) in enumerate(lives):
            for rank in range(size):
                before = sum(rank < earlier for earlier, _ in lives[:life])
                found = [
                    window(seq, {"a": (100 * life + rank, 1)}, rank=rank, attempt=before)
                    for seq in windows
                ]
                write(tmp_path, found, world_size=size)
            for seq in windows:
                truth[seq] = [sum(100 * life + rank for rank in range(size)), size]
        run = open_run(tmp_path)
        assert totals(run) == [truth[seq] for seq in range(6)]
        assert run.attempts == (0, 1, 2)
        assert run.coverage == {"ranks": 8, "world_size": 8, "missing": [], "stopped": {}}
        assert not any("coverage" in found.health for found in run.snapshots())
        assert run.faults == ()
        assert len(run.snapshots(superseded=True)) == 4 + 3 + 4

    def test_a_rank_that_is_missing_in_a_new_launch_does_not_count_on(self, tmp_path: Path) -> None:
        """F7: what rank 1 counted before the restart is no part of the steps trained again."""
        for rank in (0, 1):
            found = [window(seq, {"a": (1 + rank, 1)}, rank=rank) for seq in range(2)]
            write(tmp_path, found, world_size=2, launch="first")
        write(tmp_path, [window(1, {"a": (10, 1)}, attempt=1)], world_size=2, launch="second")
        run = open_run(tmp_path)
        assert totals(run) == [[3, 2], [10, 1]]
        assert run.snapshots()[1].health["coverage"] == "1 of 2"

    def test_a_rank_that_left_nothing_in_its_first_life(self, tmp_path: Path) -> None:
        """Attempt 0 of rank 1 beside attempt 1 of rank 0, of one launch: both count."""
        for attempt in (0, 1):
            found = [window(0, {"a": (10 + attempt, 1)}, attempt=attempt)]
            write(tmp_path, found, world_size=2, launch=f"launch {attempt}")
        write(tmp_path, [window(0, {"a": (5, 1)}, rank=1)], world_size=2, launch="launch 1")
        assert totals(open_run(tmp_path)) == [[16, 2]]

    def test_clocks_do_not_order(self, tmp_path: Path) -> None:
        """F12: ranks whose clocks are hours apart are put together by their steps."""
        for rank, clock in ((0, 0.0), (1, 7200.0)):
            segment = writer(tmp_path, rank=rank, world_size=2)
            for seq in range(3):
                found = window(seq, {"a": (rank, seq)}, rank=rank)
                object.__setattr__(found, "wall_time", clock - seq)
                segment.append(found)
            segment.close()
        run = open_run(tmp_path)
        assert totals(run) == [[1, 0], [1, 2], [1, 4]]
        assert run.steps().tolist() == [[1, 10], [11, 20], [21, 30]]

    def test_events_of_a_rank_stay_in_their_order(self, tmp_path: Path, monkeypatch: Any) -> None:
        """E7: a clock that is set back does not put a later event before an earlier one."""
        clock = iter([1000.0, 5000.0, 2000.0])
        monkeypatch.setattr("moetrace.store.files.wall", lambda: next(clock))
        segment = writer(tmp_path)
        segment.event("first", {})
        segment.event("second", {})
        monkeypatch.undo()
        segment.close()
        assert [event["kind"] for event in open_run(tmp_path).events()] == ["first", "second"]


class TestTwoWriters:
    def test_two_jobs_in_one_folder(self, tmp_path: Path, monkeypatch: Any) -> None:
        """F8, F9: two processes of one rank get distinct files, and the reader says so."""
        monkeypatch.setattr("moetrace.store.files.wall", lambda: 1000.0)
        first, second = writer(tmp_path), writer(tmp_path, attempt=1)
        for seq in range(5):
            first.append(window(seq, {"a": (1, seq)}))
            second.append(window(seq, {"a": (2, seq)}, attempt=1))
        first.close()
        second.close()
        run = open_run(tmp_path)
        assert "two processes wrote at once as rank 0 (attempts 0 and 1)" in run.faults[0]
        assert totals(run) == [[2, seq] for seq in range(5)]
        assert len(run.snapshots(superseded=True)) == 10
