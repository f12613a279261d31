"""Over two processes every token is counted once too, and no rank's training is changed.

Each rank counts its own batches; the sum over the ranks is what an oracle finds in one process that
sees the batches of both. The cells run one after the other in one pair of processes.
"""

import copy
import json
import multiprocessing

import pytest

import moetrace
from moetrace.gradient_stats import norm_of
from tests.gloo import rank as ranks
from tests.matrix.training import EVERY, as_lists
from tests.oracle import Oracle
from tests.tiny import batch, seeded


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each rank says about every cell, and the folder with the runs."""
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
    said = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks.WORLD)]
    return folder, said


@pytest.fixture(scope="module")
def truth():
    """Of a plain run over the batches of all ranks: counts per window and layer, and gradients.

    Those are the norm of each step, and the router weights that the training ends with.
    """
    import torch

    model = copy.deepcopy(seeded(ranks.FAMILY))
    names = [f"model.layers.{n}.mlp" for n in range(len(model.model.layers))]
    oracle = Oracle(model, [(name, f"{name}.gate") for name in names])
    optimizer, norms = torch.optim.SGD(model.parameters(), lr=0.1), []
    for step in range(ranks.WORK.steps):
        for micro in range(ranks.WORK.micro_batches):
            for rank in range(ranks.WORLD):
                ids, mask = batch(ranks.APART * rank + 10 * step + micro)
                with oracle.says(("train", step // EVERY), mask):
                    loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
                (loss / ranks.WORLD).backward()
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])))
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        for rank in range(ranks.WORLD):
            ids, mask = batch(ranks.APART * rank + 10 * step + ranks.WORK.micro_batches - 1)
            with torch.no_grad(), oracle.says(("eval", step), mask):
                model(input_ids=ids, attention_mask=mask)
        model.train()
    weights = [layer.mlp.gate.weight.norm().item() for layer in model.model.layers]
    return as_lists(oracle.counts), norms, weights


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
        cells = [outcome[str(parallel)] for outcome in outcomes[1]]
        assert [cell["traced_error"] for cell in cells] == ["", ""]
        assert summed(cell["counted"] for cell in cells) == truth[0]

    def test_training_is_unchanged(self, parallel, outcomes):
        """On each rank every bit, every frame and every graph break is that of the untraced run."""
        for outcome in outcomes[1]:
            cell = outcome[str(parallel)]
            assert cell["differing"] == []
            assert cell["compared"] > 50
            assert cell["frames"][1] <= cell["frames"][0]
            assert cell["breaks"][1] <= cell["breaks"][0]

    def test_no_collective_of_ours(self, parallel, outcomes):
        """Neither rank sees moetrace enter a collective."""
        assert [outcome[str(parallel)]["collectives"] for outcome in outcomes[1]] == [[], []]

    def test_gradients_and_weights_are_those_of_the_whole_model(self, parallel, outcomes, truth):
        """S3-32: after the reduction, shards added up, replicas taken once: the plain run's."""
        run = moetrace.open_run(outcomes[0] / str(parallel))
        (window,) = [snapshot for snapshot in run.snapshots() if snapshot.gradients]
        _, norms, weights = truth
        root_mean_square = (sum(norm**2 for norm in norms) / len(norms)) ** 0.5
        assert norm_of(window.gradients) == pytest.approx(root_mean_square, rel=1e-5)
        assert [record.norm for record in window.weights] == pytest.approx(weights, rel=1e-5)
        assert {record.sharded for record in window.weights} == {parallel.kind == "FSDP2"}
        assert {record.numel for record in window.weights} == {8 * 32}
