"""Every routed token is counted once, in its own window and phase, and the training is unchanged.

Three copies of one model do the same work: a traced and an untraced one in the mode under test, and
one that runs plainly under the oracle. The first two have to agree bit by bit, the first and the
third count by count. The cells run in two processes of their own, each cell on one compiled model.
"""

import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.matrix import cell
from tests.matrix.modes import CHECKPOINTED, COMPILED, FAMILIES, WHOLE, Mode
from tests.matrix.training import LONGER_WORK, WORK, Work

MODES = [
    Mode(*choice)
    for choice in itertools.product(FAMILIES, COMPILED, CHECKPOINTED)
    # Without a checkpoint the two orders are one wiring, a compiled block.
    if choice[1:] != ("checkpoint(compile(block))", "none")
]
INDUCTOR = {
    # Compiling C++ takes long: one kind of work each.
    Mode("Qwen3Moe", "whole", "none", "inductor"): (Work(4, True, True, steps=4),),
    Mode("Qwen3Moe", "checkpoint(compile(block))", "selective", "inductor"): (
        Work(1, False, False),
    ),
}
LESS_WORK = (WORK[0], WORK[3])
"""One micro-batch with evaluation, four with generation: for all families but the first."""

LONGER = {
    Mode("Qwen3Moe", compiled, checkpointed): LONGER_WORK
    for compiled, checkpointed in itertools.product(("eager", "whole"), CHECKPOINTED)
}
CANNOT: dict[Mode, str] = {}
"""Cells that PyTorch itself cannot run, and what it says. In torch 2.13 there is none."""


@pytest.fixture(scope="module")
def outcomes(request):
    """What each chosen cell did, as futures of two worker processes."""
    chosen = [item.callspec.params["mode"] for item in request.session.items if is_cell(item)]
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(2, mp_context=context, initializer=cell.prepare)
    try:
        yield {mode: pool.submit(cell.run, mode, work_of(mode)) for mode in dict.fromkeys(chosen)}
    finally:
        pool.shutdown(cancel_futures=True)


def work_of(mode):
    """The kinds of work that a cell does, one after the other."""
    usual = WORK if WHOLE or mode.family == FAMILIES[0] else LESS_WORK
    return (INDUCTOR | LONGER).get(mode, usual)


def is_cell(item):
    """Whether a test is one cell of the matrix below."""
    return getattr(item, "cls", None) is not None and item.cls.__name__ == "TestMatrix"


@pytest.mark.parametrize("mode", [*MODES, *INDUCTOR], ids=str)
class TestMatrix:
    def test_counts_and_bits(self, mode, outcomes):
        """A6: counts equal the oracle; no bit of the training, frame or graph break is another."""
        outcome = outcomes[mode].result(timeout=290)
        assert outcome.untraced_error == CANNOT.get(mode, "")
        assert outcome.traced_error == outcome.untraced_error
        if mode in CANNOT:
            return
        assert outcome.counted == outcome.truth
        assert outcome.differing == []
        assert outcome.norms == pytest.approx(outcome.norms_by_hand, rel=1e-6)
        untraced, traced = outcome.frames
        assert traced <= untraced
        assert (untraced > 0) == (mode.compiled != "eager")
        assert outcome.breaks == (0, 0)
        assert outcome.compared > 50
