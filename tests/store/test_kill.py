"""SIGKILL at 200 random moments of writers that write as fast as they can."""

import subprocess
import sys
from pathlib import Path

import pytest

from moetrace.errors import RunNotReadable
from moetrace.run import open_run
from moetrace.store import RunFolder
from tests.store.killed_writers import OPENING, snapshot
from tests.store.windows import HEADER, plain

KILLS = 200
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of 200 runs whose writers were killed."""
    folder = tmp_path_factory.mktemp("killed")
    program = [sys.executable, "-m", "tests.store.killed_writers", str(folder), str(KILLS)]
    subprocess.run(program, cwd=REPOSITORY, check=True, timeout=200)
    return folder


def acknowledged(folder: Path, number: int) -> int:
    """Snapshots that the writer saw acknowledged before it was killed."""
    return int.from_bytes((folder / f"{number}.acked").read_bytes(), "little")


class TestKilledWriters:
    def test_every_acknowledged_snapshot_is_read_back(self, killed: Path) -> None:
        """After SIGKILL the run holds all that was acknowledged, equal, and at most one more."""
        for number in range(KILLS):
            count = acknowledged(killed, number)
            try:
                run = open_run(killed / str(number))
            except RunNotReadable:
                assert count == 0
                continue
            found = run.snapshots()
            assert count <= len(found) <= count + 1
            assert plain(found) == plain([snapshot(seq, run.run_id) for seq in range(len(found))])
            assert all("torn tail" in fault for fault in run.faults)

    def test_the_kills_fell_into_the_writing(self, killed: Path) -> None:
        """Four of five writers had acknowledged snapshots, and not all of them equally many."""
        counts = [acknowledged(killed, number) for number in range(KILLS) if number % OPENING]
        assert len(counts) == 160
        assert min(counts) > 0
        assert len(set(counts)) > 5

    def test_a_killed_run_is_joined_by_the_next_attempt(self, killed: Path) -> None:
        """Whatever a killed writer left, the next process of the rank writes attempt 1."""
        for number in range(KILLS):
            folder = RunFolder.prepare(killed / str(number))
            started = any((killed / str(number)).glob("segments/*.claim"))
            segment = folder.open_segment(rank=0, header=HEADER)
            segment.close()
            assert segment.attempt == int(started)
            assert open_run(folder.path).run_id == folder.run_id
