"""One process with torch in it for all programs of a test session."""

from collections.abc import Iterator

import pytest

from tests.processes.nursery import Nursery


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Where programs are started whose end is not what a test is about."""
    with Nursery(tmp_path_factory.mktemp("programs")) as started:
        started.thaws = False
        yield started
