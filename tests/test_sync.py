"""What a replay of a run folder sends to a sink, and what it says when that fails."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from moetrace.cli import main
from moetrace.errors import SinkFailed
from moetrace.run import open_run
from moetrace.sinks import ConsoleSink, MemorySink
from moetrace.snapshot import Snapshot
from moetrace.store import RunFolder
from moetrace.sync import Synced, make_sink, sync_run
from tests.store.windows import HEADER, window, write

made: list[MemorySink] = []


def factory() -> MemorySink:
    """A sink as a user's own module makes it."""
    made.append(MemorySink())
    return made[-1]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three training windows, an evaluation after the second; the third was written twice."""
    write(tmp_path, [window(0), window(1), window(2), window(3, phase="eval", steps=(20, 20))])
    write(tmp_path, [window(0, attempt=1, steps=(21, 30), layers={"a": (9, 9)})])
    return tmp_path


def spans(snapshots: list[Snapshot]) -> list[tuple[str, int, int]]:
    """Phase and steps of each."""
    return [(s.phase, s.first_step, s.last_step) for s in snapshots]


class TestSyncRun:
    def test_sends_each_step_once_in_order(self, root: Path) -> None:
        """B12: all phases by turns, in the order of their steps, the latest attempt of each."""
        sink = MemorySink()
        assert sync_run(open_run(root), sink) == Synced(windows=4, last_step=30)
        assert spans(sink.snapshots) == [
            ("train", 1, 10),
            ("train", 11, 20),
            ("eval", 20, 20),
            ("train", 21, 30),
        ]
        assert sink.snapshots[-1]["a"].tokens_per_expert.tolist() == [9, 9]

    def test_adds_all_ranks(self, tmp_path: Path) -> None:
        """A tracker sees the run, not one of its ranks."""
        for rank in range(2):
            write(tmp_path, [window(1, rank=rank)], world_size=2)
        sink = MemorySink()
        sync_run(open_run(tmp_path), sink)
        assert [s["a"].tokens_per_expert.tolist() for s in sink.snapshots] == [[2, 2]]

    def test_may_begin_after_a_step(self, root: Path) -> None:
        """B12: what a tracker has already is left out where the caller says up to which step."""
        sink = MemorySink()
        assert sync_run(open_run(root), sink, after=20) == Synced(1, 30)
        assert spans(sink.snapshots) == [("train", 21, 30)]

    def test_remembers_nothing(self, root: Path) -> None:
        """A second replay sends the same again, and the folder is as it was."""
        before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
        sinks = [MemorySink(), MemorySink()]
        for sink in sinks:
            sync_run(open_run(root), sink)
        assert spans(sinks[0].snapshots) == spans(sinks[1].snapshots)
        assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before

    @pytest.mark.parametrize(("fails", "words"), [(0, "try again"), (2, "go on with --after 20")])
    def test_says_how_to_go_on_after_a_failure(self, root: Path, fails: int, words: str) -> None:
        """A sink that raises ends the replay; the message says from where to go on."""

        class Down(MemorySink):
            closed = False

            def write(self, snapshot: Snapshot, /) -> None:
                if len(self.snapshots) == fails:
                    raise ConnectionError("no network")
                super().write(snapshot)

            def close(self) -> None:
                self.closed = True

        sink = Down()
        with pytest.raises(SinkFailed, match=f"Down failed after {fails} windows.*{words}"):
            sync_run(open_run(root), sink)
        assert sink.closed


class TestMakeSink:
    def test_by_the_name_of_an_entry_point(self) -> None:
        """A sink that is installed has a name."""
        assert isinstance(make_sink("console"), ConsoleSink)

    def test_by_the_path_of_a_factory(self) -> None:
        """Anything that can be imported and called makes a sink."""
        assert make_sink("tests.test_sync:factory") is made[-1]

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("nobody", "found no sink 'nobody'; there are console, "),
            ("tests.test_sync:nothing", "found no function or class 'nothing'"),
            ("tests.test_sync:made", "found no function or class 'made'"),
        ],
    )
    def test_what_is_none_is_refused(self, name: str, words: str) -> None:
        """The message says what there is."""
        with pytest.raises(ValueError, match=words):
            make_sink(name)


class TestCommand:
    def test_prints_one_line(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """What was sent, and up to which step."""
        assert main(["sync", str(root), "--to", "tests.test_sync:factory"]) == 0
        expected = "sent 4 windows to tests.test_sync:factory, up to step 30\n"
        assert capsys.readouterr().out == expected
        assert len(made[-1].snapshots) == 4

    def test_prints_json(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The same for a program."""
        arguments = ["sync", str(root), "--to", "tests.test_sync:factory", "--after", "20"]
        assert main([*arguments, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {
            "run_id": "run-1",
            "sink": "tests.test_sync:factory",
            "windows": 1,
            "last_step": 30,
            "faults": [],
        }

    def test_a_name_in_a_run_is_never_imported(self, tmp_path: Path) -> None:
        """I12: whatever sinks and modules a run names, only the caller's name is looked up."""
        folder = RunFolder.prepare(tmp_path)
        named: dict[str, Any] = {"sink": "os:system", "sinks": ["antigravity:main"]}
        segment = folder.open_segment(rank=0, header={**HEADER, **named, "model": "this:main"})
        segment.append(window(0, run_id=folder.run_id, health={"sink": "antigravity:main"}))
        segment.close()
        assert main(["sync", str(tmp_path), "--to", "tests.test_sync:factory"]) == 0
        assert not {"antigravity", "this"} & sys.modules.keys()
