"""Tables of experts over two processes: reading adds what each has looked up, to the last draw."""

import json
import multiprocessing
from collections import Counter
from pathlib import Path

import pytest

import moetrace
from tests.gloo import tables as ranks


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The run that two ranks wrote, and what each of them says that it looked up."""
    folder = tmp_path_factory.mktemp("tables")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.gloo.tables"])
    processes = [
        context.Process(target=ranks.main, args=(rank, str(folder))) for rank in range(ranks.WORLD)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    assert codes == [0] * ranks.WORLD
    said = [json.loads(Path(folder, f"rank-{n}.json").read_text()) for n in range(ranks.WORLD)]
    return moetrace.open_run(folder / "run"), said


def drawn(said, layer, first, last):
    """Draws per expert of all ranks in these steps, counted one by one."""
    steps = [one["finished"][str(step)] for one in said for step in range(first, last + 1)]
    return Counter(expert for step in steps for expert in step[layer])


class TestTwoRanks:
    @pytest.mark.parametrize("layer", [0, 1])
    def test_counts_per_expert_are_those_of_both(self, outcome, layer):
        """S2-14: each expert's draws are what both ranks looked up in finished steps, in windows of
        two steps, with gradient accumulation, other tokens on each rank and a step that both gave
        up once.
        """
        run, said = outcome
        found = list(run.draws(f"layers.{layer}"))
        assert [span for span, _, _ in found] == [[1, 2], [3, 4]]
        for (first, last), counts, _ in found:
            expected = drawn(said, layer, first, last)
            assert {at: n for at, n in enumerate(counts.tolist()) if n} == dict(expected)

    def test_totals_are_those_of_both(self, outcome):
        """S2-14: draws and tokens are the sums over the ranks; coverage is of all their draws."""
        run, said = outcome
        per_step = 2 * (3 + 2) + 2 * (7 + 2)
        for window, (first, last) in zip(run.snapshots(), run.steps().tolist(), strict=True):
            for layer, record in enumerate(window.indices):
                expected = drawn(said, layer, first, last)
                assert (record.tokens, record.calls) == (2 * per_step, 2 * 2 * 2)
                assert record.draws == expected.total() == 2 * per_step * ranks.HEADS * ranks.TOP_K
                assert record.used == len(expected)

    def test_every_rank_wrote_its_own(self, outcome):
        """S2-14: no rank speaks for the other, and a run that lacks one says so."""
        run, _ = outcome
        assert (run.ranks, run.tables()) == ((0, 1), ("layers.0", "layers.1"))

    def test_no_rank_waits_for_another(self, outcome):
        """Nothing of ours enters a collective on the thread that trains."""
        _, said = outcome
        assert [one["collectives"] for one in said] == [[], []]
