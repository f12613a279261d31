"""Coverage-guided fuzzing of what reads a stranger's run folder, by atheris.

``python -m tests.store.fuzzing FOLDER...`` takes what libFuzzer takes: it begins with the kept
cases and grows the first folder, as ``-max_total_time=SECONDS`` or ``-runs=N`` says. What a reader
fails at (a foreign exception, a warning, a write, an import, 10 seconds, 512 MiB) is left as a file
that belongs into the corpus once the reader withstands it. ``-set_cover_merge=1 -use_counters=0
NEW FOLDER`` picks a few cases that reach all that those of a folder do.
"""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.store.cases import CORPUS

REPOSITORY = Path(__file__).parents[2]
HAS_ATHERIS = find_spec("atheris") is not None
"""It has wheels for CPython 3.11 to 3.13 on Linux x86_64, and none elsewhere."""

LONGEST = 24 << 10
"""Bytes of a case; what takes gigabytes has tests of its own."""

MEMORY = 512 << 20
"""Address space that a reader may take."""

SECONDS = 10
"""Of processor time, for one case."""

PATIENCE = 60
"""Seconds after which a case has no end; the machine may stand still meanwhile."""

SHOWN = 32
"""Every so many cases are shown too, by all commands; which ones, their bytes decide."""


@dataclass(frozen=True)
class Fuzzed:
    """What a fuzzer did.

    Attributes:
        runs: Cases that were read.
        coverage: Edges of moetrace that were reached.
        corpus: Cases that reached something new.
        found: What a reader failed at, None where nothing was found.
        told: What the fuzzer said.
    """

    runs: int
    coverage: int
    corpus: int
    found: Path | None
    told: str


def fuzz(
    folder: Path, *options: str, program: Sequence[str] = ("-m", "tests.store.fuzzing")
) -> Fuzzed:
    """Fuzz in a process of its own.

    Args:
        folder: An empty folder for what is found.
        options: Of libFuzzer; ``-runs=N`` and ``-max_total_time=SECONDS`` say when to end.
        program: Arguments of Python.
    """
    grown = folder / "grown"
    grown.mkdir()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place:
        done = subprocess.run(
            [sys.executable, *program, *options, f"-artifact_prefix={folder}/", str(grown)],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONHASHSEED": "0", "TMPDIR": place},
            stderr=subprocess.STDOUT,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    seen = re.findall(r"^#\d+\s.* cov: (\d+) .* corp: (\d+)/", done.stdout, re.MULTILINE)
    ended = re.search(r"executed_units: (\d+)", done.stdout)
    found = next(iter(sorted(folder.glob("*-*"))), None)
    if not (seen and ended) or (found is None and done.returncode):
        raise RuntimeError(f"the fuzzer ended with {done.returncode}:\n{done.stdout[-4000:]}")
    coverage, corpus = seen[-1]
    return Fuzzed(int(ended[1]), int(coverage), int(corpus), found, done.stdout)


def main(seeds: Path = CORPUS) -> None:
    """Fuzz until libFuzzer's options say to end; does not return.

    Args:
        seeds: Folder of cases to begin with, which a reader withstands.
    """
    import atheris

    # in here, so that what is imported first is what is instrumented
    with atheris.instrument_imports(include=["moetrace"]):
        from tests.store.reading import Watch, read_all, show_all
    from tests.store.cases import packed, unpacked, write_tree
    from tests.store.mutation import crossed, mutated

    root = Path(tempfile.mkdtemp()) / "run"
    watch = Watch()

    @atheris.instrument_func
    def read(data: bytes) -> None:
        root.mkdir()
        write_tree(unpacked(data), root)
        began = time.process_time()
        _limit_memory(_used_memory() + MEMORY)  # case by case: the fuzzer's own grows by 3 KB each
        try:
            with watch.over(root):
                read_all(root)
                if zlib.crc32(data) % SHOWN == 0:
                    show_all(root)
            assert time.process_time() - began < SECONDS
        except BaseException:
            signal.setitimer(signal.ITIMER_REAL, 0)  # or the alarm ends it before it is written
            raise
        finally:
            _limit_memory(resource.RLIM_INFINITY)
            shutil.rmtree(root)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        case = mutated(
            unpacked(data), random.Random(seed), lambda part: atheris.Mutate(part, len(part) + 64)
        )
        return _fitting(packed(case), most, data)

    def cross(data: bytes, other: bytes, most: int, seed: int) -> bytes:
        case = crossed(unpacked(data), unpacked(other), random.Random(seed))
        return _fitting(packed(case), most, data)

    # what Python and moetrace import late is imported now, before an import counts as a fault
    "\0".encode("unicode_escape")
    for path in seeds.glob("*.json"):
        root.mkdir()
        write_tree(unpacked(path.read_bytes()), root)
        read_all(root)
        show_all(root)
        shutil.rmtree(root)
    warnings.simplefilter("error")
    known = (
        *(f"-max_len={LONGEST}", f"-timeout={PATIENCE}", f"-report_slow_units={PATIENCE}"),
        *("-rss_limit_mb=0", "-print_final_stats=1"),
    )
    atheris.Setup(
        [f"{sys.executable} -m tests.store.fuzzing", *known, *sys.argv[1:], str(seeds)],
        read,
        custom_mutator=mutate,
        custom_crossover=cross,
    )
    atheris.Fuzz()


def _used_memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _limit_memory(most: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _fitting(data: bytes, most: int, otherwise: bytes) -> bytes:
    return data if len(data) <= most else otherwise


if __name__ == "__main__":
    main()
