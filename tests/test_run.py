"""A run as its readers see it: ranks merged, attempts in order, windows as tables."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.errors import RunNotReadable
from moetrace.metrics import METRICS
from moetrace.routing_stats import COUNTERS, VECTORS
from moetrace.run import open_run
from moetrace.snapshot import Snapshot, merge
from tests.store.windows import plain, stats, window, write, writer


def counts(snapshots: list[Snapshot]) -> list[dict[str, list[int]]]:
    """Counts per layer of each window."""
    return [{item.layer: item.tokens_per_expert.tolist() for item in found} for found in snapshots]


class TestOpenRun:
    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        """The message names the path and what to pass."""
        path = tmp_path / "nowhere"
        with pytest.raises(RunNotReadable, match="no such folder; pass the folder that attach"):
            open_run(path)
        with pytest.raises(RunNotReadable, match=str(path)):
            open_run(path)

    def test_a_folder_without_a_run(self, tmp_path: Path) -> None:
        """A folder with other files is not a run with faults."""
        (tmp_path / "notes.txt").touch()
        with pytest.raises(RunNotReadable, match="holds no run of moetrace"):
            open_run(tmp_path)

    def test_a_file(self, tmp_path: Path) -> None:
        """A file is no run folder."""
        (tmp_path / "run").touch()
        with pytest.raises(RunNotReadable, match="Not a directory"):
            open_run(tmp_path / "run")

    @pytest.mark.parametrize("path", ["", "nul\0byte"])
    def test_a_path_that_is_none(self, path: str, tmp_path: Path, monkeypatch: Any) -> None:
        """An impossible path is not readable, like any other."""
        monkeypatch.chdir(tmp_path)
        with pytest.raises(RunNotReadable):
            open_run(path)

    def test_a_run_that_has_only_just_begun(self, tmp_path: Path) -> None:
        """A run with a header and no window opens, and is empty."""
        segment = writer(tmp_path)
        run = open_run(tmp_path)
        segment.close()
        assert (run.phases, run.layers, run.ranks) == ((), ("a",), (0,))
        assert run.snapshots() == []
        assert run.counts().shape == (0, 1, 0)
        assert run.steps().shape == (0, 2)
        assert run.metric("load_cv").shape == (0, 1)
        assert run.summary()["windows"] == {}

    def test_opening_again_sees_what_was_written_since(self, tmp_path: Path) -> None:
        """A run is what stood there when it was opened; another process reads it while it grows."""
        segment = writer(tmp_path)
        segment.append(window(0))
        before = open_run(tmp_path)
        segment.append(window(1))
        program = (
            "import sys; from moetrace.run import open_run; print(open_run(sys.argv[1]).steps())"
        )
        told = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        segment.close()
        assert told.stdout.split() == ["[[", "1", "10]", "[11", "20]]"]
        assert len(before.snapshots()) == 1
        assert len(open_run(tmp_path).snapshots()) == 2

    def test_reading_a_run_imports_no_torch(self, tmp_path: Path) -> None:
        """Whoever only looks at a run pays for numpy, not for torch."""
        write(tmp_path, [window(0)])
        program = (
            "import sys; from moetrace.run import open_run; run = open_run(sys.argv[1]);"
            "run.summary(); run.metric('load_cv'); print('torch' in sys.modules)"
        )
        told = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True
        )
        assert told.stdout == "False\n", told.stderr


class TestRanks:
    def test_ranks_add_up(self, tmp_path: Path) -> None:
        """Windows of the same steps of all ranks become one, and its counts are their sum."""
        for rank, first in ((0, 3), (1, 10)):
            write(tmp_path, [window(seq, {"a": (first, seq)}, rank=rank) for seq in range(2)])
        run = open_run(tmp_path)
        assert run.ranks == (0, 1)
        assert counts(run.snapshots()) == [{"a": [13, 0]}, {"a": [13, 2]}]
        assert counts(run.snapshots(rank=1)) == [{"a": [10, 0]}, {"a": [10, 1]}]
        assert run.snapshots()[0].health["ranks"] == [0, 1]

    def test_what_does_not_add_is_the_lowest_rank_s(self, tmp_path: Path) -> None:
        """Rank, seq and the tracer's state of a merged window are those of rank 0."""
        write(tmp_path, [window(0, rank=0, health={"host": "one"})])
        write(tmp_path, [window(0, rank=1, health={"host": "two"})])
        (merged,) = open_run(tmp_path).snapshots()
        assert (merged.rank, merged.health["host"], merged.health["ranks"]) == (0, "one", [0, 1])

    @settings(max_examples=25, deadline=None)
    @given(
        cuts=st.lists(st.sets(st.integers(1, 7)), min_size=2, max_size=3),
        loads=st.lists(st.integers(0, 2**26), min_size=24, max_size=24),
    )
    def test_any_coalescing_keeps_every_sum(
        self, cuts: list[set[int]], loads: list[int], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """However ranks cut the same 8 steps into windows, all fields add up to the same totals.

        Steps are 1 to 8; a cut at 3 ends a window with step 3. The oracle adds one step at a time.
        """
        root = tmp_path_factory.mktemp("run")
        single = [
            window(step - 1, {"a": (loads[rank * 8 + step - 1], 1)}, rank=rank, steps=(step, step))
            for rank in range(len(cuts))
            for step in range(1, 9)
        ]
        for rank, ends in enumerate(cuts):
            edges = [0, *sorted(ends), 8]
            own = single[rank * 8 : rank * 8 + 8]
            windows = [merge(own[first:last]) for first, last in pairwise(edges)]
            write(root, [replace(item, seq=seq) for seq, item in enumerate(windows)])
        run = open_run(root)
        found = run.snapshots()
        for name in (*VECTORS, *COUNTERS):
            total = sum(np.asarray(getattr(item["a"], name)) for item in found)
            assert np.array_equal(total, sum(np.asarray(getattr(s["a"], name)) for s in single))
        spans = run.steps().tolist()
        assert [first for first, _ in spans] == [1, *(last + 1 for _, last in spans[:-1])]
        common = set.intersection(*cuts)
        assert [last for _, last in spans] == [*sorted(common), 8]

    def test_layers_of_pipeline_stages_stand_side_by_side(self, tmp_path: Path) -> None:
        """A layer that only one rank holds keeps its counts; the model's order is by number."""
        write(tmp_path, [window(0, {"l.0": (1, 2), "l.10": (3, 4)}, rank=0)], sites=[])
        write(tmp_path, [window(0, {"l.2": (5, 6), "l.0": (7, 8)}, rank=1)], sites=[])
        run = open_run(tmp_path)
        assert sorted(run.layers) == ["l.0", "l.10", "l.2"]
        assert counts(run.snapshots()) == [{"l.0": [8, 10], "l.10": [3, 4], "l.2": [5, 6]}]

    def test_interleaved_stages_are_put_in_the_model_s_order(self, tmp_path: Path) -> None:
        """Rank 0 holds layers 0 and 2, rank 1 layers 1 and 10: the run shows 0, 1, 2, 10."""
        for rank, names in ((0, ("l.0", "l.2")), (1, ("l.1", "l.10"))):
            write(
                tmp_path,
                [window(0, dict.fromkeys(names, (1, 1)), rank=rank)],
                sites=[{"name": name} for name in names],
                world_size=2,
            )
        run = open_run(tmp_path)
        assert run.layers == ("l.0", "l.1", "l.2", "l.10")
        assert run.snapshots()[0].layers == run.layers
        assert [site["name"] for site in run.manifest["sites"]] == ["l.0", "l.2", "l.1", "l.10"]

    def test_ranks_that_disagree_on_a_layer_are_not_added(self, tmp_path: Path) -> None:
        """A window in which one layer has two numbers of experts is left out, and told."""
        write(tmp_path, [window(0, {"a": (1, 2)}, rank=0)])
        write(tmp_path, [window(0, {"a": (1, 2, 3)}, rank=1)])
        run = open_run(tmp_path)
        assert run.snapshots() == []
        assert run.faults == ("steps 1 to 10: a has [3, 2] experts; left out",)
        assert len(run.snapshots(rank=1)) == 1

    def test_ranks_that_left_nothing_are_told(self, tmp_path: Path) -> None:
        """A sum over 2 of 4 ranks says that it is one."""
        for rank in (0, 3):
            write(tmp_path, [window(0, {"a": (rank, 1)}, rank=rank)], world_size=4)
        assert open_run(tmp_path).faults == ("2 of 4 ranks have left no segment",)


class TestAttempts:
    def test_a_later_attempt_supersedes_what_it_writes_again(self, tmp_path: Path) -> None:
        """Resumed at step 11, the windows of steps 11 to 30 of the first life no longer count."""
        write(tmp_path, [window(seq, {"a": (100 + seq, 0)}) for seq in range(3)])
        write(tmp_path, [window(seq, {"a": (200 + seq, 0)}, attempt=1) for seq in (1, 2, 3)])
        run = open_run(tmp_path)
        assert run.attempts == (0, 1)
        assert run.counts()[:, 0, 0].tolist() == [100, 201, 202, 203]
        assert run.summary()["windows"] == {"train": 4}

    def test_superseded_windows_can_be_asked_for(self, tmp_path: Path) -> None:
        """Nothing is thrown away: superseded=True gives all attempts, one after the other."""
        write(tmp_path, [window(seq, {"a": (100 + seq, 0)}) for seq in range(2)])
        write(tmp_path, [window(seq, {"a": (200 + seq, 0)}, attempt=1) for seq in range(1, 3)])
        found = open_run(tmp_path).snapshots(superseded=True)
        assert [(s.attempt, s["a"].tokens_per_expert[0]) for s in found] == [
            (0, 100),
            (0, 101),
            (1, 201),
            (1, 202),
        ]


class TestTables:
    def test_layers_with_fewer_experts_are_padded(self, tmp_path: Path) -> None:
        """-1 is no count: beyond a layer's experts, and where a layer is not in a window."""
        write(tmp_path, [window(0, {"a": (1, 2), "b": (3, 4, 5)}), window(1, {"b": (6, 7, 8)})])
        assert open_run(tmp_path).counts().tolist() == [
            [[1, 2, -1], [3, 4, 5]],
            [[-1, -1, -1], [6, 7, 8]],
        ]

    def test_metrics_are_those_of_the_merged_counts(self, tmp_path: Path) -> None:
        """Ratios are formed after adding: two one-sided ranks make a balanced window."""
        write(tmp_path, [window(0, {"a": (8, 0)}, rank=0)])
        write(tmp_path, [window(0, {"a": (0, 8)}, rank=1)])
        run = open_run(tmp_path)
        assert run.metric("load_cv").tolist() == [[0.0]]
        assert run.metric("max_vio").tolist() == [[0.0]]

    def test_an_undefined_metric_is_nan(self, tmp_path: Path) -> None:
        """A window without tokens has no imbalance, and a layer that is not there has none."""
        write(tmp_path, [window(0, {"a": (0, 0), "b": (1, 0)}), window(1, {"a": (1, 0)})])
        found = open_run(tmp_path).metric("load_cv")
        assert np.isnan(found).tolist() == [[True, False], [False, True]]

    def test_every_metric_has_a_table(self, tmp_path: Path) -> None:
        """Each name that RoutingStats.metrics knows can be asked for."""
        write(tmp_path, [window(0)])
        run = open_run(tmp_path)
        assert {run.metric(name).shape for name in METRICS} == {(1, 1)}

    def test_an_unknown_metric_is_a_mistake(self, tmp_path: Path) -> None:
        """The message lists the metrics there are."""
        write(tmp_path, [window(0)])
        with pytest.raises(ValueError, match="found no metric 'beauty'; the metrics are load_cv"):
            open_run(tmp_path).metric("beauty")

    def test_a_table_belongs_to_who_asked(self, tmp_path: Path) -> None:
        """Changing a table that was given out changes nothing for the next one."""
        write(tmp_path, [window(0)])
        run = open_run(tmp_path)
        run.metric("load_cv")[:] = 7.0
        assert run.metric("load_cv").tolist() == [[1.0]]

    def test_phases_have_windows_of_their_own(self, tmp_path: Path) -> None:
        """Training first; counts of one phase are in no other."""
        write(
            tmp_path,
            [
                window(0, {"a": (5, 0)}, phase="eval", steps=(10, 10)),
                window(1, {"a": (1, 1)}, phase="train"),
                window(2, {"a": (9, 0)}, phase="rollout", steps=(20, 20)),
            ],
        )
        run = open_run(tmp_path)
        assert run.phases == ("train", "eval", "rollout")
        assert run.counts(phase="eval").tolist() == [[[5, 0]]]
        assert run.steps(phase="rollout").tolist() == [[20, 20]]
        assert run.steps(phase="no such phase").shape == (0, 2)

    def test_events_are_in_the_order_of_time(self, tmp_path: Path) -> None:
        """Events of all ranks, with who saw them."""
        first, second = writer(tmp_path, rank=1), writer(tmp_path, rank=0)
        first.event("alert", {"layer": "a"})
        second.event("resume", {"step": 10})
        first.close()
        second.close()
        found = [(event["kind"], event["rank"]) for event in open_run(tmp_path).events()]
        assert found == [("alert", 1), ("resume", 0)]

    @pytest.mark.parametrize("library", ["pandas", "polars"])
    def test_a_long_table_for_other_libraries(
        self, tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A row per window and layer, a column per metric, None where it is undefined.

        A stand-in shows what the library's DataFrame is called with; nothing else is used of it.
        """
        write(tmp_path, [window(0, {"a": (3, 1), "b": (0, 0)}), window(1, {"a": (2, 2)})])
        monkeypatch.setitem(sys.modules, library, SimpleNamespace(DataFrame=dict))
        table = getattr(open_run(tmp_path), f"to_{library}")()
        assert table["layer"] == ["a", "b", "a"]
        assert table["load_cv"] == [0.5, None, 0.0]
        assert [table[name] for name in ("first_step", "last_step", "num_experts", "tokens")] == [
            [1, 1, 11],
            [10, 10, 20],
            [2, 2, 2],
            [4, 0, 4],
        ]
        assert set(METRICS) < set(table)


class TestSummary:
    def test_a_phase_that_is_superseded_as_a_whole_is_not_listed(self, tmp_path: Path) -> None:
        """An evaluation of steps that were trained again is no phase of the run any more."""
        write(tmp_path, [window(0), window(1, phase="eval", steps=(10, 10))])
        write(tmp_path, [window(0, attempt=1)])
        run = open_run(tmp_path)
        assert (run.phases, run.summary()["windows"]) == (("train",), {"train": 1})

    def test_a_run_in_plain_values(self, tmp_path: Path) -> None:
        """Everything in it can be written as JSON; tokens are those of the busiest layer."""
        write(
            tmp_path,
            [
                window(0, {"a": (3, 1), "b": (1, 1)}),
                window(1, {"a": (2, 2), "b": (1, 1)}),
                window(2, {"a": (1, 1), "b": (0, 5)}, phase="eval", steps=(20, 20)),
            ],
        )
        found = json.loads(json.dumps(open_run(tmp_path).summary()))
        assert found == {
            "run_id": "run-1",
            "model": "TinyMoE",
            "layers": ["a", "b"],
            "experts": [2, 2],
            "windows": {"train": 2, "eval": 1},
            "steps": {"train": [1, 20], "eval": [20, 20]},
            "tokens": {"train": 8, "eval": 5},
            "ranks": [0],
            "attempts": [0],
            "coverage": {"ranks": 1, "world_size": 1, "missing": [], "stopped": {}},
            "finished": True,
            "faults": [],
        }

    def test_the_manifest_is_what_the_tracer_said(self, tmp_path: Path) -> None:
        """The header without the store's own keys, of the lowest rank's last attempt."""
        write(tmp_path, [window(0)], every=10)
        write(tmp_path, [window(0, attempt=1)], every=5)
        write(tmp_path, [window(0, rank=1)], every=7)
        manifest = open_run(tmp_path).manifest
        assert manifest == {
            "model": "TinyMoE",
            "every": 5,
            "world_size": 1,
            "sites": [{"name": "a"}],
        }

    def test_stats_are_the_ones_that_were_written(self, tmp_path: Path) -> None:
        """One rank, one attempt: snapshots come back as they are."""
        written = [replace(window(0), routing=(stats("a", (1, 2), entropy_sum=7, margin_sum=-3),))]
        write(tmp_path, written)
        assert plain(open_run(tmp_path).snapshots()) == plain(written)
