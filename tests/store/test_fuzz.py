"""Any bytes in any file: kept cases, and what a coverage-guided fuzzer makes of them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moetrace.run import open_run
from tests.store.cases import kept, read_tree, unpacked, write_tree
from tests.store.fuzzing import HAS_ATHERIS, REPOSITORY, fuzz
from tests.store.reading import read_all, show_all
from tests.store.sealing import sealed
from tests.store.windows import arrays_of, window, write

KEPT = kept()
SOUND = [name for name in KEPT if not name.startswith("reached-")]
"""Cases whose records a writer may have written; the others came of fuzzing."""

needs_atheris = pytest.mark.skipif(not HAS_ATHERIS, reason="atheris has no wheel for this Python")


class TestCorpus:
    @pytest.mark.parametrize("name", KEPT)
    def test_every_kept_case_is_withstood(self, tmp_path: Path, name: str) -> None:
        """I1: what reaches each part of a reader, or once broke one, is read or refused."""
        write_tree(unpacked(KEPT[name]), tmp_path)
        read_all(tmp_path)
        show_all(tmp_path)


class TestSealed:
    def test_a_count_that_was_changed_gets_past_its_checksum(self, tmp_path: Path) -> None:
        """I14: the fuzzer reaches what is behind the checksums: it puts right ones there."""
        write(tmp_path, [window(7)])
        arrays = arrays_of(tmp_path)
        data = bytearray(arrays.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        data[start : start + 4] = np.int32(11).tobytes()
        arrays.write_bytes(data)
        assert open_run(tmp_path).snapshots() == []
        write_tree(sealed(read_tree(tmp_path)), tmp_path)
        assert open_run(tmp_path).counts().tolist() == [[[11, 1]]]


FORBIDDEN = [
    *("open('/dev/null', 'w')", "open('/etc/hostname')", "os.open('..', os.O_RDONLY)"),
    *("os.mkdir('/dev/null/x')", "os.remove('/dev/null/x')", "subprocess.run(['true'])"),
    *("__import__('colorsys')", "eval('1')", "pickle.loads(pickle.dumps(os.getcwd))"),
    *("socket.create_server(('127.0.0.1', 0))", "socket.getaddrinfo('localhost', 80)"),
]
ALLOWED = ["os.open(root, os.O_RDONLY)", "os.listdir(root)", "os.close(os.open('log.jsonl', 0))"]


class TestWatch:
    def test_sees_what_a_reader_may_not_do(self, tmp_path: Path) -> None:
        """I6, I11, I12, I18: another path, a write, a process, an import, code, a connection."""
        (tmp_path / "log.jsonl").touch()
        acts = ", ".join(f"lambda: {act}" for act in [*FORBIDDEN, *ALLOWED])
        program = (
            "import contextlib, os, pickle, socket, subprocess, sys\n"
            "from pathlib import Path\n"
            f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
            "from tests.store.reading import Watch\n"
            "watch, root = Watch(), os.getcwd()\n"
            f"for act in ({acts}):\n"
            "    try:\n"
            "        with watch.over(Path(root)), contextlib.suppress(OSError):\n"
            "            act()\n"
            "        print('allowed')\n"
            "    except AssertionError:\n"
            "        print('forbidden')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
        )
        found = done.stdout.split()
        assert (done.stderr, found) == (
            "",
            ["forbidden"] * len(FORBIDDEN) + ["allowed"] * len(ALLOWED),
        )


BROKEN = {
    "an exception": ("raise KeyError", "KeyError"),
    "memory": ("bytes(1 << 30)", "MemoryError"),
    "no end": ("import time; time.sleep(60)", "timeout after"),
}
"""What a reader may not do, and how the fuzzer says that it did."""


@needs_atheris
class TestFuzzer:
    def test_what_it_makes_is_withstood(self, tmp_path: Path) -> None:
        """I1, I13, I14: cut, repeated, forged under a right checksum: nothing raises."""
        done = fuzz(tmp_path, "-runs=200", "-seed=5")
        assert done.found is None, done.told[-4000:]
        assert done.runs >= 200
        assert done.corpus > len(KEPT)

    @pytest.mark.parametrize("what", BROKEN)
    def test_a_reader_that_fails_is_found(self, tmp_path: Path, what: str) -> None:
        """I1: a fault that a field of another type brings out is found, and what led to it left."""
        act, told = BROKEN[what]
        seeds = tmp_path / "seeds"
        seeds.mkdir()
        for name in SOUND:
            (seeds / name).write_bytes(KEPT[name])
        program = (
            "import atheris\n"
            "with atheris.instrument_imports(include=['moetrace']):\n"
            "    from moetrace.store import records\n"
            "good = records.column\n"
            "def bad(record, name, *, length=None):\n"
            "    if type(record.get(name)) is not list:\n"
            f"        {act}\n"
            "    return good(record, name, length=length)\n"
            "records.column = bad\n"
            "from pathlib import Path\n"
            "from tests.store.fuzzing import main\n"
            f"main(Path({str(seeds)!r}))\n"
        )
        done = fuzz(tmp_path, "-runs=2000", "-seed=1", "-timeout=2", program=("-c", program))
        assert told in done.told
        assert done.found is not None
        assert unpacked(done.found.read_bytes())
