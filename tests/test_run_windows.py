from dataclasses import replace
from pathlib import Path

from moetrace.run import Run, open_run
from moetrace.store import RunFolder
from tests.report.made import stats, window


def recorded_by(path: Path, *, ranks: int, windows: int = 4) -> Run:
    """A run whose ranks each use expert 0 of three, and rank 1 also expert 1."""
    folder = RunFolder.prepare(path)
    for rank in range(ranks):
        segment = folder.open_segment(rank=rank, header={"world_size": ranks})
        for seq in range(windows):
            made = window(10 * seq + 1, 10 * seq + 10, stats("mlp", [4, rank, 0]))
            health = {"never_used_experts": 2 - rank, "sample": 1}
            made = replace(made, run_id=folder.run_id, rank=rank, seq=seq, health=health)
            segment.append(made)
        segment.close()
    return open_run(path)


class TestWindowsAfter:
    def test_are_those_that_end_later(self, tmp_path: Path) -> None:
        """Windows of ten steps, after step 20 and after a step within one."""
        run = recorded_by(tmp_path / "run", ranks=1)
        for after, ends in ((None, [10, 20, 30, 40]), (20, [30, 40]), (25, [30, 40]), (40, [])):
            assert [found.last_step for found in run.windows(after=after)] == ends

    def test_say_what_one_process_knew(self, tmp_path: Path) -> None:
        """A single rank's own figures are in its record, whatever was read before."""
        (*_, last) = recorded_by(tmp_path / "run", ranks=1).windows(after=30)
        assert last.health["never_used_experts"] == 2

    def test_leave_out_what_only_earlier_windows_could_tell(self, tmp_path: Path) -> None:
        """Two ranks: which experts nobody used is known from all windows alone."""
        run = recorded_by(tmp_path / "run", ranks=2)
        (*_, last) = run.windows(after=30)
        assert "never_used_experts" not in last.health
        assert last["mlp"].tokens_per_expert.tolist() == [8, 1, 0]
        (*_, whole) = run.windows()
        assert whole.health["never_used_experts"] == 1
