"""SIGKILL at 200 random moments of writers that write as fast as they can."""

import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from moetrace.errors import RunNotReadable
from moetrace.run import open_run
from moetrace.store import RunFolder
from tests.store.fault_files import KILL, Faults
from tests.store.killed_at import LATEST, write_three
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
        """D1: after SIGKILL the run holds all that was acknowledged, equal; at most one more."""
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
        """C11, D1: whatever a killed writer left, the next process of the rank writes attempt 1."""
        for number in range(KILLS):
            folder = RunFolder.prepare(killed / str(number))
            started = any((killed / str(number)).glob("segments/*.claim"))
            segment = folder.open_segment(rank=0, header=HEADER)
            segment.close()
            assert segment.attempt == int(started)
            assert open_run(folder.path).run_id == folder.run_id


class TestKilledAtEachOperation:
    def test_every_acknowledged_window_is_read_back(self, tmp_path: Path) -> None:
        """C14, D2: killed at each operation of a run, from its making to its end, in turn."""
        killed = 0
        for first in range(1, 1000):
            root = tmp_path / str(first)
            with mmap.mmap(-1, 8) as acked:
                child = os.fork()
                if child == 0:
                    write_three(root, acked, Faults(KILL, first=first))
                status = os.waitpid(child, 0)[1]
                count = int.from_bytes(acked[:8], "little")
            try:
                run = open_run(root)
            except RunNotReadable:
                assert count == 0
            else:
                found = run.snapshots()
                assert count <= len(found) <= count + 1
                assert plain(found) == plain([snapshot(s, run.run_id) for s in range(len(found))])
            RunFolder.prepare(root).open_segment(rank=0, header=HEADER).close()
            if not os.WIFSIGNALED(status):
                break
            killed += 1
        assert os.WEXITSTATUS(status) == 0
        assert count == 3
        assert killed > 40

    @pytest.mark.parametrize("call", ["write", "pwrite64", "fdatasync", "rename"])
    def test_so_it_is_at_each_call_of_the_system(self, tmp_path: Path, call: str) -> None:
        """C14, D2: strace kills a writer at the first, second, ... call of a kind."""
        if shutil.which("strace") is None:
            pytest.skip("strace is not installed")
        program = [
            *(
                "strace",
                "-f",
                "-o",
                "/dev/null",
                "-e",
                f"inject={call}:signal=SIGKILL:when={LATEST}",
            ),
            *(sys.executable, "-m", "tests.store.killed_at", str(tmp_path), call, str(LATEST)),
        ]
        done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
        if done.returncode and "ptrace" in done.stderr:
            pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        outcomes = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
        for number, _, count in outcomes:
            try:
                run = open_run(tmp_path / str(number))
            except RunNotReadable:
                assert count == 0
                continue
            found = run.snapshots()
            assert count <= len(found) <= count + 1
            assert plain(found) == plain([snapshot(s, run.run_id) for s in range(len(found))])
        killed = [was_killed for _, was_killed, _ in outcomes]
        assert 1 in killed
        assert killed[-1] == 0, f"there are more than {len(killed)} calls of {call}"
