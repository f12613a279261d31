"""What holds around every test: nothing is left behind, and moetrace calls no collective."""

import gc
import random
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import leaks, tripwire

# An example may take 200 ms by default, and takes longer where six processes share two cores.
settings.register_profile("unhurried", settings(), deadline=None)
settings.load_profile("unhurried")

LONGEST = ("test_exactly_once.py", "test_distributed.py", "test_two_ranks.py")
"""What takes longest begins first, so that no process waits for it at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; named first in the command, pytest 9 would not heed it."""
    items.sort(key=lambda item: (*LONGEST, item.path.name).index(item.path.name))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let the garbage collector see nothing of what collecting imports: a million objects.

    None of them is garbage, and every full look at them, of which the tests ask for hundreds, takes
    half a second.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    """Give it all back: an extension module counts at the end what was never freed."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def folder_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder above every ``tmp_path``."""
    return tmp_path_factory.getbasetemp().resolve()


@pytest.fixture(autouse=True)
def _nothing_is_left(folder_of_tests: Path) -> Iterator[None]:
    leaks.note_hooks()
    before = leaks.threads(), leaks.hooks(), leaks.open_files(folder_of_tests)
    yield
    left = {
        "threads": leaks.settled(leaks.threads, before[0]),
        "hooks": leaks.settled(leaks.hooks, before[1]),
        "open files": leaks.settled(lambda: leaks.open_files(folder_of_tests), before[2]),
    }
    assert not any(left.values()), f"this test left behind {left}; close() the tracer in it"


@pytest.fixture(scope="module", autouse=True)
def _nothing_of_before_is_there() -> None:
    """A module's tests see what they compiled themselves, whatever ran before in this process.

    What is still alive of that is out of the garbage collector's sight as well.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_collective() -> Iterator[None]:
    if "torch" in sys.modules:
        tripwire.lay()
    tripwire.steps_on_it.clear()
    yield
    assert not tripwire.steps_on_it, "moetrace entered a collective"


@pytest.fixture(autouse=True)
def _same_chance() -> None:
    """Every test draws the same random numbers, alone or among others, on one thread."""
    random.seed(0)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
