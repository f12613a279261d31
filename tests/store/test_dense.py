"""Counts per expert of tables in the run folder: written now and then, read back, never trusted."""

import json
import zlib

import numpy as np
import pytest
from safetensors.numpy import load_file

import moetrace
from moetrace.index_stats import index_stats_of
from moetrace.snapshot import Snapshot
from moetrace.store import RunFolder


def table(counts, *, due=True, layer="ffn"):
    """A record with scores of half a draw each."""
    counts = np.asarray(counts, np.int64)
    return index_stats_of(
        layer,
        counts,
        columns=2,
        score_sum=counts << 29,
        scalars={"tokens": int(counts.sum()), "calls": 1},
        due=due,
    )


def written(path, *windows, rank=0):
    """A run with a window for each list of tables, of one process; its log."""
    folder = RunFolder.prepare(path)
    segment = folder.open_segment(rank=rank, header={"world_size": 1 + rank, "sites": []})
    for seq, tables in enumerate(windows):
        segment.append(
            Snapshot(
                folder.run_id,
                rank,
                segment.attempt,
                seq,
                "train",
                seq + 1,
                seq + 1,
                0.0,
                (),
                indices=tuple(tables),
            )
        )
    segment.close()
    return path / "segments" / str(segment_name(path, rank))


def segment_name(path, rank):
    """The folder of a rank's only segment."""
    return next(p.name for p in (path / "segments").glob(f"*-{rank:05d}-????????"))


def altered(segment, change):
    """Change the record of the first snapshot in a log, with a checksum that fits."""
    log = segment / "log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    for at, line in enumerate(lines):
        record = json.loads(line)
        if record["record"] == "snapshot":
            del record["crc32"]
            change(record)
            body = json.dumps(record, separators=(",", ":")).encode()[:-1]
            lines[at] = body + b',"crc32":"%08x"}\n' % zlib.crc32(body)
            break
    log.write_bytes(b"".join(lines))


class TestWritten:
    def test_counts_and_scores_come_back(self, tmp_path):
        """What a window kept is read as it was: draws per expert, and sums of scores."""
        written(tmp_path / "run", [table([0, 3, 5, 1])])
        run = moetrace.open_run(tmp_path / "run")
        ((span, counts, scores),) = run.draws("ffn")
        assert (span, counts.tolist(), scores.tolist()) == (
            [1, 1],
            [0, 3, 5, 1],
            [0, 1.5, 2.5, 0.5],
        )
        assert run.faults == ()

    def test_only_windows_that_are_due(self, tmp_path):
        """Windows that are not due have their reductions in the line, and no file."""
        segment = written(tmp_path / "run", [table([1, 2, 3, 4])], [table([5, 0, 0, 0], due=False)])
        assert [p.name for p in segment.glob("x*")] == ["x00000.safetensors"]
        run = moetrace.open_run(tmp_path / "run")
        assert len(list(run.draws("ffn"))) == 1
        assert run.index_metric("coverage").tolist() == [[1.0], [0.25]]
        assert run.tables() == ("ffn",)

    def test_any_safetensors_reader_opens_it(self, tmp_path):
        """The file is a plain safetensors file, named by the position of each table."""
        segment = written(tmp_path / "run", [table([0, 3, 5, 1]), table([9, 9], layer="b")])
        found = load_file(segment / "x00000.safetensors")
        assert {name: array.tolist() for name, array in found.items()} == {
            "0.tokens_per_expert": [0, 3, 5, 1],
            "0.score_sum": [0, 3 << 29, 5 << 29, 1 << 29],
            "1.tokens_per_expert": [9, 9],
            "1.score_sum": [9 << 29, 9 << 29],
        }

    def test_counts_above_int32(self, tmp_path):
        """From the first count above 2147483647 on the file holds 64 bits."""
        written(tmp_path / "run", [table([2**31, 1])])
        ((_, counts, _),) = moetrace.open_run(tmp_path / "run").draws("ffn")
        assert counts.tolist() == [2**31, 1]

    def test_snapshots_hold_reductions(self, tmp_path):
        """Whoever reads windows gets no number per expert unless asked for."""
        written(tmp_path / "run", [table([0, 3, 5, 1])])
        (snapshot,) = moetrace.open_run(tmp_path / "run").snapshots()
        assert (snapshot.indices[0].nbytes, snapshot.indices[0].used) == (0, 3)

    def test_no_metric_of_that_name(self, tmp_path):
        """A slip in the name of a metric is an error that lists them."""
        written(tmp_path / "run", [table([0, 3, 5, 1])])
        with pytest.raises(ValueError, match="no metric 'covrage' of tables"):
            moetrace.open_run(tmp_path / "run").index_metric("covrage")


class TestRanks:
    def test_two_ranks_add_exactly_where_counts_were_kept(self, tmp_path):
        """S2-14: every rank has a segment of its own, and reading adds them: no number is lost."""
        windows = [table([0, 3, 5, 1])], [table([1, 0, 0, 0], due=False)]
        written(tmp_path / "run", *windows)
        others = [table([4, 0, 0, 0])], [table([0, 1, 0, 0], due=False)]
        written(tmp_path / "run", *others, rank=1)
        run = moetrace.open_run(tmp_path / "run")
        first, second = (window.indices[0] for window in run.snapshots())
        assert (first.draws, first.used, first.top_draws) == (13, 4, (5, 4, 3, 1))
        assert (second.draws, second.used, second.row_draws) == (2, None, (2, 0))
        ((_, counts, _),) = run.draws("ffn")
        assert counts.tolist() == [4, 3, 5, 1]
        assert run.index_metric("coverage")[0, 0] == 1.0
        assert np.isnan(run.index_metric("coverage")[1, 0])


class TestDamage:
    def test_a_flipped_byte_costs_its_window(self, tmp_path):
        """A byte that changed is found, and the window is left out with a reason."""
        segment = written(tmp_path / "run", [table([0, 3, 5, 1])], [table([1, 1, 1, 1])])
        file = segment / "x00000.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        run = moetrace.open_run(tmp_path / "run")
        assert len(run.snapshots()) == 1
        assert "bad checksum of table 0 in x00000.safetensors" in run.faults[0]

    def test_a_file_that_ends_early(self, tmp_path):
        """A file that is too short is found before memory is set aside."""
        segment = written(tmp_path / "run", [table([0, 3, 5, 1])])
        file = segment / "x00000.safetensors"
        file.write_bytes(file.read_bytes()[:-8])
        run = moetrace.open_run(tmp_path / "run")
        assert "x00000.safetensors ends before table 0" in run.faults[0]

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"file": "../log.jsonl"}, "a file that is none of a segment's"),
            ({"position": 1}, "position is not an integer in range"),
            ({"experts": 1 << 25}, "counts of another size than their table"),
            ({"dtype": "F64"}, "unknown number type of counts"),
            ({"crc32": []}, "checksums of counts that are none"),
            ({"data": -1}, "data is not an integer in range"),
        ],
    )
    def test_a_line_that_says_nonsense(self, tmp_path, change, reason):
        """Every field of where counts stand is held against what a writer writes."""
        segment = written(tmp_path / "run", [table([0, 3, 5, 1])])
        altered(segment, lambda record: record["dense"][0].update(change))
        run = moetrace.open_run(tmp_path / "run")
        assert reason in run.faults[0]
        assert run.snapshots() == []

    def test_one_table_twice(self, tmp_path):
        """A line that names a table's counts twice is refused."""
        segment = written(tmp_path / "run", [table([0, 3, 5, 1])])
        altered(segment, lambda record: record["dense"].append(record["dense"][0]))
        assert "counts of one table twice" in moetrace.open_run(tmp_path / "run").faults[0]
