"""Programs that run to their end, or are ended, in processes of their own.

A fresh interpreter needs two seconds to import torch. ``python -m tests.processes.nursery`` imports
once and forks a child per program; the child runs the program as its main module and then ends as
every interpreter does, with all that belongs to it. Where ``thaws`` is off, what was imported
before the fork stays out of the garbage collector's sight: the end then takes a third of the time.
`Nursery` is the side of the tests.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

REPOSITORY = Path(__file__).parents[2]
LONGEST = 60.0
"""Seconds that a program gets; one that takes longer hangs, and is killed."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a program ended: its exit code, or minus the signal, and what it printed."""

    code: int
    out: str
    err: str


class Program:
    """A program that runs."""

    def __init__(self, nursery: "Nursery", pid: int, folder: Path) -> None:
        self._nursery, self.pid, self._folder = nursery, pid, folder

    def wait_for(self, word: str) -> None:
        """Return when the program has printed that word in a line of its own.

        Raises:
            TimeoutError: It did not.
        """
        deadline = time.monotonic() + LONGEST
        while word not in (self._folder / "out").read_text().splitlines():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {word!r}: {(self._folder / 'err').read_text()}")
            time.sleep(0.005)

    def send(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def interrupt(self) -> None:
        """Send SIGINT until it has ended, as somebody at a keyboard does."""
        deadline = time.monotonic() + LONGEST / 2
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            if time.monotonic() > deadline:
                return
            self.send(signal.SIGINT)
            time.sleep(0.2)

    def done(self) -> Done:
        """Wait for the end.

        Raises:
            TimeoutError: It hung; it is dead now, with all that it started.
        """
        code = self._nursery.wait(self.pid)
        out, err = ((self._folder / name).read_text() for name in ("out", "err"))
        if code is None:
            raise TimeoutError(f"the program hung:\n{out}\n{err}")
        return Done(code, out, err)


class Nursery:
    """Starts programs; use it as a context manager."""

    def __init__(self, folder: Path, *, longest: float = LONGEST) -> None:
        self._folder, self._started, self._longest = folder, 0, longest
        self.thaws = True

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.processes.nursery"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=LONGEST)

    def ask(self, **request: Any) -> Any:
        """What the process with torch in it answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def wait(self, pid: int) -> int | None:
        """The exit code of a program; None where it hung."""
        code: int | None = self.ask(wait=pid, longest=self._longest)
        return code

    def start(self, source: str, **names: Any) -> Program:
        """Start a program in which these names stand for these plain values."""
        self._started += 1
        folder = self._folder / f"program-{self._started}"
        folder.mkdir()
        for name in ("out", "err"):
            (folder / name).touch()
        lines = [f"{name} = {value!r}\n" for name, value in names.items()]
        pid = self.ask(source="".join(lines) + source, folder=str(folder), thaws=self.thaws)
        return Program(self, pid, folder)

    def run(self, source: str, **names: Any) -> Done:
        """Run a program to its end."""
        return self.start(source, **names).done()


def _child(source: str, folder: str) -> None:
    os.setsid()
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_APPEND), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # A main module without a file, as of ``python -c``: spawned children need not import it again.
    program = sys.modules["__main__"] = ModuleType("__main__")
    exec(compile(source, os.path.join(folder, "program.py"), "exec"), program.__dict__)


def _ended(pid: int, longest: float) -> int | None:
    deadline = time.monotonic() + longest
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _serve() -> bool:
    """Answer requests; True in a child, which is to end as a program does."""
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "wait" in request:
            answer = _ended(request["wait"], request["longest"])
        else:
            answer = os.fork()
            if answer == 0:
                if request["thaws"]:
                    gc.unfreeze()
                _child(request["source"], request["folder"])
                return True
        print(json.dumps(answer), flush=True)  # noqa: T201 - the answer
    return False


if __name__ == "__main__":
    import torch  # noqa: F401

    import tests.processes.loop  # noqa: F401 - and with it all of moetrace

    gc.collect()
    gc.freeze()
    _serve()
