"""Live totals over all ranks: exact while all are there, this rank's own after any trouble.

The cells of `tests.gloo.live` run in three processes over gloo, one after the other; a rank that is
lost takes three more.
"""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

import moetrace
from tests.gloo import live

ALL = {"blocks.0": [3, 4, 3, 2]}
"""What one step of all ranks counts: 2, 1 and 3 tokens with two experts each."""


def spawned(target, *args, world=live.WORLD):
    """Processes that do it, each with its rank first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.gloo.live"])
    processes = [context.Process(target=target, args=(rank, *args)) for rank in range(world)]
    for process in processes:
        process.start()
    return processes


def ended(processes, seconds=120):
    """Exit codes, after they had their time; who is alive then is killed and has none."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def left_by(folder):
    """What each rank left."""
    paths = [Path(folder, f"rank-{rank}.json") for rank in range(live.WORLD)]
    return [json.loads(path.read_text()) if path.exists() else None for path in paths]


@pytest.fixture(scope="module", autouse=True)
def one_thread_each():
    """Children of this module use one thread each."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder in which every cell has run."""
    folder = tmp_path_factory.mktemp("live")
    assert ended(spawned(live.main, str(folder))) == [0, 0, 0]
    return folder


@pytest.fixture(scope="module")
def done(folder):
    """What each rank did in each cell."""
    return left_by(folder)


def train(found):
    """Steps, ranks and counts of the train windows that a sink got."""
    return [
        (w["steps"], w["ranks"], w["layers"]) for w in found["windows"] if w["phase"] == "train"
    ]


def times(count, layers=ALL):
    """The counts of so many steps."""
    return {layer: [count * value for value in row] for layer, row in layers.items()}


def own(rank, *spans):
    """What a rank alone counts in windows of these steps."""
    row = {"blocks.0": live.ONE_FORWARD[rank]}
    return [(list(span), [rank], times(span[1] - span[0] + 1, row)) for span in spans]


class TestWhole:
    def test_every_rank_gets_the_sum(self, done):
        """F1-L2: the windows of all ranks hold the steps of all ranks, the last and shorter too."""
        spans = [([1, 2], 2), ([3, 4], 2), ([5, 6], 2), ([7, 7], 1)]
        expected = [(steps, [0, 1, 2], times(count)) for steps, count in spans]
        assert [train(rank["whole"]) for rank in done] == [expected] * 3
        assert [rank["whole"]["said"] for rank in done] == [[]] * 3

    def test_live_totals_are_those_of_the_run(self, done, folder):
        """F1-L2: what sinks saw equals what reading the run folder gives, window by window."""
        windows = moetrace.open_run(folder / "whole").snapshots()
        read = [item["blocks.0"].tokens_per_expert.tolist() for item in windows]
        assert [layers["blocks.0"] for _, _, layers in train(done[0]["whole"])] == read
        assert [sum(column) for column in zip(*read, strict=True)] == times(7)["blocks.0"]

    def test_other_phases_are_a_rank_s_own(self, done):
        """An evaluation is not reduced, and says whose it is."""
        for rank, found in enumerate(done):
            (window,) = [w for w in found["whole"]["windows"] if w["phase"] == "eval"]
            assert (window["ranks"], window["layers"]["blocks.0"]) == (
                [rank],
                live.ONE_FORWARD[rank],
            )

    def test_only_its_own_thread_talks_to_the_ranks(self, done):
        """F1: no collective on a training thread, two operations per round on the reduction's."""
        assert [rank["stepped on"] for rank in done] == [[]] * 3
        assert [rank["whole"]["passed"] for rank in done] == [8] * 3


class TestApart:
    def test_ranks_close_windows_when_they_like(self, done, folder):
        """F2, F1-L1: windows of 1, 2 and 3 steps and a flush left out: exact, and no collective."""
        run = moetrace.open_run(folder / "cadence")
        total = sum(item["blocks.0"].tokens_per_expert for item in run.snapshots())
        assert total.tolist() == times(6)["blocks.0"]
        assert run.coverage["ranks"] == 3
        assert run.faults == ()
        assert [rank["cadence"]["passed"] for rank in done] == [0, 0, 0]

    def test_elastic_restarts(self, tmp_path):
        """F7: killed with 3 ranks, resumed and killed with 2, finished with 4: each step exact."""
        lives = ((3, 1, 8), (2, 5, 10), (4, 9, 12))
        for number, (world, first, last) in enumerate(lives):
            home = tmp_path / str(number)
            home.mkdir()
            ends = number == 2
            processes = spawned(live.life, world, str(home), first, last, ends, world=world)
            assert ended(processes) == [0 if ends else -signal.SIGKILL] * world
        run = moetrace.open_run(tmp_path / "run")
        read = {
            item.last_step: item["blocks.0"].tokens_per_expert.tolist() for item in run.snapshots()
        }
        trained = [[1, 1, 1, 0]] * 4 + [[1, 1, 0, 0]] * 4 + [[1, 1, 1, 1]] * 4
        assert read == dict(zip(range(1, 13), trained, strict=True))
        assert run.attempts == (0, 1, 2)
        assert not any("coverage" in item.health for item in run.snapshots())
        assert run.faults == ()


class TestAgreement:
    def test_stages_and_a_rank_without_routers(self, done):
        """F1-L3, F3: layers of several ranks stand side by side; a rank without any is free."""
        layers = {"blocks.0": [4, 2, 2, 0], "blocks.1": [0, 2, 0, 2]}
        expected = [([1, 2], [0, 1], layers)]
        assert [train(rank["stages"]) for rank in done] == [expected, expected, []]

    def test_copies_are_added_once(self, done):
        """F10: of ranks that are declared to route the same tokens the lowest is added."""
        expected = [([1, 2], [0, 2], {"blocks.0": [6, 6, 6, 2]})]
        assert [train(rank["copies"]) for rank in done] == [expected] * 3

    @pytest.mark.parametrize(
        ("cell", "why"),
        [
            ("other_cadence", "rank 0 has every 2 and rank 1 3"),
            ("other_experts", "rank 1 has 5 experts"),
            ("one_without", "rank 1 did not attach with reduce='live'"),
        ],
    )
    def test_without_it_numbers_are_local(self, cell, why, done):
        """F1-L3, F1-L4: one warning before the first round, and no operation at all."""
        for rank, found in enumerate(done):
            if (cell, rank) == ("one_without", 1):
                continue
            assert {tuple(ranks) for _, ranks, _ in train(found[cell])} == {(rank,)}
            (said,) = found[cell]["said"]
            assert why in said
            assert found[cell]["passed"] == 0


class TestRounds:
    def test_a_wider_window_of_one_rank(self, done):
        """F1-L6: where rank 1 wrote steps 1 to 6 at once, all ranks show them at once."""
        expected = [([1, 6], [0, 1, 2], times(6)), ([7, 8], [0, 1, 2], times(2))]
        assert [train(rank["coalesced"]) for rank in done] == [expected] * 3
        assert [rank["coalesced"]["said"] for rank in done] == [[]] * 3

    def test_flushes_of_one_rank(self, done):
        """F1-L6: windows that one rank closed early are added up to the step of the round."""
        expected = [([1, 2], [0, 1, 2], times(2)), ([3, 4], [0, 1, 2], times(2))]
        assert [train(rank["flushed"]) for rank in done] == [expected] * 3

    def test_other_step_numbers(self, done):
        """F1-L6: ranks that are not at the same step add nothing, and say so once."""
        for rank, found in enumerate(done):
            first = 101 if rank == 1 else 1
            spans = [(first, first + 1), (first + 2, first + 3)]
            assert train(found["other_steps"]) == own(rank, *spans)
            assert len(found["other_steps"]["said"]) == 1
        assert "rank 1 is at step 102, this one at step 2" in done[0]["other_steps"]["said"][0]

    def test_closing_in_a_round(self, done):
        """F1-L8: who closes while the others do not answer gives out its own windows and ends."""
        for rank in (0, 2):
            found = done[rank]["pending"]
            assert train(found) == [([1, 2], [0, 1, 2], times(2)), *own(rank, (3, 4))]
            assert "did not answer before this one closed" in found["said"][0]

    def test_a_fork_in_between(self, done):
        """F1-L9, D9: the child ends in order and touches nothing, and the parents go on."""
        expected = [([1, 2], [0, 1, 2], times(2)), ([3, 4], [0, 1, 2], times(2))]
        assert [train(rank["forked"]) for rank in done] == [expected] * 3
        assert [rank["forked"]["child"] for rank in done] == [7] * 3

    def test_another_default_group(self, done):
        """F1-L10: the user may destroy the default group and make another; rounds go on."""
        expected = [([1, 2], [0, 1, 2], times(2)), ([3, 4], [0, 1, 2], times(2))]
        assert [train(rank["regrouped"]) for rank in done] == [expected] * 3


@pytest.mark.parametrize(("name", "patience"), [("SIGKILL", 60.0), ("SIGSTOP", 5.0)])
class TestALostRank:
    def test_costs_live_curves_and_nothing_else(self, name, patience, tmp_path):
        """F1-L5, F4, F6: the others train to the end, on their own numbers; the run says who."""
        processes = spawned(live.lost, str(tmp_path), name, patience)
        for process in processes[:-1]:
            process.join(60)
        codes = ended(processes, 1)
        assert codes == [0, 0, -signal.SIGKILL if name == "SIGKILL" else None]
        done = left_by(tmp_path)
        for rank, found in enumerate(done[:-1]):
            both = [([1, 2], [0, 1, 2], times(2)), ([3, 4], [0, 1, 2], times(2))]
            assert train(found) == [*both, *own(rank, (5, 6), (7, 8))]
            assert len(found["said"]) == 1
            assert found["stepped on"] == []
        run = moetrace.open_run(tmp_path / "run")
        assert run.coverage["stopped"] == {2: 4}
        assert run.faults == ("rank 2 stops at step 4, the others went on to step 8",)
        told = [item.health.get("coverage") for item in run.snapshots()]
        assert told == [None, None, "2 of 3", "2 of 3"]


class TestAttach:
    def test_without_a_process_group(self, caplog, tmp_path):
        """F1-L1: alone there is nobody to add: own numbers, one warning, no operation."""
        loop = live.Loop(0, tmp_path / "run")
        loop.steps(2)
        found = loop.close()
        assert train(found) == own(0, (1, 2))
        assert "there was no process group when attach() was called" in found["said"][0]

    def test_refuses_another_word(self):
        """The message says which words there are."""
        with pytest.raises(ValueError, match="found reduce='fast'; it is 'read' or 'live'"):
            live.Loop(0, None, reduce="fast")
