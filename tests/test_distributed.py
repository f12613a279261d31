"""Over two processes every token is counted once too, and no rank's training is changed.

Each rank counts its own batches; the sum over the ranks is what an oracle finds in one process that
sees the batches of both. The cells run one after the other in one pair of processes.
"""

import copy
import json
import multiprocessing

import pytest

from tests.gloo import rank as ranks
from tests.matrix.training import EVERY, as_lists
from tests.oracle import Oracle
from tests.tiny import batch, seeded


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each rank says about every cell."""
    folder = tmp_path_factory.mktemp("gloo")
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=ranks.main, args=(rank, str(folder))) for rank in range(ranks.WORLD)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(280)
    for process in processes:
        process.kill()
        process.join()
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks.WORLD)]


@pytest.fixture(scope="module")
def truth():
    """Counts per window and layer over the batches of all ranks, from a plain run."""
    import torch

    model = copy.deepcopy(seeded(ranks.FAMILY))
    names = [f"model.layers.{n}.mlp" for n in range(len(model.model.layers))]
    oracle = Oracle(model, [(name, f"{name}.gate") for name in names])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(ranks.WORK.steps):
        for micro in range(ranks.WORK.micro_batches):
            for rank in range(ranks.WORLD):
                ids, mask = batch(ranks.APART * rank + 10 * step + micro)
                with oracle.says(("train", step // EVERY), mask):
                    loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
                (loss / ranks.WORLD).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        for rank in range(ranks.WORLD):
            ids, mask = batch(ranks.APART * rank + 10 * step + ranks.WORK.micro_batches - 1)
            with torch.no_grad(), oracle.says(("eval", step), mask):
                model(input_ids=ids, attention_mask=mask)
        model.train()
    return as_lists(oracle.counts)


def summed(counts):
    """Counts of all ranks, added per window and layer."""
    total = {}
    for label, layers in (entry for counted in counts for entry in counted):
        for layer, row in layers.items():
            into = total.setdefault(tuple(label), {})
            into[layer] = [a + b for a, b in zip(into.get(layer, [0] * len(row)), row, strict=True)]
    return total


@pytest.mark.parametrize("parallel", ranks.CELLS, ids=str)
class TestTwoRanks:
    def test_sum_is_the_truth(self, parallel, outcomes, truth):
        """The counts of both ranks add up to those of the oracle over all batches."""
        cells = [outcome[str(parallel)] for outcome in outcomes]
        assert [cell["traced_error"] for cell in cells] == ["", ""]
        assert summed(cell["counted"] for cell in cells) == truth

    def test_training_is_unchanged(self, parallel, outcomes):
        """On each rank every bit, every frame and every graph break is that of the untraced run."""
        for outcome in outcomes:
            cell = outcome[str(parallel)]
            assert cell["differing"] == []
            assert cell["compared"] > 50
            assert cell["frames"][1] <= cell["frames"][0]
            assert cell["breaks"][1] <= cell["breaks"][0]

    def test_no_collective_of_ours(self, parallel, outcomes):
        """Neither rank sees moetrace enter a collective."""
        assert [outcome[str(parallel)]["collectives"] for outcome in outcomes] == [[], []]
