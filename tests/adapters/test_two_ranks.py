"""Every adapter over two processes: each rank attaches and writes, reading adds them up."""

import json
import multiprocessing
import socket

import pytest

import moetrace
from moetrace.gradient_stats import norm_of
from tests.adapters import two_ranks
from tests.adapters.truth import LAYERS


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder with the runs, and what each rank says."""
    folder = tmp_path_factory.mktemp("two-ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=two_ranks.main, args=(rank, str(folder), port))
        for rank in range(two_ranks.WORLD)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(200)
    for process in ranks:
        process.kill()
        process.join()
    return folder, [
        json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(two_ranks.WORLD)
    ]


class TestTwoRanks:
    @pytest.mark.parametrize("loop", two_ranks.LOOPS)
    def test_the_run_is_the_sum_of_the_ranks(self, done, loop):
        """Counts of the run are what the oracles of both ranks counted, under the plain names."""
        folder, said = done
        run = moetrace.open_run(folder / loop)
        names = [f"net.{layer}" if loop == "lightning" else layer for layer in LAYERS]
        assert list(run.layers) == names
        assert run.ranks == (0, 1)
        assert run.steps().tolist() == [[1, 1], [2, 2]]
        assert run.finished
        for counts, layer in zip(run.counts().sum(axis=0).tolist(), LAYERS, strict=True):
            shares = [rank["truth"][loop]["train"][layer] for rank in said]
            assert counts == [a + b for a, b in zip(*shares, strict=True)]
            assert shares[0] != shares[1]

    def test_no_adapter_enters_a_collective(self, done):
        """What the frameworks do is theirs; nothing of ours talks to the other rank."""
        assert [rank["tripped"] for rank in done[1]] == [[], []]

    def test_the_first_rank_leaves_the_pointer(self, done):
        """A checkpoint that two ranks save holds one pointer, to the run of both."""
        folder, _ = done
        pointer = json.loads(
            (folder / "transformers-output/checkpoint-2/moetrace.json").read_text()
        )
        assert pointer["run"] == str(folder / "transformers")
        assert pointer["step"] == 2

    def test_gradients_are_those_after_the_reduction(self, done):
        """S3-32: each rank measures the reduced gradient, and the run takes one of the two."""
        folder, said = done
        logged = said[0]["norms"]
        assert len(logged) == 2
        assert said[1]["norms"] == logged
        windows = [s.gradients for s in moetrace.open_run(folder / "transformers").snapshots()]
        assert [norm_of(records) for records in windows if records] == pytest.approx(logged, 1e-5)

    def test_the_first_rank_alone_writes_the_files_of_router_weights(self, done):
        """S0-22: every rank has its own segment; the files for people are those of rank 0."""
        folder, _ = done
        files = [
            sorted(path.name for path in (folder / f"transformers-weights-{rank}").iterdir())
            for rank in range(two_ranks.WORLD)
        ]
        steps = [f"router_weight_stats_step_{step}.json" for step in (1, 2)]
        assert files == [[*steps, "router_weight_summary.json", "run"], ["run"]]
        for rank in range(two_ranks.WORLD):
            run = moetrace.open_run(folder / f"transformers-weights-{rank}" / "run")
            assert run.ranks == (rank,)
            assert [len(s.weights) for s in run.windows()] == [2, 2]
