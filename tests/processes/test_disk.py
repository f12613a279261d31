"""Real limits of the kernel around a training: full disks, long files, lost folders."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from moetrace import open_run
from tests.processes.loop import steps_in
from tests.processes.nursery import REPOSITORY, Nursery
from tests.processes.test_exit import START


class TestFullDisk:
    def test_space_that_returns_is_written_to(self, nursery: Nursery, tmp_path: Path) -> None:
        """C1: on a disk of 256 KiB that fills up nothing is lost once there is room again."""
        program = START + (
            "import ctypes, shutil\n"
            "libc = ctypes.CDLL(None)\n"
            "NEWNS, NEWUSER, PRIVATE = 0x20000, 0x10000000, 0x44000\n"
            "user, disk = os.getuid(), run + '/disk'\n"
            "os.mkdir(disk)\n"
            "failed = libc.unshare(NEWNS | (NEWUSER if user else 0))\n"
            "if not failed and user:\n"
            "    open('/proc/self/uid_map', 'w').write(f'0 {user} 1')\n"
            "failed = failed or libc.mount(b'none', b'/', None, PRIVATE, None)\n"
            "if failed or libc.mount(b'none', disk.encode(), b'tmpfs', 0, b'size=256k'):\n"
            "    sys.exit(77)\n"
            "tracer = attach(traced, disk + '/run', every=1, alerts=None)\n"
            "train(tracer, traced, 20)\n"
            "tracer.flush()\n"
            "ballast = open(disk + '/ballast', 'wb', buffering=0)\n"
            "try:\n"
            "    while True: ballast.write(bytes(4096))\n"
            "except OSError: pass\n"
            "train(tracer, traced, 200)\n"
            "tracer.flush()\n"
            "os.truncate(ballast.fileno(), 0)\n"
            "train(tracer, traced, 20)\n"
            "tracer.close()\n"
            "shutil.copytree(disk + '/run', run + '/saved')\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        if done.code == 77:
            pytest.skip("this machine lets a process mount no disk of its own")
        assert done.code == 0, done.err
        assert done.err.count("No space left on device") == 1
        assert steps_in(tmp_path / "saved") == 240

    def test_a_device_that_is_always_full_is_refused(self, tmp_path: Path) -> None:
        """C1: a run folder that cannot hold anything is an error of attach, and says so."""
        from moetrace import RunFolderError
        from moetrace.store import RunFolder

        (tmp_path / "run.json").symlink_to("/dev/full")
        with pytest.raises(RunFolderError, match="pass a folder"):
            RunFolder.prepare(tmp_path)


class TestLimits:
    def test_a_limit_of_file_lengths(self, nursery: Nursery, tmp_path: Path) -> None:
        """C2: under RLIMIT_FSIZE logs and arrays go on in fresh segments; every step counts."""
        program = START + (
            "import resource\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
            "tracer = attach(traced, run, every=1, alerts=None)\n"
            "train(tracer, traced, 100)\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err, steps_in(tmp_path)) == (0, "", 100)
        assert len(list(tmp_path.glob("segments/*-*-*"))) > 2
        assert max(path.stat().st_size for path in tmp_path.rglob("*")) <= 20_000

    def test_descriptors_that_run_out(self, nursery: Nursery, tmp_path: Path) -> None:
        """C19: a tracer keeps two files open; with none left to open it goes on in those."""
        program = START + (
            "import resource\n"
            "tracer = attach(traced, run, every=1)\n"
            "train(tracer, traced, 1)\n"
            "tracer.flush()\n"
            "ours = [fd for fd in os.listdir('/proc/self/fd')\n"
            "        if os.path.exists(f'/proc/self/fd/{fd}')\n"
            "        and os.readlink(f'/proc/self/fd/{fd}').startswith(run)]\n"
            "say(str(len(ours)))\n"
            "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
            "held = [os.dup(1) for _ in range(200)]\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, hard))\n"
            "train(tracer, traced, 50)\n"
            "tracer.flush()\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err, done.out) == (0, "", "2\n")
        assert steps_in(tmp_path) == 51


class TestLostFolder:
    @pytest.mark.parametrize("end", ["tracer.close()", ""])
    def test_renamed(self, nursery: Nursery, tmp_path: Path, end: str) -> None:
        """C8: a run folder that is moved while a training writes holds all of it, and its end."""
        program = START + (
            "tracer = attach(traced, run + '/a', every=1)\n"
            "train(tracer, traced, 10)\n"
            "tracer.flush()\n"
            "os.rename(run + '/a', run + '/b')\n"
            f"train(tracer, traced, 10)\n{end}\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err, steps_in(tmp_path / "b")) == (0, "", 20)
        assert open_run(tmp_path / "b").finished

    @pytest.mark.parametrize("end", ["tracer.close()", ""])
    def test_deleted(self, nursery: Nursery, tmp_path: Path, end: str) -> None:
        """C8: of a run folder that is deleted, what no sync had covered is written anew."""
        program = START + (
            "import shutil\n"
            "tracer = attach(traced, run + '/a', every=1)\n"
            "train(tracer, traced, 10)\n"
            "tracer.flush()\n"
            "shutil.rmtree(run + '/a')\n"
            f"train(tracer, traced, 10)\n{end}\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert (done.code, done.err, steps_in(tmp_path / "a")) == (0, "", 20)

    def test_in_the_place_of_which_stands_a_file(self, nursery: Nursery, tmp_path: Path) -> None:
        """C8: where the folder cannot be made again the training still ends as it should."""
        program = START + (
            "import shutil\n"
            "tracer = attach(traced, run + '/a', every=1)\n"
            "train(tracer, traced, 10)\n"
            "tracer.flush()\n"
            "shutil.rmtree(run + '/a')\n"
            "open(run + '/a', 'w').close()\n"
            "train(tracer, traced, 10)\n"
        )
        done = nursery.run(program, run=str(tmp_path))
        assert done.code == 0
        assert done.err.count("could not be written") == 1
        assert "Traceback" not in done.err


class TestRefusedAtAttach:
    def test_leaves_the_model_alone(self, nursery: Nursery, tmp_path: Path) -> None:
        """C7: a folder that cannot be used is one error of attach; no hook, no thread is left."""
        (tmp_path / "file").touch()
        program = START + (
            "import moetrace\n"
            "for path in (run, run + '/below', '/proc/moetrace', 'n' * 256, 'a\\0b', ''):\n"
            "    try:\n"
            "        attach(traced, path)\n"
            "    except moetrace.RunFolderError as error:\n"
            "        say(str(error).rpartition('; ')[2])\n"
            "assert not any(m._forward_hooks for m in traced.modules())\n"
            "assert threading.active_count() == 1\n"
            "attach(traced, run + '-good').close()\n"
        )
        done = nursery.run(program, run=str(tmp_path / "file"))
        assert (done.code, done.err) == (0, "")
        said = done.out.splitlines()
        assert said[:-1] == ["pass a folder that this process may create or write in"] * 5
        assert said[-1] == "pass a path such as 'runs/exp1'"


def strace() -> str:
    """The program, where it is and may trace."""
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed")
    tried = subprocess.run([found, "-o", "/dev/null", "true"], capture_output=True)
    if tried.returncode:
        pytest.skip(f"strace may not trace here: {tried.stderr.decode().strip()}")
    return found


class TestInjectedByTheKernel:
    """The same faults without the help of our own module of operations."""

    @pytest.mark.parametrize(
        ("inject", "degraded"),
        [
            ("fdatasync:error=EIO:when=3", True),
            ("fdatasync:error=EIO:when=4", True),
            ("fdatasync:error=EIO:when=5+", True),
            ("write:error=EIO:when=4", False),
            ("write:error=ENOSPC:when=5..7", False),
            ("write:retval=10:when=3", False),
            ("pwrite64:error=EIO:when=6", False),
            ("pwrite64:error=EINTR:when=3..9", False),
            ("ftruncate:error=EIO:when=1", False),
        ],
    )
    def test_every_window_counts_once(self, tmp_path: Path, inject: str, degraded: bool) -> None:
        """C1 to C5, C16: errors that strace puts into system calls lose and double nothing."""
        program = [
            strace(), "-f", "-o", "/dev/null", "-e", f"inject={inject}",
            sys.executable, "-m", "tests.store.traced_writer", str(tmp_path / "run"), "12",
        ]  # fmt: skip
        done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert (done.stdout.split()[0] == "degraded") == degraded
        run = open_run(tmp_path / "run")
        assert run.counts()[:, 0, 1].sum() == 12
        assert run.counts()[:, 0, 0].sum() == sum(range(12))
