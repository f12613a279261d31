"""The worked numbers in the docstrings of the LoRA recipe."""

import doctest
import importlib

import pytest

from tests.recipes.lora_sensitivity.made import RECIPE

NAMES = sorted(
    ".".join(file.relative_to(RECIPE).with_suffix("").parts)
    for file in RECIPE.rglob("*.py")
    if ">>> " in file.read_text()
)


@pytest.mark.parametrize("name", NAMES)
def test_every_worked_number_holds(name):
    """An example in a docstring gives what it says."""
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed
