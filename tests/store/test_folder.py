"""Which folders a run may be written into, and what a process finds out when it joins one."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from moetrace.errors import RunFolderError
from moetrace.run import open_run
from moetrace.store import RunFolder, files
from tests import leaks
from tests.store.fault_files import Faults
from tests.store.windows import HEADER, log_of, window


def refused(path: str | os.PathLike[str]) -> str:
    """The message that a folder is refused with."""
    with pytest.raises(RunFolderError) as caught:
        RunFolder.prepare(path)
    return str(caught.value)


class TestPrepare:
    def test_a_folder_is_made_with_its_parents(self, tmp_path: Path) -> None:
        """C7: a path that is not there becomes a run folder with a manifest."""
        folder = RunFolder.prepare(tmp_path / "runs" / "one")
        manifest = json.loads((tmp_path / "runs/one/run.json").read_text())
        assert manifest == {"format": 1, "run_id": folder.run_id}

    def test_an_empty_folder_is_taken(self, tmp_path: Path) -> None:
        """A folder that somebody made for the run is used."""
        assert RunFolder.prepare(tmp_path).path == str(tmp_path)

    def test_a_run_is_joined(self, tmp_path: Path) -> None:
        """A second process that prepares the folder is in the same run."""
        assert RunFolder.prepare(tmp_path).run_id == RunFolder.prepare(tmp_path).run_id

    def test_a_home_folder_is_expanded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C7: a tilde is the user's home, not a folder of that name."""
        monkeypatch.setenv("HOME", str(tmp_path))
        assert RunFolder.prepare("~/run").path == str(tmp_path / "run")

    def test_a_path_that_is_not_unicode_is_taken(self, tmp_path: Path) -> None:
        """C7: a folder name of any bytes holds a run."""
        path = os.fsencode(tmp_path) + b"/run-\xff"
        folder = RunFolder.prepare(os.fsdecode(path))
        segment = folder.open_segment(rank=0, header=HEADER)
        segment.close()
        assert open_run(os.fsdecode(path)).run_id == folder.run_id

    def test_many_processes_at_once_agree_on_the_run(self, tmp_path: Path) -> None:
        """Ranks that start at the same moment all get the same name of the run."""
        program = (
            "import sys; from moetrace.store import RunFolder; input();"
            "print(RunFolder.prepare(sys.argv[1]).run_id)"
        )
        started = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(tmp_path / "run")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        for process in started:
            assert process.stdin is not None
            print(file=process.stdin, flush=True)
        assert len({process.communicate(timeout=60)[0] for process in started}) == 1

    def test_a_lost_manifest_is_made_again_from_the_segments(self, tmp_path: Path) -> None:
        """C14: without run.json, or with a broken one, the run keeps its name and goes on."""
        folder = RunFolder.prepare(tmp_path)
        folder.open_segment(rank=0, header=HEADER).close()
        for broken in (None, b"", b"{", b'{"format":1}', b"\xff" * 100):
            (tmp_path / "run.json").unlink()
            if broken is not None:
                (tmp_path / "run.json").write_bytes(broken)
            assert open_run(tmp_path).run_id == folder.run_id
            assert RunFolder.prepare(tmp_path).run_id == folder.run_id
            assert json.loads((tmp_path / "run.json").read_text())["run_id"] == folder.run_id

    def test_what_a_crash_left_of_a_manifest_is_no_foreign_file(self, tmp_path: Path) -> None:
        """C14: a process that died while it made the folder does not spoil it."""
        (tmp_path / "run.json.0123456789abcdef").write_bytes(b"{")
        (tmp_path / "segments").mkdir()
        (tmp_path / "segments/00000-00000.claim").touch()
        folder = RunFolder.prepare(tmp_path)
        segment = folder.open_segment(rank=0, header=HEADER)
        segment.close()
        assert segment.attempt == 1

    def test_a_file_system_without_hard_links_is_good_enough(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The manifest is renamed into place where it cannot be linked."""

        def no_link(source: str, target: str) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(files, "link", no_link)
        folder = RunFolder.prepare(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
        assert RunFolder.prepare(tmp_path).run_id == folder.run_id


class TestRefusedFolder:
    def test_an_empty_path(self) -> None:
        """C7: the empty path is not the working directory."""
        assert "empty; pass a path such as" in refused("")

    def test_a_folder_with_somebody_s_files(self, tmp_path: Path) -> None:
        """A folder that holds something else is left as it is; the message names what was found."""
        (tmp_path / "thesis.tex").write_text("words")
        message = refused(tmp_path)
        assert str(tmp_path) in message
        assert "thesis.tex" in message
        assert "pass a folder that is empty or does not exist" in message
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    @pytest.mark.parametrize("text", ["{}", "[1]", '{"run_id": "x"}', '{"format": 1}', "no json"])
    def test_somebody_else_s_run_json(self, tmp_path: Path, text: str) -> None:
        """A file that is only called run.json does not make a run."""
        (tmp_path / "run.json").write_text(text)
        assert "holds no run of moetrace" in refused(tmp_path)
        assert (tmp_path / "run.json").read_text() == text

    def test_somebody_else_s_segments(self, tmp_path: Path) -> None:
        """A folder that is only called segments does not make a run."""
        (tmp_path / "segments").mkdir()
        (tmp_path / "segments" / "movie.mp4").touch()
        assert "movie.mp4" in refused(tmp_path)

    def test_a_run_of_a_later_format(self, tmp_path: Path) -> None:
        """What a later version wrote is not written into."""
        (tmp_path / "run.json").write_text('{"format": 2, "run_id": "x"}')
        assert "a run of format 2, this version writes 1" in refused(tmp_path)

    def test_paths_that_cannot_be_written(self, tmp_path: Path) -> None:
        """C7: a file, a path below one, an endless name, a NUL, links to nowhere, a kernel folder.

        None of them lets root pass either. Each message names the path and what to do.
        """
        (tmp_path / "file").touch()
        (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "at" / "all")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        for path in (
            str(tmp_path / "file"),
            str(tmp_path / "file" / "below"),
            str(tmp_path / ("n" * 256)),
            str(tmp_path / "nul\0byte"),
            str(tmp_path / "dangling"),
            str(tmp_path / "loop"),
            "/proc/moetrace",
            "/dev/null",
        ):
            message = refused(path)
            assert repr(path) in message
            assert "pass a folder that this process may create or write in" in message

    def test_a_joined_run_that_became_read_only(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C7: that a run cannot be written is found out before the training starts."""
        RunFolder.prepare(tmp_path)

        def read_only(path: str) -> int:
            raise OSError(30, "Read-only file system", path)

        monkeypatch.setattr(files, "open_append", read_only)
        assert "Read-only file system" in refused(tmp_path)


class TestOpenSegment:
    def test_attempts_count_up_per_rank(self, tmp_path: Path) -> None:
        """C11: each process life of a rank is an attempt: 0, 1, 2; another rank begins at 0."""
        folder = RunFolder.prepare(tmp_path)
        attempts = []
        for rank in (0, 0, 1, 0, 1):
            segment = folder.open_segment(rank=rank, header=HEADER)
            segment.close()
            attempts.append((rank, segment.attempt))
        assert attempts == [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1)]

    def test_two_writers_of_one_rank_never_share_an_attempt(self, tmp_path: Path) -> None:
        """Sixteen threads that open a segment of rank 0 at once get the attempts 0 to 15."""
        folder = RunFolder.prepare(tmp_path)
        barrier, attempts = threading.Barrier(16), []

        def opened() -> None:
            barrier.wait()
            segment = folder.open_segment(rank=0, header=HEADER)
            attempts.append(segment.attempt)
            segment.close()

        threads = [threading.Thread(target=opened) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(attempts) == list(range(16))

    def test_two_processes_on_one_folder_do_not_touch_each_other(self, tmp_path: Path) -> None:
        """Two ranks write at the same time, each its own segment, and both are read back whole."""
        program = (
            "import sys; from moetrace.store import RunFolder\n"
            "from tests.store.windows import HEADER, window\n"
            "folder = RunFolder.prepare(sys.argv[1]); rank = int(sys.argv[2])\n"
            "segment = folder.open_segment(rank=rank, header=HEADER)\n"
            "for seq in range(200):\n"
            "    counts = {'a': (seq, 1 + rank)}\n"
            "    segment.append(window(seq, counts, rank=rank, run_id=folder.run_id))\n"
            "segment.close()\n"
        )
        started = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(tmp_path), str(rank)],
                cwd=Path(__file__).parents[2],
            )
            for rank in range(2)
        ]
        assert [process.wait(timeout=120) for process in started] == [0, 0]
        run = open_run(tmp_path)
        assert run.faults == ()
        assert run.counts()[:, 0].tolist() == [[2 * seq, 3] for seq in range(200)]

    def test_the_manifest_tells_people_what_the_run_is(self, tmp_path: Path) -> None:
        """run.json holds the header of rank 0."""
        folder = RunFolder.prepare(tmp_path)
        folder.open_segment(rank=1, header={"model": "Other"}).close()
        folder.open_segment(rank=0, header=HEADER).close()
        manifest = json.loads((tmp_path / "run.json").read_text())
        assert manifest == {"format": 1, "run_id": folder.run_id, **HEADER}

    def test_no_temporary_file_stays(self, tmp_path: Path) -> None:
        """A folder holds the manifest, the segments and nothing else."""
        folder = RunFolder.prepare(tmp_path)
        segment = folder.open_segment(rank=0, header=HEADER)
        segment.append(window(0, run_id=folder.run_id))
        segment.close()
        RunFolder.prepare(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "segments"]
        names = sorted(path.name for path in (tmp_path / "segments").iterdir())
        assert names == ["00000-00000-" + log_of(tmp_path).parent.name[-8:], "00000-00000.claim"]

    def test_a_segment_that_cannot_be_made_is_an_error_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C1, C7: a full disk at attach raises there, and says which folder."""
        folder = RunFolder.prepare(tmp_path)

        def full(descriptor: int, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files, "write", full)
        with pytest.raises(RunFolderError, match=f"{tmp_path}.*No space left on device"):
            folder.open_segment(rank=0, header=HEADER)

    def test_an_attach_that_fails_at_any_operation_leaves_no_file_open(
        self, tmp_path: Path
    ) -> None:
        """C7, C14: whatever fails while a folder is made is one error; the next attach works."""
        for first in range(1, 100):
            root = tmp_path / str(first)
            faults = Faults(28, first=first)
            with faults.injected(), contextlib.suppress(RunFolderError):
                segment = RunFolder.prepare(root).open_segment(rank=0, header=HEADER)
                faults.first = 10**6  # from here on it is no attach any more
                segment.close()
            assert leaks.open_files(tmp_path) == []
            folder = RunFolder.prepare(root)
            segment = folder.open_segment(rank=0, header=HEADER)
            segment.append(window(0, run_id=folder.run_id, attempt=segment.attempt))
            segment.close()
            assert len(open_run(root).snapshots()) == 1
            if not faults.fired:
                break
        assert first == 20  # the first one that meets no operation

    def test_a_rank_below_zero_is_a_mistake(self, tmp_path: Path) -> None:
        """Ranks count from 0."""
        with pytest.raises(ValueError, match="found rank -1"):
            RunFolder.prepare(tmp_path).open_segment(rank=-1, header=HEADER)
