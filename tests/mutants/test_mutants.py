"""The exactly-once matrix fails for every fault that it is there for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.seeded import MUTANTS, SOUND

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What a small eager part of the matrix says about each mutant, by name."""
    folders = {}
    for number, mutant in enumerate([SOUND, *MUTANTS]):
        folder = tmp_path_factory.mktemp("mutants") / f"{number}"
        mutant.write(folder)
        folders[mutant.name] = str(folder)
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutants.trial", *folders.values()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: found[folder] for name, folder in folders.items()}


class TestMutants:
    def test_the_control_passes(self, said):
        """A copy without a fault goes through the small part of the matrix."""
        assert said[SOUND.name] == []

    @pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
    def test_is_seen(self, mutant, said):
        """A copy with the fault does not."""
        assert said[mutant.name] != []
