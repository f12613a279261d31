"""What holds around the tests of every adapter."""

import gc
import logging

import pytest


@pytest.fixture(scope="module", autouse=True)
def _collected_once():
    """The frameworks collect garbage time and again: keep it from what was there before."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    """Lightning's Trainer says what hardware it found."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)
