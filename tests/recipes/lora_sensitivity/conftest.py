"""Makes the program importable as it is from its own folder."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

RECIPE = Path(__file__).resolve().parents[3] / "recipes" / "lora_sensitivity"

if str(RECIPE) not in sys.path:
    sys.path.insert(0, str(RECIPE))


@pytest.fixture(scope="module", autouse=True)
def _collections_are_short() -> Iterator[None]:
    """Each training collects garbage; what the imports brought is left out of that."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
