import pytest
import torch

from moetrace.accumulator import Accumulators
from moetrace.layout import AccumulatorLayout
from moetrace.ops import Bin

LAYOUTS = [AccumulatorLayout(2), AccumulatorLayout(3)]
CPU = torch.device("cpu")


@pytest.fixture
def sums():
    """Two routers, of two and of three experts."""
    return Accumulators(LAYOUTS, [CPU, CPU])


def forward(sums, router, row, counts, calls=1):
    """What the operator would add for a forward with these counts."""
    tensor = sums.tensors[router]
    tensor[row, : len(counts)] += torch.tensor(counts)
    tensor[row, LAYOUTS[router].scalar("calls")] += calls


def window(sums, phase):
    """Counts per router of the window that closes now."""
    (part,) = sums.window(phase)
    sums.close(phase)
    first, second = part.sums.split([layout.width for layout in LAYOUTS])
    return first[:2].tolist(), second[:3].tolist()


class TestCommit:
    def test_adds_up_and_empties(self, sums):
        """Committed forwards are in the window once, and nothing is left pending."""
        forward(sums, 0, Bin.FIRST, [1, 2])
        sums.commit(undecided=False)
        forward(sums, 1, Bin.FIRST, [3, 4, 5])
        sums.commit(undecided=False)
        assert window(sums, "train") == ([1, 2], [3, 4, 5])
        assert all(tensor.sum() == 0 for tensor in sums.tensors)

    def test_a_reentrant_checkpoint_is_training(self, sums):
        """As many recomputations as passes without gradients: all of it was training."""
        forward(sums, 0, Bin.NO_GRAD, [1, 2])
        forward(sums, 0, Bin.RECOMPUTED, [1, 2])
        sums.commit(undecided=True)
        assert window(sums, "train") == ([1, 2], [0, 0, 0])
        assert window(sums, "rollout") == ([0, 0], [0, 0, 0])

    def test_a_rollout_beside_a_reentrant_checkpoint(self, sums):
        """What was recomputed is training, the rest of what ran without gradients a rollout."""
        forward(sums, 0, Bin.NO_GRAD, [5, 7], calls=3)
        forward(sums, 0, Bin.RECOMPUTED, [1, 2], calls=1)
        sums.commit(undecided=True)
        assert window(sums, "train")[0] == [1, 2]
        assert window(sums, "rollout")[0] == [4, 5]

    def test_a_rollout_beside_plain_training(self, sums):
        """A first pass with gradients decides, whatever was recomputed."""
        forward(sums, 0, Bin.FIRST, [1, 1])
        forward(sums, 0, Bin.NO_GRAD, [5, 7])
        forward(sums, 0, Bin.RECOMPUTED, [1, 1])
        sums.commit(undecided=True)
        assert window(sums, "train")[0] == [1, 1]
        assert window(sums, "rollout")[0] == [5, 7]

    def test_routers_are_decided_one_by_one(self, sums):
        """One layer may be checkpointed and another not."""
        forward(sums, 0, Bin.NO_GRAD, [1, 2])
        forward(sums, 0, Bin.RECOMPUTED, [1, 2])
        forward(sums, 1, Bin.FIRST, [3, 4, 5])
        sums.commit(undecided=True)
        assert window(sums, "train") == ([1, 2], [3, 4, 5])

    def test_steps_are_decided_one_by_one(self, sums):
        """A checkpointed step and a plain step in one window both count."""
        forward(sums, 0, Bin.NO_GRAD, [1, 2])
        forward(sums, 0, Bin.RECOMPUTED, [1, 2])
        sums.commit(undecided=True)
        forward(sums, 0, Bin.FIRST, [1, 2])
        sums.commit(undecided=False)
        assert window(sums, "train")[0] == [2, 4]


class TestOtherPhases:
    def test_relabel_keeps_everything(self, sums):
        """A step that failed keeps its forwards, with and without gradients, under its label."""
        forward(sums, 0, Bin.FIRST, [1, 2])
        forward(sums, 0, Bin.NO_GRAD, [10, 20])
        forward(sums, 0, Bin.RECOMPUTED, [1, 2])
        sums.relabel("aborted")
        sums.commit(undecided=True)
        assert window(sums, "aborted")[0] == [11, 22]
        assert window(sums, "train")[0] == [0, 0]

    def test_collect_other(self, sums):
        """An evaluation goes to its own window and nowhere else."""
        forward(sums, 0, Bin.OTHER, [1, 2])
        sums.collect_other("eval")
        assert sums.phases == ("eval",)
        assert window(sums, "eval")[0] == [1, 2]

    def test_a_closed_window_is_private(self, sums):
        """What counts after the closing never shows in what was handed over."""
        forward(sums, 0, Bin.FIRST, [1, 2])
        sums.commit(undecided=False)
        (closed,) = sums.window("train")
        sums.close("train")
        forward(sums, 0, Bin.FIRST, [100, 100])
        sums.commit(undecided=False)
        assert closed.sums[:2].tolist() == [1, 2]
        assert window(sums, "train")[0] == [100, 100]

    def test_close_without_a_window(self, sums):
        """A phase that never ran has nothing to hand over."""
        sums.close("train")
        assert sums.window("train") == []


class TestMove:
    def test_carries_the_counts_along(self, sums):
        """A router on another device keeps what is pending and what is committed."""
        forward(sums, 0, Bin.FIRST, [1, 2])
        sums.commit(undecided=False)
        forward(sums, 0, Bin.FIRST, [10, 20])
        sums.move(0, CPU)
        sums.commit(undecided=False)
        assert window(sums, "train") == ([11, 22], [0, 0, 0])
