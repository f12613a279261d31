"""The guards around every test would see what they are there for."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist  # noqa: TID251 - the user's code may
from torch import nn

from moetrace import attach
from tests import leaks, tripwire
from tests.tiny import ScriptedModel


def code_of(module: str, source: str) -> ModuleType:
    """A module of that name with that source."""
    made = ModuleType(module)
    made.__dict__.update(dist=dist)
    exec(source, made.__dict__)
    return made


class TestTripwire:
    @pytest.mark.parametrize("name", tripwire.COLLECTIVES)
    def test_stops_every_collective_that_moetrace_calls(self, name: str) -> None:
        """Code of moetrace that calls a collective raises, and is written down."""
        tripwire.lay()
        ours = code_of("moetrace.writer", f"def run():\n    dist.{name}()")
        with pytest.raises(tripwire.SteppedOn, match=f"moetrace.writer.run called {name}"):
            ours.run()
        assert tripwire.steps_on_it == [f"moetrace.writer.run called {name}"]
        tripwire.steps_on_it.clear()

    @pytest.mark.parametrize("name", tripwire.PROCESS_GROUP)
    def test_stops_every_method_of_a_process_group(self, name: str) -> None:
        """So does code of moetrace that goes to the group itself."""
        tripwire.lay()
        ours = code_of("moetrace", f"def run():\n    dist.ProcessGroup.{name}(None)")
        with pytest.raises(tripwire.SteppedOn, match=f"called {name}"):
            ours.run()
        tripwire.steps_on_it.clear()

    def test_sees_through_what_is_called_in_between(self) -> None:
        """A collective in a function of somebody else, called by moetrace, is moetrace's."""
        tripwire.lay()
        theirs = code_of("somebody", "def run():\n    dist.barrier()")
        ours = code_of("moetrace.probes", "def run(theirs):\n    theirs.run()")
        with pytest.raises(tripwire.SteppedOn):
            ours.run(theirs)
        tripwire.steps_on_it.clear()

    def test_lets_the_user_through(self) -> None:
        """A collective of the user reaches torch, which says that there is no process group."""
        tripwire.lay()
        with pytest.raises(ValueError, match="process group has not been initialized"):
            dist.barrier()
        assert tripwire.steps_on_it == []


class TestLeaks:
    def test_a_tracer_that_is_not_closed_shows_in_hooks_and_threads(self, tmp_path: Path) -> None:
        """Hooks, threads and open files of a tracer are seen until it is closed."""
        model = ScriptedModel([[0, 1]], num_experts=4)
        tracer = attach(model, tmp_path / "run")
        assert leaks.hooks()
        assert leaks.threads()
        assert leaks.open_files(tmp_path)
        tracer.close()
        assert leaks.settled(leaks.hooks) == []
        assert leaks.settled(leaks.threads) == []
        assert leaks.settled(lambda: leaks.open_files(tmp_path)) == []

    def test_hooks_of_others_are_no_leak(self) -> None:
        """Only hooks of moetrace count."""
        model = nn.Linear(1, 1)
        model.register_forward_hook(lambda *_: None)
        model(torch.zeros(1))
        assert leaks.hooks() == []

    def test_what_stays_is_reported_after_some_patience(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A thread that goes on is a leak; one that was there before the test is none."""
        monkeypatch.setattr(leaks, "PATIENCE", 0.05)
        done = threading.Event()
        thread = threading.Thread(target=done.wait, args=(60,), name="moetrace-stuck")
        thread.start()
        assert leaks.settled(leaks.threads) == ["moetrace-stuck"]
        assert leaks.settled(leaks.threads, ["moetrace-stuck"]) == []
        done.set()
        thread.join(60)


LEAKY = """
import torch
import torch.distributed
import moetrace
from tests import leaks
from tests.tiny import ScriptedModel

kept = []
leaks.PATIENCE = 0.05


def test_leaves_a_tracer(tmp_path):
    kept.append(ScriptedModel([[0, 1]], num_experts=4))
    kept.append(moetrace.attach(kept[0], tmp_path / "run"))


def test_swallows_a_collective():
    ours = {"__name__": "moetrace.writer", "barrier": torch.distributed.barrier}
    exec("try: barrier()\\nexcept Exception: pass", ours)


def test_does_nothing():
    kept[1].close()
"""


class TestAroundATest:
    def test_a_test_that_leaks_or_meets_a_collective_is_an_error(self, tmp_path: Path) -> None:
        """The guards stand around every test: what it leaves, or what was swallowed, is told."""
        (tmp_path / "test_leaky.py").write_text(LEAKY)
        command = "-m pytest -q --tb=line -p tests.conftest --rootdir . -c /dev/null ."
        done = subprocess.run(
            [sys.executable, *command.split()],
            cwd=tmp_path,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(__file__).parents[1]),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stdout.rstrip().splitlines()[-1].startswith("3 passed, 2 errors in ")
        left = re.search(r"this test left behind {(.*)}; close\(\) the tracer", done.stdout)
        assert left is not None
        assert "'threads': ['moetrace-writer']" in left[1]
        assert "'hooks': ['RoutingProbe', 'MaskProbe']" in left[1]
        assert "log.jsonl" in left[1]
        assert "moetrace entered a collective" in done.stdout
