"""Folders that somebody made to hurt whoever looks at them, through the command line.

Each ends with code 0 or 2, one line of reason, no traceback, in at most 512 MiB.
"""

import ast
import os
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest

import moetrace
from moetrace.errors import RunNotReadable
from moetrace.run import open_run
from tests.store.windows import arrays_of, log_of, plain, window, write

REPOSITORY = Path(__file__).parents[2]
LIMIT = 512 << 10
"""Resident memory that a reader may take, in KiB."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A good run of three windows."""
    write(tmp_path / "run", [window(seq) for seq in range(3)])
    return tmp_path / "run"


PROGRAM = """
import sys
from moetrace.cli import main
code = main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def inspected(root: Path) -> tuple[int, str, int]:
    """Exit code, standard error and resident memory in KiB of ``moetrace inspect``."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "inspect", str(root)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr, int(done.stdout.splitlines()[-1])


def forged(body: bytes) -> bytes:
    """A line with a right checksum."""
    return body + b',"crc32":"%08x"}\n' % zlib.crc32(body)


class TestMemory:
    @pytest.mark.parametrize("inner", [b"[]", b'{"a":0}', b"1e1", b'"ab"'])
    def test_a_line_full_of_small_things(self, root: Path, inner: bytes) -> None:
        """I4: the longest line there may be, made of what takes the most memory."""
        fill = b",".join([inner] * ((15 << 20) // (len(inner) + 1)))
        with log_of(root).open("ab") as log:
            log.write(forged(b'{"record":"x","line":5,"a":[' + fill + b"]"))
        code, told, memory = inspected(root)
        assert (code, told) == (0, "")
        assert memory < LIMIT

    def test_a_line_of_many_keys(self, root: Path) -> None:
        """I4, I16: a million keys in one object."""
        keys = b",".join(b'"%x":0' % number for number in range(1_000_000))
        with log_of(root).open("ab") as log:
            log.write(forged(b'{"record":"x","line":5,"a":{' + keys + b"}"))
        code, told, memory = inspected(root)
        assert (code, told) == (0, "")
        assert memory < LIMIT

    def test_a_log_of_a_terabyte(self, root: Path) -> None:
        """I9: the length of a sparse file sets no memory aside."""
        os.truncate(log_of(root), 1 << 40)
        os.truncate(arrays_of(root), 1 << 40)
        code, _, memory = inspected(root)
        assert code == 0
        assert memory < LIMIT

    def test_a_manifest_of_a_terabyte(self, root: Path) -> None:
        """I9: run.json is read up to 16 MiB, and the run without it."""
        (root / "run.json").write_bytes(b"[")
        os.truncate(root / "run.json", 1 << 40)
        code, told, memory = inspected(root)
        assert (code, told) == (0, "")
        assert memory < LIMIT


class TestManyFiles:
    def test_names_that_are_none_and_deep_folders(self, root: Path) -> None:
        """I9: ten thousand strange files and a thousand folders in each other are passed over."""
        for number in range(10_000):
            (root / "segments" / f"x{number}").touch()
        deep = root / "segments"
        home = Path.cwd()
        try:
            for _ in range(1_000):
                (deep / "d").mkdir()
                os.chdir(deep / "d")
                deep = Path()
        finally:
            os.chdir(home)
        run = open_run(root)
        assert plain(run.snapshots()) == plain([window(seq) for seq in range(3)])
        assert run.faults == ("10001 names in segments are no segment's and were not read",)
        subprocess.run(["rm", "-rf", str(root)], check=True)

    def test_empty_segments(self, root: Path) -> None:
        """I9: two thousand folders that only look like segments are told, a hundred by name."""
        for number in range(2_000):
            (root / "segments" / f"00009-00000-{number:08x}").mkdir()
        run = open_run(root)
        assert len(run.snapshots()) == 3
        assert len(run.faults) >= 100

    def test_compressed_files_are_not_opened(self, root: Path) -> None:
        """I5: nothing is unpacked; there is no compressed file in the format."""
        for name in ("log.jsonl.gz", "log.jsonl.zst", "g0-00000.safetensors.xz"):
            (log_of(root).parent / name).write_bytes(b"\x1f\x8b bomb")
        run = open_run(root)
        assert (len(run.snapshots()), run.faults) == (3, ())
        modules = set(ast_imports())
        assert not modules & {"gzip", "bz2", "lzma", "zipfile", "tarfile", "zstandard", "shutil"}


class TestStrangeFiles:
    @pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
    def test_a_device_is_not_read(self, root: Path) -> None:
        """I8: in the place of a log or of arrays stands /dev/zero, which has no end."""
        for path in (arrays_of(root), log_of(root)):
            path.unlink()
            try:
                os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))
            except PermissionError:
                pytest.skip("this machine lets root make no device")
            code, told, memory = inspected(root)
            assert code in (0, 2)
            assert "Traceback" not in told
            assert memory < LIMIT

    def test_a_loop_of_links_leads_nowhere(self, root: Path) -> None:
        """I7: links that point at each other, at the run, or out of it are refused."""
        log = log_of(root)
        log.unlink()
        log.symlink_to(log.name)
        with pytest.raises(RunNotReadable):
            open_run(root)
        log.unlink()
        log.symlink_to("/etc/passwd")
        with pytest.raises(RunNotReadable):
            open_run(root)

    def test_a_hard_link_to_a_secret_tells_nothing_of_it(self, root: Path) -> None:
        """I7: a file that is no log is damaged in each line, and none of its words is repeated."""
        secret = root.parent / "secret"
        secret.write_text("password: swordfish\n" * 3)
        log = log_of(root)
        log.unlink()
        os.link(secret, log)
        code, told, _ = inspected(root)
        assert code == 2
        assert len(told.splitlines()) == 1
        assert "swordfish" not in told

    def test_files_that_are_cut_while_they_are_read(self, root: Path) -> None:
        """I10: a log and an array file that shrink and grow all the time kill no reader."""
        kept = [(path, path.read_bytes()) for path in (log_of(root), arrays_of(root))]
        originals = plain([window(seq) for seq in range(3)])
        stop = threading.Event()

        def disturb() -> None:
            while not stop.is_set():
                for path, data in kept:
                    os.truncate(path, len(data) // 3)
                    path.write_bytes(data)

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            for _ in range(200):
                try:
                    run = open_run(root)
                except RunNotReadable:
                    continue
                assert all(found in originals for found in plain(run.snapshots()))
        finally:
            stop.set()
            thread.join()


def ast_imports() -> list[str]:
    """What the modules that read a run import, of other packages."""
    home = Path(moetrace.__file__).parent
    readers = [*home.glob("store/*.py"), home / "run.py", home / "snapshot.py"]
    found = []
    for path in readers:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found += [alias.name.partition(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.append(node.module.partition(".")[0])
    return found


class TestWhatAReaderDoes:
    def test_no_module_of_the_reader_can_run_code(self) -> None:
        """I11: no pickle, no torch, no eval: not imported, not called."""
        allowed = {
            *("moetrace", "numpy", "orjson", "collections", "dataclasses", "typing", "itertools"),
            *("re", "os", "errno", "stat", "time", "math", "zlib", "contextlib", "pathlib"),
            *("_typeshed", "importlib", "functools", "operator", "heapq", "bisect", "array"),
        }
        assert set(ast_imports()) <= allowed
        home = Path(moetrace.__file__).parent
        called = {
            node.func.id
            for path in (*home.glob("store/*.py"), home / "run.py")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not called & {"eval", "exec", "compile", "__import__", "open", "input"}

    def test_no_command_writes_connects_or_starts_anything(self, root: Path) -> None:
        """I11, I18: watched by an audit hook, a reader opens files to read, and that is all."""
        program = (
            "import os, sys\n"
            "from moetrace.cli import main\n"
            "import moetrace.run, moetrace.show\n"
            "seen = []\n"
            "def watch(event, arguments):\n"
            "    if event == 'open' and isinstance(arguments[2], int):\n"
            "        if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):\n"
            "            seen.append((event, arguments))\n"
            "    elif event.split('.')[0] in {'socket', 'subprocess', 'pickle', 'ctypes',\n"
            "            'mmap'} or event in {'os.system', 'os.exec', 'os.fork',\n"
            "            'os.remove', 'os.rename', 'os.mkdir', 'os.rmdir', 'os.chmod', 'os.link',\n"
            "            'os.symlink', 'os.truncate', 'os.utime', 'tempfile.mkstemp'}:\n"
            "        seen.append((event, arguments))\n"
            "sys.dont_write_bytecode = True\n"
            "main(['inspect', sys.argv[1]])\n"
            "sys.addaudithook(watch)\n"
            "assert main(['inspect', sys.argv[1], '--json']) == 0\n"
            "assert main(['show', sys.argv[1], '--json']) == 0\n"
            "moetrace.run.open_run(sys.argv[1]).counts()\n"
            "sys.exit(repr(seen) if seen else 0)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(root)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
